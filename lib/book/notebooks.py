"""A chapter as a file: reading it, the numbers it glued, and the page that its outputs make with today's prose."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..prose import CLAIM
from ..settings import shown

# nbformat checks schemas with jsonschema, which, where this is installed, compiles forty grammars of internet
# addresses as it is imported: four seconds of every process, for what no notebook holds.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

INJECTED = "injected-parameters"  # papermill's tag for the cell that it adds
# A claim behind a sentence, with the space before it.
ROLE = re.compile(r"(?P<space>[ \t]*)\{claim\}`(?P<name>[^`]+)`")
BEGINNING = re.compile(r"(?:\A|\n)[ \t]*(?:[-*+>]|#+|\d+[.)])?\Z")  # of a line, an item, a heading
REFUTED = '<span class="refuted">(not so in this run)</span>'


class BookError(ValueError):
    """Bad input to the book: an unknown chapter, profile, parameter, or a value of the wrong type."""


def read(notebook: Path) -> Any:
    """The notebook at `notebook` as nbformat 4; raises BookError if it is none, or not a valid one."""
    import nbformat

    faults: dict[str, Any] = {}
    try:
        if notebook.exists() and not notebook.is_file():
            raise ValueError("it is no file")
        with notebook.open(encoding="utf-8") as file:
            book = nbformat.read(file, as_version=4, capture_validation_error=faults)
        if not faults:  # half of a surrogate pair can be read, and could not be written
            "".join(cell.source for cell in book.cells).encode()
    except OSError as error:
        raise BookError(f"no notebook {notebook}: {error.strerror}") from None
    except Exception as error:  # whatever the text makes nbformat stumble over
        raise BookError(f"{notebook} is not a notebook: {str(error)[:200]}") from None
    if faults:
        why = str(faults["ValidationError"]).partition("\n")[0]
        raise BookError(f"{notebook} is not a valid notebook: {why[:200]}")
    ours = book.metadata.get("redbook", {})
    if not isinstance(ours, dict):
        raise BookError(f"{notebook}: metadata.redbook = {shown(ours)}: a mapping is needed")
    return book


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a sentence of a chapter says of an output, in one run."""

    name: str
    holds: bool
    basis: str  # "run": of this run; "rows": of a committed table


def claims(notebook: Path) -> dict[str, Claim]:
    """The claims that an executed notebook made, by name; one made several times holds if it held each time."""
    return _claims(read(notebook))


def claimed(notebook: Path) -> set[str]:
    """The names of the claims that stand behind a chapter's sentences, in its text and its captions."""
    return {found["name"] for where, field in _prose(read(notebook)) for found in ROLE.finditer(where[field])}


def _claims(book: Any) -> dict[str, Claim]:
    found: dict[str, Claim] = {}
    for label, value in _scraps(book):
        for prefix, basis in CLAIM.items():
            if label.startswith(prefix):
                name = label.removeprefix(prefix)
                before = name not in found or found[name].holds
                found[name] = Claim(name=name, holds=before and value is True, basis=basis)
    return found


def glued(notebook: Path) -> dict[str, Any]:
    """What an executed notebook glued for its text, by name.

    Plain Python values come back as such; other text as str; figures and HTML as their MIME bundle.
    """
    return {k: v for k, v in _scraps(read(notebook)) if not k.startswith(tuple(CLAIM))}


def _scraps(book: Any) -> Iterator[tuple[str, Any]]:
    for cell in book.cells:
        for output in cell.get("outputs", []):
            scrap = output.get("metadata", {}).get("scrapbook")
            if not scrap:
                continue
            prefix = scrap.get("mime_prefix", "")
            bundle = {mime.removeprefix(prefix): data for mime, data in output["data"].items()}
            yield scrap["name"], bundle if set(bundle) != {"text/plain"} else _literal(bundle["text/plain"])


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return float(text)  # nan, inf
    except ValueError:
        return text


def merge(source: Path, executed: Path) -> Any:
    """The chapter as it is now, with the outputs of its run: its prose may have changed since.

    The code cells of both are the same, by the key of the build. Its cell of parameters shows the values that ran, in
    place of the cell that papermill added; its claims are gone where they hold, and marked where they do not.
    Raises BookError for a claim that the run did not make, or that begins a line: of which sentence?
    """
    from . import parameters  # not above: it reads notebooks

    book, run = read(source), read(executed)
    ran = (c for c in run.cells if c.cell_type == "code" and INJECTED not in c.metadata.get("tags", []))
    for cell in book.cells:
        if cell.cell_type == "code":
            twin = next(ran)
            cell.outputs, cell.execution_count = twin.outputs, twin.execution_count
    if given := run.metadata.get("redbook", {}).get("parameters"):
        cell = next(c for c in book.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = parameters.put(cell.source, given)
    _judge(book, _claims(run), source.stem)
    if "widgets" in run.metadata:
        book.metadata["widgets"] = run.metadata["widgets"]
    return book


def _judge(book: Any, made: dict[str, Claim], chapter: str) -> None:
    """Put into a book's prose, for each claim, whether it holds."""

    def verdict(found: re.Match[str]) -> str:
        if (name := found["name"]) not in made:
            known = ", ".join(sorted(made)) or "none"
            raise BookError(f"{chapter}: its run made no claim {shown(name)}; it made {known}")
        if BEGINNING.search(found.string, 0, found.start()):
            raise BookError(f"{chapter}: claim {shown(name)} begins a line: it stands behind its sentence")
        return "" if made[name].holds else (found["space"] or " ") + REFUTED

    for where, field in _prose(book):
        where[field] = ROLE.sub(verdict, where[field])


def _prose(book: Any) -> Iterator[tuple[Any, str]]:
    """Where the sentences of a chapter are, each a mapping and a field of it: text, and captions of figures."""
    for cell in book.cells:
        if cell.cell_type == "markdown":
            yield cell, "source"
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if "caption" in figure:
            yield figure, "caption"
