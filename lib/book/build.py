"""The build: check parameters, run the chapters that are not fresh, stage them, make the pages.

    book/ + _config.yml + _toc.yml ─────────────────────────┐
    notebooks/ ── papermill ── _build/executed/<profile>/ ── _build/stage/ ── jupyter-book ── _build/html/

A chapter is fresh while its key is unchanged (`freshness`). Prose and captions are not in the key: they are
merged with the kept outputs when staging. `try_seeds` runs the chapters with other seeds, in a folder of its own.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..settings import shown
from ..yaml_files import read_mapping
from . import jupyter_book, notebooks, parameters
from .freshness import Keys
from .notebooks import BookError
from .runner import Chapter, Failure, Progress, Runner, cores


def find_root(start: Path | None = None) -> Path:
    """The folder of the book: the nearest one with a _toc.yml, upward from `start`, else from here.

    start: default the working directory.
    """
    below = (start or Path.cwd()).resolve()
    for folder in (below, *below.parents, *Path(__file__).resolve().parents):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise BookError(f"no book here: neither {below} nor a folder above it has _toc.yml and notebooks/")


def contents(root: Path) -> list[str]:
    """Every page of the table of contents, in reading order, as written there (no suffix)."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from walk(item)
        elif isinstance(node, dict):
            for field, item in node.items():
                if field in ("root", "file"):
                    yield str(item).removesuffix(".ipynb").removesuffix(".md")
                else:
                    yield from walk(item)

    return list(walk(read_mapping(root / "_toc.yml", error=BookError)))


