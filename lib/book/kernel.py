"""One chapter run with papermill, in a kernel of its own: `runner` starts this module as a process.

The process dies with its parent, and its notebook is there when every cell has passed. Nobody imports this module:
it would then be loaded twice, by its name and as the program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import files
from .child import end_with_parent
from .notebooks import INJECTED, read


def execute(
    notebook: Path,
    out: Path,
    given: Mapping[str, object],
    *,
    cwd: Path,
    stamp: Mapping[str, object],
    on_cell: Callable[[int, int], None] = lambda done, of: None,
) -> float:
    """Run a notebook; the seconds it took.

    out: where the run goes. It appears only when every cell has passed; a chapter that raises is kept as
        `*.failed.ipynb` beside it, and papermill's PapermillExecutionError comes through.
    given: parameters, checked before.
    cwd: where its code runs.
    stamp: goes into the metadata of `out` as `redbook`.
    on_cell: is told how many of how many code cells have run.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this interpreter's kernel, whatever else the user has
    failed = out.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    total = sum(cell.cell_type == "code" for cell in read(notebook).cells) + bool(given)
    done = iter(range(1, total + 1))
    started = time.monotonic()
    with files.written(out) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The specified file .* does not end in")  # the partial one's name
        try:
            papermill.execute_notebook(
                _literal(notebook),
                _literal(partial),
                parameters=dict(given),
                kernel_name="python3",
                language="python",  # a notebook need not say so
                cwd=str(cwd),
                progress_bar=False,
                start_timeout=300,
                on_cell_executed=lambda **_: on_cell(next(done, total), total),
            )
        except PapermillExecutionError:
            os.replace(partial, failed)
            raise
        seconds = time.monotonic() - started
        _finish(partial, {**stamp, "seconds": round(seconds, 1), "parameters": dict(given)})
    return seconds


def _literal(path: Path) -> str:
    """A path as papermill takes one: it fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _finish(notebook: Path, stamp: Mapping[str, object]) -> None:
    """Hide the injected parameters; drop papermill's timings, which make every build differ."""
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


def _child() -> int:
    """Run the chapter that a line of JSON on stdin describes; tell of it in such lines."""
    from papermill.exceptions import PapermillExecutionError

    job = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_parent(grace=3)  # the kernel, too, is to be told

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


if __name__ == "__main__":
    sys.exit(_child())
