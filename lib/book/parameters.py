"""The parameters that a chapter declares, and whether what it is given fits them.

Papermill itself only warns about an unknown parameter and never looks at a type, so both are checked here
before anything runs.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import typed
from .notebooks import BookError, read

# What the annotation of a parameter may be made of.
TYPES: Mapping[str, Any] = {kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A line of a chapter's `parameters` cell: `n_seeds: int = 3  # classifiers per group`."""

    name: str
    type: str  # int, float, bool, str, list, dict, list[int] ...; "Any" where nothing tells
    default: str  # as written
    help: str

    def __str__(self) -> str:
        return f"{self.name}: {self.type} = {self.default}"


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that `notebook` declares, by name, in order."""
    import papermill

    read(notebook)
    found = {}
    for name, entry in papermill.inspect_notebook(str(notebook)).items():
        kind = entry["inferred_type_name"].replace(" ", "")
        if kind == "None":
            kind = _type_of(entry["default"])
        found[name] = Parameter(name=name, type=kind, default=entry["default"], help=entry["help"])
    return found


def check(notebook: Path, given: Mapping[str, object], *, where: str = "") -> dict[str, Any]:
    """The parameters `given`, every value in its declared type.

        check(Path("notebooks/04_lred.ipynb"), {"n_seeds": "7"})  # {"n_seeds": 7}

    given: values, or text to read them from.
    where: what to blame in the message, such as the profile's file; empty: the notebook alone.
    Raises BookError, naming notebook, parameter and what is allowed, for an unknown name or a wrong type.
    """
    if not given:
        return {}
    known = declared(notebook)
    blame = f"{where}: {notebook.name}" if where else notebook.name
    allowed = "\n  ".join(map(str, known.values())) or "none: it has no parameters"
    out = {}
    for name, value in given.items():
        if name not in known:
            raise BookError(f"{blame} has no parameter '{name}'; allowed are\n  {allowed}")
        try:
            out[name] = typed(value, _type_named(known[name].type))
        except ValueError:
            wanted = f"must be {known[name].type}, got {value!r}; allowed are\n  {allowed}"
            raise BookError(f"{blame}: parameter '{name}' {wanted}") from None
    return out


def _type_of(source: str) -> str:
    """The name of the type of a literal, for a parameter without annotation."""
    try:
        value = ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return "Any"
    return "Any" if value is None else type(value).__name__


def _type_named(text: str) -> Any:
    """The type that an annotation names, such as list[int]; Any where it is none of TYPES."""

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Subscript):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return build(node.value)[tuple(map(build, inner))]
        return TYPES[node.id if isinstance(node, ast.Name) else ""]

    try:
        return build(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, TypeError):
        return Any