def load_profile(root: Path, profile: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The file of a profile, by name or by path, and its parameters per chapter (not yet checked)."""
    folder = root / "notebooks" / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yml"))
    if not (is_path := profile.endswith((".yml", ".yaml"))) and profile not in known:
        names = ", ".join(known) or "none"
        raise BookError(f"no profile {shown(profile)}: allowed are {names}, or a path to a .yml file")
    path = Path(profile) if is_path else folder / f"{profile}.yml"
    table = read_mapping(path, error=BookError)
    for chapter, given in table.items():
        if not isinstance(given, dict):
            raise BookError(
                f"{path} must map chapters to parameters, as in `04_lred: {{n_seeds: 3}}`; "
                f"{shown(chapter)} has {shown(given)}"
            )
    return path, table


def plan(
    root: Path, profile: str = "smoke", *, only: Iterable[str] = (), seed: int | None = None
) -> list[Chapter]:
    """The chapters of the table of contents, in reading order, their parameters checked.

    profile: which parameters they get: a name in notebooks/profiles, or a path.
    only: names to keep; a prefix such as "04" will do.
    seed: one to try, in the chapters that declare `seed`; runs then lie in _build/claims, apart from the build's.
    Raises BookError before anything runs.
    """
    file, table = load_profile(root, profile)
    names = [Path(page).name for page in contents(root) if Path(page).parts[:1] == ("notebooks",)]
    sources = {name: root / "notebooks" / f"{name}.ipynb" for name in names}
    for name, source in sources.items():
        if not source.is_file():
            raise BookError(f"_toc.yml names notebooks/{name}, which does not exist")
    written = {path.stem for path in (root / "notebooks").glob("*.ipynb")}
    for name in table:
        if name not in written:
            known = ", ".join(names)
            raise BookError(
                f"{file.name} names chapter {shown(name)}, which does not exist; chapters are {known}"
            )
    keys = Keys(root)
    planned = []
    for name, source in sources.items():
        given = parameters.check(source, table.get(name, {}), where=file.name)
        tried = seed if "seed" in parameters.declared(source) else None
        if tried is not None:
            given |= parameters.check(source, {"seed": tried}, where=f"seed {tried}")
        folder = root / "_build" / "executed" / file.stem
        if seed is not None:
            apart = "any-seed" if tried is None else f"seed-{tried}"
            folder = root / "_build" / "claims" / file.stem / apart
        executed, key = folder / f"{name}.ipynb", keys.of(source, given)
        planned.append(Chapter(name=name, source=source, given=given, key=key, executed=executed, seed=tried))
    return _restrict(planned, list(only))


def _restrict(planned: Sequence[Chapter], only: Sequence[str]) -> list[Chapter]:
    """The chapters whose names begin with one of `only`; all of them where that is empty."""
    prefixes = [Path(prefix).name.removesuffix(".ipynb") for prefix in only]
    for given, prefix in zip(only, prefixes):
        if not prefix or not any(chapter.name.startswith(prefix) for chapter in planned):
            known = ", ".join(sorted(chapter.name for chapter in planned))
            raise BookError(f"no chapter {shown(given)}; chapters are {known}")
    return [chapter for chapter in planned if not prefixes or chapter.name.startswith(tuple(prefixes))]


def run_chapter(
    root: Path, source: Path, given: Mapping[str, Any], out: Path, *, progress: Progress | None = None
) -> Failure | None:
    """Run one notebook into `out`; why it failed, if it did.

    root: the folder of the book, where the notebook's code runs.
    given: parameters that `parameters.check` has let through.
    """
    chapter = Chapter(name=source.stem, source=source, given=given, key="", executed=out)
    with Runner(root, jobs=1, progress=progress or Progress()) as runner:
        return next(iter(runner.run([chapter])), None)


@dataclass(frozen=True, kw_only=True)
class Refuted:
    """A claim of a chapter that does not hold."""

    chapter: str
    name: str
    basis: str  # as of `notebooks.Claim`

    def __str__(self) -> str:
        where = {"run": "in this run", "rows": "of its rows"}[self.basis]
        return f"{self.chapter}: claim {self.name} does not hold {where}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a build did."""

    index: Path
    ran: tuple[str, ...]
    reused: tuple[str, ...]
    failures: tuple[Failure, ...]
    refuted: tuple[Refuted, ...]  # of all chapters that have run, now or before
    pages_built: bool  # False: nothing had changed since the last time
    seconds: float


def make(
    root: Path,
    *,
    profile: str = "smoke",
    jobs: int | None = None,
    only: Iterable[str] = (),
    force: bool = False,
    pages_in: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Bring the book under `profile` up to date; one build of a book runs at a time, another waits for it.

    jobs: chapters at once; default: one per core.
    only: run just these chapters, and make no pages.
    force: run them even if they are fresh.
    pages_in: where _build/html goes; default: `root`.
    Raises BookError for bad input, before anything runs, and for pages that Jupyter Book refuses.
    """
    started = time.monotonic()
    only = list(only)
    progress = progress or Progress()
    todo = plan(root, profile, only=only)
    with files.alone(root / "_build" / "lock", waiting=progress.wait) as waited:
        if waited:
            todo = plan(root, profile, only=only)
        stale = [chapter for chapter in todo if force or not chapter.fresh]
        with Runner(root, jobs=jobs or cores(), progress=progress) as runner:
            failures = runner.run(stale)
        index, built = jupyter_book.index(pages_in or root), False
        if not failures and not only:
            built = jupyter_book.render(root, todo, output=pages_in or root)
    bad = {failure.chapter for failure in failures}
    refuted = [
        Refuted(chapter=chapter.name, name=claim.name, basis=claim.basis)
        for chapter in todo
        if chapter.name not in bad
        for claim in notebooks.claims(chapter.executed).values()
        if not claim.holds
    ]
    return Summary(
        index=index,
        ran=tuple(c.name for c in stale if c.name not in bad),
        reused=tuple(c.name for c in todo if c not in stale),
        failures=tuple(failures),
        refuted=tuple(refuted),
        pages_built=built,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, kw_only=True)
class Tried:
    """How often a claim held, over the seeds of its chapter."""

    chapter: str
    name: str
    basis: str  # as of `notebooks.Claim`
    held: int
    runs: int

    @property
    def shaky(self) -> bool:
        """Did it hold in fewer than four of five?"""
        return 5 * self.held < 4 * self.runs


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What chapters claim with one seed and another."""

    tried: tuple[Tried, ...]  # in reading order; of the runs that came through
    failures: tuple[Failure, ...]
    ran: int
    reused: int
    seconds: float


def try_seeds(
    root: Path,
    seeds: Sequence[int],
    *,
    profile: str = "smoke",
    only: Iterable[str] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Trial:
    """Run the chapters with each of `seeds`, those that declare none once, and count their claims.

    A chapter that is fresh with a seed is not run again; the build's own runs are left alone.
    Raises BookError for bad input, before anything runs.
    """
    started, only, progress = time.monotonic(), list(only), progress or Progress()

    def planned() -> list[Chapter]:
        every = (chapter for seed in seeds for chapter in plan(root, profile, only=only, seed=seed))
        return list({chapter.executed: chapter for chapter in every}.values())

    todo = planned()
    with files.alone(root / "_build" / "claims" / "lock", waiting=progress.wait) as waited:
        if waited:
            todo = planned()
        stale = [chapter for chapter in todo if not chapter.fresh]
        with Runner(root, jobs=jobs or cores(), progress=progress) as runner:
            failures = runner.run(stale)
    bad = {failure.chapter for failure in failures}
    found: defaultdict[tuple[str, str, str], list[bool]] = defaultdict(list)
    names = [chapter.name for chapter in todo]
    for chapter in sorted(todo, key=lambda chapter: names.index(chapter.name)):
        if chapter.label not in bad:
            for claim in notebooks.claims(chapter.executed).values():
                found[chapter.name, claim.name, claim.basis].append(claim.holds)
    return Trial(
        tried=tuple(
            Tried(chapter=chapter, name=name, basis=basis, held=sum(holds), runs=len(holds))
            for (chapter, name, basis), holds in found.items()
        ),
        failures=tuple(failures),
        ran=len(stale) - len(bad),
        reused=len(todo) - len(stale),
        seconds=time.monotonic() - started,
    )
