"""Running chapters: several at once, each in a child process of its own, with their progress.

The children hold the kernels. They end when this process does, however it ends, for they watch their stdin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import notebooks
from .notebooks import BookError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
THREADS_AT_REST = {"OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads bring a busy machine to a halt
# The module that runs a chapter, by the name under which this package was imported, and where that is found.
KERNEL = f"{__package__}.kernel"
PLACE = Path(__file__).absolute().parents[KERNEL.count(".")]


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A chapter of the table of contents, ready to run."""

    name: str  # NN_slug
    source: Path
    given: Mapping[str, Any]  # parameters of the profile, checked
    key: str
    executed: Path
    seed: int | None = None  # one that is tried, in place of the profile's

    @property
    def label(self) -> str:
        """Its name, and the seed if one is tried: "04_lred, seed 200"."""
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"

    @property
    def fresh(self) -> bool:
        """Has it been run, all of it, with this very key?"""
        return self._stamp.get("key") == self.key

    @property
    def seconds(self) -> float | None:
        """How long its last run took, with whatever key; None where nobody knows."""
        found = self._stamp.get("seconds")
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def _stamp(self) -> Mapping[str, Any]:
        if not self.executed.exists():
            return {}
        try:
            return dict(notebooks.read(self.executed).metadata.get("redbook", {}))
        except BookError:
            return {}  # cut short by something that is not us: run it again


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a chapter did not come through."""

    chapter: str  # its label
    cell: int | None  # execution count of the cell that raised; None: the chapter never ran to one
    error: str
    kept: Path | None  # the notebook with the traceback

    def __str__(self) -> str:
        where = f"cell [{self.cell}]: " if self.cell is not None else ""
        return f"{self.chapter}: {where}{self.error}" + (f"\n  see {self.kept}" if self.kept else "")


class Progress:
    """What a build and its runner tell; this one is silent. Called from several threads."""

    def wait(self) -> None:
        """Another build of this book is under way, and this one waits for its end."""

    def start(self, name: str) -> None:
        """`name` has begun."""

    def step(self, name: str, done: int, of: int) -> None:
        """`done` of the `of` code cells of `name` have run."""

    def finish(self, name: str, seconds: float | None) -> None:
        """`name` is done, after `seconds`; None: it failed."""

    def left(self, chapters: int, seconds: float) -> None:
        """So many chapters have not ended yet, and should take so long."""


class Forecast:
    """How long the chapters that have not ended will take, from what they took the last time.

    One that never ran is taken to be like the others that are known.
    """

    def __init__(self, last: Mapping[str, float | None], *, jobs: int) -> None:
        self.last, self.jobs = dict(last), jobs
        self.took: dict[str, float] = {}
        self.begun: dict[str, float] = {}

    def left(self, now: float) -> tuple[int, float]:
        """Chapters, and seconds from `now` on (both of one clock)."""
        known = [s for s in {**self.last, **self.took}.values() if s is not None]
        typical = sum(known) / len(known) if known else 0.0
        open_ = {name: typical if s is None else s for name, s in self.last.items() if name not in self.took}
        rest = [max(0.0, s - (now - self.begun.get(name, now))) for name, s in open_.items()]
        return len(rest), max(sum(rest) / self.jobs, max(rest, default=0.0))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Runner:
    """Runs chapters, several at once, each in a child process; use as a context manager.

    On the way out, by whatever exception, children that still run are told to end, and waited for.
    """

    def __init__(self, root: Path, *, jobs: int, progress: Progress) -> None:
        self.root, self.jobs, self.progress = root, max(1, jobs), progress
        self._children: set[subprocess.Popen[str]] = set()
        self._forecast = Forecast({}, jobs=self.jobs)
        self._lock = threading.Lock()
        self._stopping = False

    def __enter__(self) -> Runner:
        self._pool = ThreadPoolExecutor(self.jobs)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopping = True
            for child in self._children:
                child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, todo: Iterable[Chapter]) -> list[Failure]:
        """Run `todo`, as many at once as there are jobs; the failures, in the order of the chapters.

        Those that took longest the last time begin first, so that none of them runs alone at the end.
        """
        todo = list(todo)
        last = {chapter.label: chapter.seconds for chapter in todo}
        self._forecast = Forecast(last, jobs=self.jobs)
        order = sorted(todo, key=lambda chapter: -(last[chapter.label] or 0.0))
        futures = {chapter.label: self._pool.submit(self.run_one, chapter) for chapter in order}
        return [failure for chapter in todo if (failure := futures[chapter.label].result())]

    def run_one(self, chapter: Chapter) -> Failure | None:
        """Run one chapter in a child process; blocks until it is done."""
        self.progress.start(chapter.label)
        begun = self._forecast.begun[chapter.label] = time.monotonic()
        with self._lock:
            if self._stopping:
                return Failure(chapter=chapter.label, cell=None, error="interrupted", kept=None)
            child = self._spawn()
            self._children.add(child)
        last: dict[str, Any] = {}
        try:
            assert child.stdin and child.stdout
            job = {
                "notebook": str(chapter.source),
                "out": str(chapter.executed),
                "parameters": dict(chapter.given),
                "cwd": str(self.root),
                "stamp": {"key": chapter.key},
            }
            child.stdin.write(json.dumps(job) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                message = _message(line)
                if "done" in message:
                    self.progress.step(chapter.label, message["done"], message["of"])
                elif message:
                    last = message
                    break
            child.wait()
        finally:
            for stream in (child.stdin, child.stdout):
                if stream:
                    stream.close()
            with self._lock:
                self._children.discard(child)
        ok = child.returncode == 0 and "seconds" in last
        if not self._stopping:
            self.progress.finish(chapter.label, last["seconds"] if ok else None)
            with self._lock:
                self._forecast.took[chapter.label] = time.monotonic() - begun
                self.progress.left(*self._forecast.left(time.monotonic()))
        return None if ok else self._failure(chapter, last, child.returncode)

    def _spawn(self) -> subprocess.Popen[str]:
        share = str(max(1, cores() // self.jobs))
        log = self.root / "_build" / "kernels.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # The kernel's own backend shows figures in the notebook; another would not.
        ours = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        with log.open("a") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", KERNEL],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=PLACE,
                env={**THREADS_AT_REST, **dict.fromkeys(THREADS, share), **ours},
                start_new_session=True,  # Ctrl-C reaches it through us only
            )

    def _failure(self, chapter: Chapter, last: Mapping[str, Any], code: int) -> Failure:
        kept = chapter.executed.with_suffix(".failed.ipynb")
        if "error" in last:
            return Failure(chapter=chapter.label, cell=last["cell"], error=last["error"], kept=kept)
        log = self.root / "_build" / "kernels.log"
        error = f"its process ended with {code}; see {log}"
        return Failure(chapter=chapter.label, cell=None, error=error, kept=None)


def _message(line: str) -> dict[str, Any]:
    """What a line of a child says; nothing where it is no message."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}  # something that a library printed past Python's stdout
    return found if isinstance(found, dict) else {}
