"""One chapter: the parameters it declares, running it with papermill, the numbers it glued.

Papermill itself only warns about an unknown parameter and never looks at a type, so both are checked here
before anything runs. Each chapter runs in a child process of its own (`python -m lib.chapters`), which dies
with its parent, writes to a partial file, and renames it when every cell has passed.
"""

import ast
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INJECTED = "injected-parameters"  # papermill's tag for the cell that it adds


class BookError(ValueError):
    """Bad input to the book: an unknown chapter, profile, parameter, or a value of the wrong type."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A line of a chapter's `parameters` cell: `n_seeds: int = 3  # classifiers per group`."""

    name: str
    type: str  # int, float, bool, str, list, dict, list[int] ...; "Any" where nothing tells
    default: str  # as written
    help: str

    def __str__(self) -> str:
        return f"{self.name}: {self.type} = {self.default}"


def read(notebook: Path) -> Any:
    """The notebook at `notebook` as nbformat 4; raises BookError if it is none."""
    import nbformat

    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise BookError(f"no notebook {notebook}") from None
    except Exception as error:
        raise BookError(f"{notebook} is not a notebook: {error}") from None


def parameters(notebook: Path) -> dict[str, Parameter]:
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
    """`given` with every value in its declared type; text is parsed.

    where: what to blame in the message, such as the profile's file; empty: the notebook alone.
    Raises BookError, naming notebook, parameter and what is allowed, for an unknown name or a wrong type.
    """
    if not given:
        return {}
    declared = parameters(notebook)
    blame = f"{where}: {notebook.name}" if where else notebook.name
    allowed = "\n  ".join(map(str, declared.values())) or "none: it has no parameters"
    out = {}
    for name, value in given.items():
        if name not in declared:
            raise BookError(f"{blame} has no parameter '{name}'; allowed are\n  {allowed}")
        try:
            out[name] = _convert(value, declared[name].type)
        except ValueError:
            wanted = f"must be {declared[name].type}, got {value!r}; allowed are\n  {allowed}"
            raise BookError(f"{blame}: parameter '{name}' {wanted}") from None
    return out


def _type_of(source: str) -> str:
    try:
        value = ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return "Any"
    return "Any" if value is None else type(value).__name__


def _convert(value: object, kind: str) -> object:
    """`value` as the annotation `kind` says; ValueError if it cannot be. Text is read as YAML where needed."""
    outer, _, inner = kind.partition("[")
    if outer in ("list", "tuple", "set", "dict"):
        return _convert_many(value, outer, inner.removesuffix("]"))
    if outer == "str":
        if not isinstance(value, str):
            raise ValueError
        return value
    if outer == "bool":
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if not isinstance(value, bool):
            raise ValueError
        return value
    if outer in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        if outer == "int" and isinstance(value, float):
            raise ValueError
        return int(value) if outer == "int" else float(value)
    return _yaml(value) if isinstance(value, str) else value


def _convert_many(value: object, outer: str, inner: str) -> object:
    if isinstance(value, str):
        text = value.strip()
        bare = outer != "dict" and not text.startswith(("[", "("))
        value = _yaml(f"[{text}]" if bare else text.replace("(", "[").replace(")", "]"))
    if outer == "dict":
        if not isinstance(value, dict):
            raise ValueError
        return value
    if not isinstance(value, (list, tuple)):
        raise ValueError
    kinds = [k for k in inner.split(",") if k not in ("", "...")]
    if (
        "[" in inner or len(kinds) != 1
    ):  # a nested or mixed annotation: the outer shape is all that is checked
        return list(value)
    return [_convert(item, kinds[0]) for item in value]


def _yaml(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError from None


def glued(notebook: Path) -> dict[str, Any]:
    """What an executed notebook glued (`myst_nb.glue`), by name.

    Plain Python values come back as such; other text as str; figures and HTML as their MIME bundle.
    """
    found: dict[str, Any] = {}
    for cell in read(notebook).cells:
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


def execute(
    notebook: Path,
    out: Path,
    given: Mapping[str, object],
    *,
    cwd: Path,
    stamp: Mapping[str, object],
    on_cell: Callable[[int, int], None] = lambda done, of: None,
) -> float:
    """Run `notebook` with the parameters `given` (checked before) into `out`; the seconds it took.

    `out` appears only when every cell has passed, with `stamp` in its metadata as `redbook`. A chapter that
    raises is kept as `*.failed.ipynb` beside it, and papermill's PapermillExecutionError comes through.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this interpreter's kernel, whatever else the user has
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(f".{os.getpid()}.partial.ipynb")
    failed = out.with_suffix(".failed.ipynb")
    for left in out.parent.glob(f"{out.stem}.*.partial.ipynb"):  # by a run that was killed
        left.unlink(missing_ok=True)
    total = sum(cell.cell_type == "code" for cell in read(notebook).cells) + bool(given)
    done = iter(range(1, total + 1))
    started = time.monotonic()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=dict(given),
            kernel_name="python3",
            cwd=str(cwd),
            progress_bar=False,
            start_timeout=300,
            on_cell_executed=lambda **_: on_cell(next(done, total), total),
        )
        seconds = time.monotonic() - started
        _finish(partial, {**stamp, "seconds": round(seconds, 1), "parameters": dict(given)})
        os.replace(partial, out)
        failed.unlink(missing_ok=True)
        return seconds
    except PapermillExecutionError:
        os.replace(partial, failed)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _finish(notebook: Path, stamp: Mapping[str, object]) -> None:
    """Hide the injected parameters, and drop papermill's timings: they would make every build differ."""
    import nbformat

    book = read(notebook)
    book.metadata.pop("papermill", None)
    book.metadata["redbook"] = {**book.metadata.get("redbook", {}), **stamp}
    for cell in book.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if INJECTED in cell.metadata.get("tags", []):
            cell.metadata["tags"] = [INJECTED, "remove-cell"]
    nbformat.write(book, notebook)


def merge(source: Path, executed: Path) -> Any:
    """The chapter as it is now, with the outputs of its run: prose can change without running it again.

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


def _child() -> int:
    """Run the chapter that a line of JSON on stdin describes; tell of it in lines of JSON on stdout."""
    from papermill.exceptions import PapermillExecutionError

    job = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def say(**message: object) -> None:
        print(json.dumps(message), file=sys.__stdout__, flush=True)

    try:
        seconds = execute(
            Path(job["notebook"]),
            Path(job["out"]),
            job["parameters"],
            cwd=Path(job["cwd"]),
            stamp=job["stamp"],
            on_cell=lambda done, of: say(done=done, of=of),
        )
    except PapermillExecutionError as error:
        say(cell=error.exec_count, error=f"{error.ename}: {error.evalue}", source=error.source)
        return 1
    except KeyboardInterrupt:
        return 130
    say(seconds=seconds)
    return 0


def _die_with_parent() -> None:
    """The parent holds our stdin open; the end of it means that the parent is gone, even by kill -9."""
    sys.stdin.read()
    threading.Timer(3, os._exit, [1]).start()  # the kernel, too, ends without its parent
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(_child())
