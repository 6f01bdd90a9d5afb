"""One print of code: which files of this package some code reaches, and a digest of what they say.

Files are followed one by one, through every import, wherever it stands. What a package re-exports is followed by
the name that is used, so a chapter that says `detectors.LRED` reaches the file of L-RED and not that of B3D. The
digest is of the syntax: comments, docstrings, layout, and the names of modules are not in it. Also here: where a
number comes from (`provenance`). Nothing but the standard library is imported, so a warm build stays fast.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import platform
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

LIBRARY = Path(__file__).resolve().parent
Use = tuple[Path, str | None]  # a file, and the name in it that is used; None: all of it


def reached(code: str, at: Path | None = None) -> set[Path]:
    """Files of the package that this code reaches, with what lies beside them under their names.

    code: of a notebook (its cells joined; lines of IPython's own, with % or !, are left out) or of a module.
    at: the module's file inside the package, for relative imports.
    Imports under TYPE_CHECKING are left out.
    """
    return _closure(set(_uses(plain_python(code), at)))


def plain_python(code: str) -> str:
    """Code of a notebook without the lines that are IPython's own, with % or !, where it has any."""
    try:
        ast.parse(code)
        return code
    except SyntaxError:
        lines = code.splitlines()
        return "\n".join(line for line in lines if not re.match(r"\s*(%{1,2}[a-z]|!(?!=))", line))


def closure(files: Iterable[Path]) -> set[Path]:
    """These files of the package and all that they reach."""
    return _closure({(Path(file).resolve(), None) for file in files})


def imported(file: Path) -> set[Path]:
    """The files of the package that this file of it imports itself."""
    return {where for where, _ in _uses(file.read_text(), file.resolve())}


def files_of(kinds: Iterable[type]) -> set[Path]:
    """The files of these classes and of their base classes, as far as they are of this package."""
    found = {Path(inspect.getsourcefile(c) or "") for kind in kinds for c in kind.__mro__ if c is not object}
    return {file.resolve() for file in found if file.resolve().is_relative_to(LIBRARY)}


def of_files(files: Iterable[Path]) -> str:
    """Digest of what these files say, in whatever order and under whatever names."""
    return digest(sorted(_print(file, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=256)
def of_closure(files: frozenset[Path]) -> str:
    """Digest of what these files of the package and all that they reach said when this process first asked."""
    return of_files(closure(files))


def of_functions(*functions: Callable[..., Any]) -> str:
    """Digest of what these functions say, and the functions of their modules that they call."""
    todo, seen = list(functions), dict[Callable[..., Any], str]()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen[function] = of_source(textwrap.dedent(inspect.getsource(function)))
        around = function.__globals__
        beside = [around[name] for name in _names(function.__code__) if name in around]
        todo += [f for f in beside if inspect.isfunction(f) and f.__module__ == function.__module__]
    return digest(sorted(seen.values()))


def _names(code: CodeType) -> set[str]:
    """The global names that a function, and what is written inside it, asks for."""
    inside = [_names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inside)


def digest(value: object) -> str:
    """SHA-256 of JSON-ready values; others go by their text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _closure(todo: set[Use]) -> set[Path]:
    seen, modules = set[Use](), set[Path]()
    while todo:
        file, name = use = todo.pop()
        if use in seen:
            continue
        seen.add(use)
        # a package that only passes a name on is not reached itself
        further = _exported(file, name) if name and file.name == "__init__.py" else None
        if further is None:
            modules.add(file)
            further = set(_uses(file.read_text(), file))
        todo |= further
    return {beside for file in modules for beside in _with_namesakes(file)}


def _exported(init: Path, name: str) -> set[Use] | None:
    """Where a package's `name` comes from; None where its __init__ makes it itself."""
    if inside := _module(init.parent / name):
        return {(inside, None)}
    return _passed_on(init, name) or None


@lru_cache(maxsize=1024)
def _brought(code: str, at: Path) -> dict[str, tuple[Path, str]]:
    """What a module brings in by `from … import`: its name there -> where from, and its name there."""
    found = [node for node in _imports(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    places = [(alias, base) for node in found if (base := _base(node, at)) for alias in node.names]
    return {alias.asname or alias.name: (base, alias.name) for alias, base in places}


@lru_cache(maxsize=1024)
def _uses(code: str, at: Path | None) -> frozenset[Use]:
    """What this code imports of the package: files, and of packages the names that are used."""
    tree, found = ast.parse(code), set[Use]()
    for node in _imports(tree):
        if isinstance(node, ast.Import):
            parts = [
                alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == LIBRARY.name
            ]
            named = [p[1:] for p in parts if p[1:]]
            if [LIBRARY.name] in parts:  # import lib; lib.zoo.get(...)
                named += [[name] for name in _attributes(tree, LIBRARY.name) or ()]
            found |= {(file, None) for p in named if (file := _module(LIBRARY.joinpath(*p)))}
        elif base := _base(node, at):
            for alias in node.names:
                inside = _module(base / alias.name) if base.is_dir() else None
                names = _attributes(tree, alias.asname or alias.name)
                if inside and inside.name == "__init__.py":
                    found |= {(inside, name) for name in names} if names else {(inside, None)}
                elif inside:
                    found |= {(inside, None)}.union(*(_passed_on(inside, name) for name in names or ()))
                else:
                    found |= _named(base, alias.name)
    return frozenset(found)


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        for other in tree.orelse:
            yield from _imports(other)
        return
    if isinstance(tree, (ast.Import, ast.ImportFrom)):
        yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _imports(child)


def _base(node: ast.ImportFrom, at: Path | None) -> Path | None:
    """The folder or the file (less its suffix) that `from … import` names; None outside the package."""
    parts = node.module.split(".") if node.module else []
    if node.level:
        if at is None:
            return None
        return at.parents[node.level - 1].joinpath(*parts)
    return LIBRARY.joinpath(*parts[1:]) if parts[:1] == [LIBRARY.name] else None


def _named(base: Path, name: str) -> set[Use]:
    """`name` of a package's folder, or of a module: then the module, whole."""
    if base.is_dir():
        inside = _module(base / name)
        return {(inside, None)} if inside else {(base / "__init__.py", None if name == "*" else name)}
    file = _module(base)
    return {(file, None)} | _passed_on(file, name) if file else set()


def _passed_on(file: Path, name: str) -> set[Use]:
    """Where a name comes from that a module has only imported."""
    brought = _brought(file.read_text(), file)
    return _named(*brought[name]) if name in brought else set()


def _module(place: Path) -> Path | None:
    """The file of the module at `place`, which has no suffix."""
    candidates = (place.with_name(place.name + ".py"), place / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _attributes(tree: ast.AST, module: str) -> set[str] | None:
    """The names that are asked of a module as `module.name`; None where it is also used in another way."""
    asked = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    names = {n.attr for n in asked if n.value.id == module}  # type: ignore[attr-defined]
    bare = sum(isinstance(n, ast.Name) and n.id == module for n in ast.walk(tree))
    return names if bare == sum(n.value.id == module for n in asked) else None  # type: ignore[attr-defined]


def _with_namesakes(file: Path) -> Iterator[Path]:
    """The file, what lies beside it under its name (report.html), and what lies there under no module's name."""
    yield file
    for other in file.parent.iterdir():
        ours = other.stem == file.stem or not other.with_suffix(".py").is_file()
        if other.suffix in (".js", ".css", ".html") and ours:
            yield other


@lru_cache(maxsize=1024)
def _print(file: Path, changed: int) -> str:
    if file.suffix != ".py":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return of_source(file.read_text())


@lru_cache(maxsize=1024)
def of_source(code: str) -> str:
    """Digest of Python code as syntax, without comments, docstrings, layout, and the names of modules."""
    return digest(_plain(ast.parse(code)))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_docstring(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    left_out = ("module", "level") if isinstance(node, ast.ImportFrom) and node.level else ()
    kept = [(name, value) for name, value in ast.iter_fields(node) if name not in left_out]
    return [type(node).__name__, {name: _plain(value) for name, value in kept if value not in (None, [])}]


def _is_docstring(node: object) -> bool:
    """A text that stands alone as a statement does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def provenance(device: str) -> dict[str, Any]:
    """Commit, versions, device and time, for every row of a table."""
    import torch

    name = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else platform.machine()
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
        "when": datetime.now(UTC).isoformat("T", "seconds"),
    }


def commit() -> str:
    """The commit of this package, "-dirty" when its own files differ: a table being written does not count."""
    git = ["git", "-C", str(LIBRARY)]
    try:
        said = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip() + "-dirty" * bool(changed.returncode) if said.returncode == 0 else "unknown"
