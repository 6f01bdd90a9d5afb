"""A chapter as a file: reading it, the numbers it glued, and the page that its outputs make with today's prose."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..prose import CLAIM
from ..settings import shown

# nbformat checks schemas with jsonschema, which, where this is installed, compiles forty grammars of internet
# addresses as it is imported: four seconds of every process, for what no notebook holds.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

INJECTED = "injected-parameters"  # papermill's tag for the cell that it adds


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
    """The claims that an executed notebook made, by name."""
    found = {}
    for label, value in _scraps(read(notebook)).items():
        for prefix, basis in CLAIM.items():
            if label.startswith(prefix):
                name = label.removeprefix(prefix)
                found[name] = Claim(name=name, holds=value is True, basis=basis)
    return found


def glued(notebook: Path) -> dict[str, Any]:
    """What an executed notebook glued for its text, by name.

    Plain Python values come back as such; other text as str; figures and HTML as their MIME bundle.
    """
    return {k: v for k, v in _scraps(read(notebook)).items() if not k.startswith(tuple(CLAIM))}


def _scraps(book: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for cell in book.cells:
        for output in cell.get("outputs", []):
            scrap = output.get("metadata", {}).get("scrapbook")
            if not scrap:
                continue
            prefix = scrap.get("mime_prefix", "")
            bundle = {mime.removeprefix(prefix): data for mime, data in output["data"].items()}
            found[scrap["name"]] = bundle if set(bundle) != {"text/plain"} else _literal(bundle["text/plain"])
    return found


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

    The code cells of both are the same, by the key of the build; papermill's added cell is taken over.
    """
    book, run = read(source), read(executed)
    is_injected = [INJECTED in c.metadata.get("tags", []) for c in run.cells]
    injected = [c for c, added in zip(run.cells, is_injected) if added]
    ran = iter(c for c, added in zip(run.cells, is_injected) if c.cell_type == "code" and not added)
    for cell in book.cells:
        if cell.cell_type == "code":
            twin = next(ran)
            cell.outputs, cell.execution_count = twin.outputs, twin.execution_count
    for cell in injected:
        at = next(i for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
        book.cells.insert(at + 1, cell)
    if "widgets" in run.metadata:
        book.metadata["widgets"] = run.metadata["widgets"]
    return book
