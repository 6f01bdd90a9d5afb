"""The parameters that a chapter declares, and whether what it is given fits them.

Papermill itself only warns about an unknown parameter and never looks at a type, so both are checked here
before anything runs.
"""

from __future__ import annotations

import ast
import io
import math
import tokenize
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fingerprint import plain_python
from ..settings import of_type, shown, typed
from .notebooks import BookError, read

# What the annotation of a parameter may be made of, besides None, `|` and `...`.
TYPES: Mapping[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)},
    **{name: getattr(typing, name) for name in ("Any", "Optional", "Union")},
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A line of a chapter's `parameters` cell: `n_seeds: int = 3  # classifiers per group`."""

    name: str
    type: str  # int, float | None, list[int] ...: as annotated, else that of the default; "Any" where nothing tells
    default: str  # as written
    help: str

    def __str__(self) -> str:
        return f"{self.name}: {self.type} = {self.default}"


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that `notebook` declares, by name, in order: what its cell tagged `parameters` sets.

    Raises BookError where that cell is no Python.
    """
    source = next((c.source for c in read(notebook).cells if "parameters" in c.metadata.get("tags", [])), "")
    try:
        source = plain_python(source)
        lines, comments = ast.parse(source).body, _comments(source)
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError) as error:
        raise BookError(f"{notebook.name}: its cell of parameters is no Python: {error}") from None
    found = {}
    for line in lines:
        if not isinstance(line, (ast.Assign, ast.AnnAssign)) or line.value is None:
            continue
        default = ast.get_source_segment(source, line.value) or ""
        kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else _type_of(line.value)
        for target in line.targets if isinstance(line, ast.Assign) else [line.target]:
            if isinstance(target, ast.Name):
                told = comments.get(line.end_lineno or 0, "")
                found[target.id] = Parameter(name=target.id, type=kind, default=default, help=told)
    return found


def put(source: str, given: Mapping[str, object]) -> str:
    """The source of a cell of parameters with the values `given` in place of its defaults; the rest stays as written.

        put("n: int = 3  # of them", {"n": 5})  # "n: int = 5  # of them"

    A default that already is the value stays, too: 500_000.
    """
    lines = source.encode().splitlines(keepends=True)  # the columns of `ast` count bytes
    try:
        found = ast.parse(source).body
    except SyntaxError:  # lines of IPython's own: left blank, so that the others keep their places
        kept = set(plain_python(source).splitlines())
        found = ast.parse("\n".join(line if line in kept else "" for line in source.splitlines())).body
    for line in reversed(found):
        if not isinstance(line, (ast.Assign, ast.AnnAssign)) or (value := line.value) is None:
            continue
        targets = line.targets if isinstance(line, ast.Assign) else [line.target]
        names = [t.id for t in targets if isinstance(t, ast.Name) and t.id in given]
        new = {name: _written(given[name]) for name in names if not _is(value, given[name])}
        if not new:
            continue
        if len(targets) == 1:
            (text,) = new.values()
            first, start, last, end = value.lineno, value.col_offset, value.end_lineno, value.end_col_offset
        else:  # one = two = 1: it is said behind that, for the other name keeps its value
            text = "".join(f"; {name} = {text}" for name, text in new.items())
            first = last = line.end_lineno or 0
            start = end = line.end_col_offset or 0
        assert last
        lines[first - 1 : last] = [lines[first - 1][:start] + text.encode() + lines[last - 1][end:]]
    return b"".join(lines).decode()


def check(notebook: Path, given: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
    """The parameters `given`, every value in its declared type.

        check(Path("notebooks/04_lred.ipynb"), {"n_seeds": "7"})  # {"n_seeds": 7}

    given: text to read the values from, or values.
    where: the file that they come from, whose values are taken as they stand: there, the text "7" is no number.
    Raises BookError, naming notebook, parameter and what is allowed, for an unknown name or a wrong type.
    """
    if not given:
        return {}
    known, read_as = declared(notebook), of_type if where else typed
    blame = f"{where}: {notebook.name}" if where else notebook.name
    allowed = "\n  ".join(map(str, known.values())) or "none: it has no parameters"
    out = {}
    for name, value in given.items():
        if name not in known:
            raise BookError(f"{blame} has no parameter {shown(name)}; allowed are\n  {allowed}")
        try:
            out[name] = read_as(value, _type_named(known[name].type))
        except ValueError:
            wanted = f"must be {known[name].type}, got {shown(value)}; allowed are\n  {allowed}"
            raise BookError(f"{blame}: parameter '{name}' {wanted}") from None
    return out


def _is(default: ast.expr, value: object) -> bool:
    """Is a default this very value, type and all?"""
    try:
        return repr(ast.literal_eval(default)) == repr(value)
    except (ValueError, TypeError):
        return False


def _written(value: object) -> str:
    """A value as Python; a number that is not finite has no literal."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if type(value) is list:
        return f"[{', '.join(map(_written, value))}]"
    if type(value) is dict:
        return "{" + ", ".join(f"{k!r}: {_written(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _comments(source: str) -> dict[int, str]:
    """The comments of a source, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def _type_of(node: ast.expr) -> str:
    """The name of the type of a literal, for a parameter without annotation: "list[float]" for [0.1, 1]."""
    try:
        return _kind(ast.literal_eval(node))
    except (ValueError, TypeError):
        return "Any"


def _kind(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, (list, tuple)):
        each = _common(map(_kind, value))
        return f"{name}[{each}{', ...' if name == 'tuple' else ''}]" if each else name
    return name if name in TYPES else "Any"


def _common(kinds: Iterable[str]) -> str:
    """What the kinds of a list's elements have in common; empty: nothing."""
    found = set(kinds)
    if found == {"int", "float"}:
        return "float"
    return found.pop() if len(found) == 1 else ""


def _type_named(text: str) -> Any:
    """The type that an annotation names, such as list[int] or float | None; Any where it is none of TYPES."""

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and node.value in (None, ...):
            return node.value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return build(node.left) | build(node.right)
        if isinstance(node, ast.Subscript):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            kinds = tuple(map(build, inner))
            return build(node.value)[kinds if len(kinds) > 1 else kinds[0]]
        return TYPES[node.id if isinstance(node, ast.Name) else ""]

    try:
        return build(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, TypeError, IndexError):
        return Any
