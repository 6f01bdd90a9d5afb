"""One chapter run with papermill, in a kernel of its own: `runner` starts this module as a process.

The process dies with its parent, writes to a partial file, and renames it when every cell has passed. Nobody
imports this module: it would then be loaded twice, by its name and as the program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(f".{os.getpid()}.partial.ipynb")
    failed = out.with_suffix(".failed.ipynb")
    # left by a run that was killed
    for left in out.parent.glob(f"{out.stem}.*.partial.ipynb"):
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
    """End when stdin ends: the parent holds it open, and is gone then, even by kill -9."""
    sys.stdin.read()
    threading.Timer(3, os._exit, [1]).start()  # the kernel, too, ends without its parent
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(_child())
