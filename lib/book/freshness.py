"""What a chapter's outputs depend on, as one key: while it is unchanged, the chapter is fresh.

In the key: the chapter's code and parameters, the files of this package that it reaches, the versions of the
libraries, the tables under data/ that it names, and the image sets that its parameters name. Not in it: prose,
captions, and everything that the chapter cannot see.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import fingerprint
from . import notebooks, parameters
from .notebooks import BookError

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

    def of(self, source: Path, given: Mapping[str, Any]) -> str:
        """The key of the chapter in the file `source`, run with the parameters `given`.

        Raises BookError where the chapter's code is no Python.
        """
        cells = [cell for cell in notebooks.read(source).cells if cell.cell_type == "code"]
        values = list(_strings(_values(source, given)))
        code = "\n".join(cell.source for cell in cells)
        tables = {path for text in [*values, code] for path in TABLES.findall(text)}
        depends = {
            "cells": [[cell.source, cell.metadata.get("tags", [])] for cell in cells],
            "parameters": given,
            "package": fingerprint.of_files(_reached(source, code)),
            "versions": self.versions,
            "tables": {path: self._table(path) for path in sorted(tables)},
            "images": {name: self.image_set(name) for name in sorted(set(values))},
        }
        return fingerprint.digest(depends)

    def _table(self, path: str) -> list[str]:
        """Hashes of a table and of the record of rows that were run again, which lies beside it."""
        file = self.root / path
        return [_content(file), _content(Path(f"{file}.verified.json"))]

    def _image_set(self, name: str) -> str:
        """Names, sizes and times of the files of an image set; the same for whatever is no image set."""
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        folders = [f for f in (self.data_root / name, Path(name)) if os.sep in name and _holds_images(f)]
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
        return fingerprint.digest(stats)


def _holds_images(folder: Path) -> bool:
    """Is it a folder of images, as `data.load` takes one? A text may be the path of anything, or of nothing."""
    try:
        return (folder / "train").is_dir() and (folder / "test").is_dir()
    except OSError:  # longer than a path can be
        return False


def _reached(source: Path, code: str) -> set[Path]:
    try:
        return fingerprint.reached(code)
    except SyntaxError as error:
        raise BookError(f"{source.name}: {error.msg}: {(error.text or '').strip()!r}") from None


def _values(source: Path, given: Mapping[str, Any]) -> Iterator[Any]:
    """Values of a chapter's parameters: those that are given, else their defaults."""
    for name, parameter in parameters.declared(source).items():
        try:
            yield given[name] if name in given else ast.literal_eval(parameter.default)
        except (ValueError, SyntaxError):
            continue


def _strings(values: Iterable[Any]) -> Iterator[str]:
    """The texts among some values, and in the lists among them."""
    for value in values:
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))


def _version(name: str) -> str:
    """The version of an installed library; empty for one that is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _content(path: Path) -> str:
    """Hash of a file; empty for one that is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
