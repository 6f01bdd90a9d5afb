"""The progress of a build: a bar per chapter on a terminal, elsewhere a line when one is done."""

from __future__ import annotations

from typing import Any

from .runner import Progress


class Bars(Progress):
    """Draws on stderr while it is used as a context manager."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        columns: list[str | progress.ProgressColumn] = ["{task.description:<22}", progress.BarColumn(24)]
        columns += [progress.MofNCompleteColumn(), "cells", progress.TimeElapsedColumn()]
        self.console = Console(stderr=True, highlight=False)
        silent = not self.console.is_terminal
        self._bars = progress.Progress(*columns, console=self.console, disable=silent)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def wait(self) -> None:
        self.console.print("another build of this book is under way: waiting for its end")

    def start(self, name: str) -> None:
        self._tasks[name] = self._bars.add_task(name, total=None)

    def step(self, name: str, done: int, of: int) -> None:
        self._bars.update(self._tasks[name], completed=done, total=of)

    def finish(self, name: str, seconds: float | None) -> None:
        self._bars.stop_task(self._tasks[name])
        if seconds is None:
            self._bars.update(self._tasks[name], description=f"[red]{name} failed")
        if not self.console.is_terminal:
            self.console.print(f"{name}: " + ("failed" if seconds is None else f"{seconds:.1f} s"))

    def left(self, chapters: int, seconds: float) -> None:
        if chapters:
            long = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
            self.console.print(f"{chapters} more chapters, about {long}")
