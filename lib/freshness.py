"""What a chapter's outputs depend on, as one key: while the key is unchanged, the chapter is fresh.

In the key: the chapter's code and parameters, the keys of the chapters that it needs, the rooms of `lib` that
it reaches, the versions of the libraries, the tables under data/ that it names, and the image sets that its
parameters name. Not in it: prose, captions, and everything that the chapter cannot see.
"""

import ast
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lib import chapters

LIBRARY = Path(__file__).parent
LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "seaborn",
    "pandas",
    "safetensors",
    "ipywidgets",
    "anywidget",
    "myst-nb",
    "nbclient",
    "ipykernel",
    "papermill",
)
TABLES = re.compile(r"data/(?:papers|results|grids)/[\w.-]+")


class Keys:
    """The keys of the chapters of one book, as things are now."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data_root = Path(os.environ.get("REDBOOK_DATA") or root / "data" / "cache")
        self.versions = {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}
        self.image_set = cache(self._image_set)

    def of(self, source: Path, given: Mapping[str, Any], upstream: Iterable[str]) -> str:
        """The key of the chapter in the file `source`, run with the parameters `given`."""
        cells = [cell for cell in chapters.read(source).cells if cell.cell_type == "code"]
        values = list(_strings(_values(source, given)))
        named = {
            path for text in [*values, *(cell.source for cell in cells)] for path in TABLES.findall(text)
        }
        return _digest(
            [
                [[cell.source, cell.metadata.get("tags", [])] for cell in cells],
                given,
                list(upstream),
                {room: _room(LIBRARY, room) for room in sorted(reached([cell.source for cell in cells]))},
                self.versions,
                {path: _content(self.root / path) for path in sorted(named)},
                {name: self.image_set(name) for name in sorted(set(values))},
            ]
        )

    def _image_set(self, name: str) -> str:
        """Names, sizes and times of the files of an image set; the same for whatever is no image set."""
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        folders = [self.data_root / name, Path(name)] if os.sep in name else []
        if plain and self.data_root.is_dir():
            entries = sorted(p for p in self.data_root.iterdir() if p.is_dir())
            folders += [p for p in entries if re.sub(r"[^a-z0-9]", "", p.name.lower()).startswith(plain)]
        stats = [
            [str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns]
            for folder in folders
            if folder.is_dir()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        ]
        return _digest(stats)


def imported(code: str, package: tuple[str, ...] = ()) -> Iterator[str]:
    """Rooms of `lib` (its modules and packages) that this code imports, wherever in it.

    package: where the code stands, such as ("lib", "attacks"), for relative imports. Imports under
    TYPE_CHECKING are left out.
    """

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lib."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = [*base, *(node.module.split(".") if node.module else [])]
            if full[:1] == ["lib"]:
                yield from [full[1]] if len(full) > 1 else (alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(code))


def reached(cells: Iterable[str]) -> set[str]:
    """Rooms of `lib` that these cells import, and all that those rooms import in turn."""
    lines = "\n".join(cells).splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    todo, seen = set(imported(code)), set[str]()
    while todo:
        room = todo.pop()
        seen.add(room)
        for path in _files(LIBRARY, room):
            if path.suffix == ".py":
                package = ("lib", *path.relative_to(LIBRARY).parts[:-1])
                todo |= set(imported(path.read_text(), package)) - seen
    return seen


def _files(library: Path, room: str) -> list[Path]:
    """A room's own files: a package's, or a module with what is beside it under its name (report.html)."""
    inside = (p for p in (library / room).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sorted([*inside, *library.glob(f"{room}.*")])


def _room(library: Path, room: str) -> str:
    return _digest([[str(p.relative_to(library)), _content(p)] for p in _files(library, room)])


def _values(source: Path, given: Mapping[str, Any]) -> Iterator[Any]:
    for name, parameter in chapters.parameters(source).items():
        try:
            yield given[name] if name in given else ast.literal_eval(parameter.default)
        except (ValueError, SyntaxError):
            continue


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _content(path: Path) -> str:
    """Hash of a file; empty for one that is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
