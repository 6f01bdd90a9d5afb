"""For all tests: the book, built once in the smoke profile; the order of the tests; and nothing is drawn unseeded."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import rich.style  # noqa: F401  it draws from Python's generator when it is imported, which would be in some test

ROOT = Path(__file__).resolve().parents[1]
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")


@dataclass(frozen=True)
class Built:
    """The smoke book: its pages, and its executed chapters by name."""

    html: Path
    executed: dict[str, Path]
    failures: tuple[str, ...]
    refuted: tuple[str, ...]  # claims


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's marker is known without it too, as under `-p no:xdist`."""
    config.addinivalue_line("markers", "xdist_group: tests that one worker runs")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker begins with the book, the others with what is long; all of them end with its pages.

    Tests are handed out in this order (`make test` tells pytest-xdist not to begin with the largest groups): by the
    time of the pages the book is built, and every worker finds it so.
    """
    turn = {}
    for item in items:
        turn[item] = 1 if item.get_closest_marker("data") or item.get_closest_marker("long") else 2
        if "book" in getattr(item, "fixturenames", ()):
            item.add_marker("book")
            looks = item.path.parent.name == "browser"
            turn[item] = 3 if looks else 0
            page = getattr(item, "callspec", None) and item.callspec.params.get("page_name")
            group = (page or item.path.stem) if looks else "book"
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=turn.__getitem__)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """pytest-xdist writes an item's group behind its name; where it does not, every worker would wait for the book."""
    if session.config.getoption("loadgroup", False):
        lost = [
            i.nodeid for i in session.items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid
        ]
        if lost:
            raise pytest.UsageError(
                f"pytest-xdist does not heed groups under pytest {pytest.__version__}: {lost[0]}"
            )


@contextmanager
def _nothing_unseeded(item: pytest.Item) -> Iterator[None]:
    """PyTorch's shared generator is seeded, for each layer that is made draws from it; the others are left alone.

    Python's may be drawn from by tests in a browser, whose driver and servers name what they make at random.
    AssertionError where NumPy's or Python's shared generator is drawn from, or one is made without a seed.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    with pytest.MonkeyPatch.context() as patch:
        if torch:
            torch.manual_seed(0)
            patch.setattr(torch, "seed", _refused)
        if numpy:
            made = numpy.random.default_rng
            seeded = lambda seed=None: _refused() if seed is None else made(seed)  # noqa: E731
            patch.setattr(numpy.random, "default_rng", seeded)
        before = _states()
        yield
        drawn = [name for name, state in _states().items() if state != before.get(name, state)]
        if item.get_closest_marker("browser") and "random" in drawn:
            drawn.remove("random")
        assert not drawn, f"it draws from the shared generator of {', '.join(drawn)}: make one with a seed"


def _refused() -> NoReturn:
    raise AssertionError("a generator without a seed: give it one")


def _states() -> dict[str, object]:
    states: dict[str, object] = {"random": random.getstate()}
    if numpy := sys.modules.get("numpy"):
        _, keys, *rest = numpy.random.get_state()
        states["numpy"] = keys.tobytes(), rest
    return states


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _nothing_unseeded(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _nothing_unseeded(item):
        return (yield)


@pytest.fixture(scope="session")
def book() -> Built:
    """Build the smoke book in _build/test, reusing fresh chapters."""
    from filelock import FileLock

    from lib.book import make, plan

    build = ROOT / "_build"
    build.mkdir(exist_ok=True)
    with FileLock(build / "test.lock"):
        summary = make(ROOT, profile="smoke", pages_in=build / "test")
        chapters = {c.name: c.executed for c in plan(ROOT, "smoke") if c.fresh}
    return Built(
        html=summary.index.parent,
        executed=chapters,
        failures=tuple(map(str, summary.failures)),
        refuted=tuple(map(str, summary.refuted)),
    )
