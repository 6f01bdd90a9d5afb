"""The book, built once in the smoke profile for all the tests that look at it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Built:
    """The smoke book: its pages, and its executed chapters by name."""

    html: Path
    executed: dict[str, Path]
    offline: bool
    failures: tuple[str, ...]


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's marker is known without it too, as under `-p no:xdist`."""
    config.addinivalue_line("markers", "xdist_group: tests that one worker runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker builds the book, first of all; the others begin with what trains long, and end with pages."""
    turn = {}
    for item in items:
        turn[item] = 0 if item.get_closest_marker("data") else 1
        if "book" in getattr(item, "fixturenames", ()):
            pages = item.path.name == "test_pages.py"
            turn[item] = 2 if pages else -1
            item.add_marker("book")
            item.add_marker(pytest.mark.xdist_group("pages" if pages else "book"))
    items.sort(key=turn.__getitem__)


@pytest.fixture(scope="session")
def book() -> Built:
    """Build the smoke book in _build/test, reusing fresh chapters; offline where npm is to be had."""
    from filelock import FileLock

    from lib.book import BookError, jupyter_book, make, plan

    build = ROOT / "_build"
    build.mkdir(exist_ok=True)
    with FileLock(build / "test.lock"):
        try:
            offline = bool(jupyter_book.vendor(ROOT))
        except BookError:
            offline = False
        summary = make(ROOT, profile="smoke", offline=offline, pages_in=build / "test")
        chapters = {c.name: c.executed for c in plan(ROOT, "smoke") if c.fresh}
    return Built(
        html=summary.index.parent,
        executed=chapters,
        offline=offline,
        failures=tuple(map(str, summary.failures)),
    )
