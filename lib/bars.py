"""The progress of a build: a bar per chapter on a terminal, a line per finished chapter elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from lib.runner import Progress


class Bars(Progress):
    """Draws on stderr while used as a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bars = RichProgress(
            TextColumn("{task.description:<22}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

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
