"""The build: check parameters, run the chapters that are not fresh, stage them,
let Jupyter Book make the pages.

    book/ + _config.yml + _toc.yml ─────────────────────────┐
    notebooks/ ── papermill ── _build/executed/<profile>/ ── _build/stage/ ── jupyter-book ── _build/html/

A chapter is fresh while its key is unchanged (`freshness.py`). Prose and captions are not in the key: they
are merged with the kept outputs when staging. Nothing here imports torch, so a warm build takes seconds.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import chapters
from lib import pages as site
from lib.chapters import BookError
from lib.freshness import Keys
from lib.runner import Chapter, Failure, Progress, Runner, cores


def find_root(start: Path | None = None) -> Path:
    """The folder of the book: the nearest one upward from `start` (default: here) with a _toc.yml."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise BookError(f"no book here: neither {here} nor a folder above it has _toc.yml and notebooks/")


def read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BookError(f"{path} is not YAML: {error}") from None


def pages(root: Path) -> list[str]:
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

    return list(walk(read_yaml(root / "_toc.yml")))


def load_profile(root: Path, profile: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The file of a profile, by name or by path, and its parameters per chapter (not yet checked)."""
    folder = root / "notebooks" / "profiles"
    path = Path(profile) if profile.endswith((".yml", ".yaml")) else folder / f"{profile}.yml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yml"))) or "none"
        raise BookError(f"no profile '{profile}': allowed are {known}, or a path to a .yml file")
    table = read_yaml(path) or {}
    if not isinstance(table, dict) or not all(isinstance(v or {}, dict) for v in table.values()):
        raise BookError(f"{path} must map chapters to parameters: `04_lred: {{n_seeds: 3}}`")
    return path, {str(name): given or {} for name, given in table.items()}


def plan(root: Path, profile: str = "smoke", *, only: Iterable[str] = ()) -> list[Chapter]:
    """Every chapter of the table of contents under `profile`, checked, each after those that it needs.

    only: names to keep, with what they need; a prefix such as "04" will do.
    Raises BookError before anything runs.
    """
    file, table = load_profile(root, profile)
    names = [Path(page).name for page in pages(root) if Path(page).parts[0] == "notebooks"]
    sources = {name: root / "notebooks" / f"{name}.ipynb" for name in names}
    for name, source in sources.items():
        if not source.is_file():
            raise BookError(f"_toc.yml names notebooks/{name}, which does not exist")
    for name in table:
        if not (root / "notebooks" / f"{name}.ipynb").is_file():
            known = ", ".join(names)
            raise BookError(f"{file.name} names chapter '{name}', which does not exist; chapters are {known}")
    needs = {name: _needs(source, names) for name, source in sources.items()}
    keys = Keys(root)
    out: dict[str, Chapter] = {}
    for name in _ordered(needs):
        given = chapters.check(sources[name], table.get(name, {}), where=file.name)
        out[name] = Chapter(
            name=name,
            source=sources[name],
            given=given,
            needs=needs[name],
            key=keys.of(sources[name], given, (out[need].key for need in needs[name])),
            executed=root / "_build" / "executed" / file.stem / f"{name}.ipynb",
        )
    return list(_restrict(out, only) if only else out.values())


def _needs(source: Path, names: list[str]) -> tuple[str, ...]:
    needs = tuple(chapters.read(source).metadata.get("redbook", {}).get("needs", ()))
    for need in needs:
        if need not in names:
            raise BookError(f"{source.name} needs chapter '{need}', which _toc.yml does not list")
    return needs


def _ordered(needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    from graphlib import CycleError, TopologicalSorter

    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise BookError(f"chapters need each other in a circle: {' -> '.join(error.args[1])}") from None


def _restrict(all_: Mapping[str, Chapter], only: Iterable[str]) -> Iterator[Chapter]:
    wanted: set[str] = set()
    for prefix in only:
        hits = [name for name in all_ if name.startswith(Path(prefix).name.removesuffix(".ipynb"))]
        if not hits:
            raise BookError(f"no chapter '{prefix}'; chapters are {', '.join(sorted(all_))}")
        wanted.update(hits)
    for chapter in reversed(list(all_.values())):
        if chapter.name in wanted:
            wanted.update(chapter.needs)
    return (chapter for chapter in all_.values() if chapter.name in wanted)


def run_chapter(
    root: Path, source: Path, given: Mapping[str, Any], out: Path, *, progress: Progress | None = None
) -> Failure | None:
    """Run one notebook with parameters that were checked, into `out`; why it failed, if it did."""
    chapter = Chapter(name=source.stem, source=source, given=given, needs=(), key="", executed=out)
    with Runner(root, jobs=1, progress=progress or Progress()) as runner:
        return next(iter(runner.run([chapter])), None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a build did."""

    index: Path
    ran: tuple[str, ...]
    reused: tuple[str, ...]
    failures: tuple[Failure, ...]
    pages_built: bool  # False: nothing had changed since the last time
    seconds: float


def build(
    root: Path,
    *,
    profile: str = "smoke",
    jobs: int | None = None,
    only: Iterable[str] = (),
    force: bool = False,
    offline: bool = False,
    pages_in: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Bring the book under `profile` up to date.

    only: run just these chapters (and what they need), and make no pages. force: run them even if fresh.
    offline: pages without any external request. pages_in: where _build/html goes, default `root`.
    Raises BookError for bad input, before anything runs, and for pages that Jupyter Book refuses.
    """
    started = time.monotonic()
    todo = plan(root, profile, only=only)
    stale = [chapter for chapter in todo if force or not chapter.fresh]
    with Runner(root, jobs=jobs or cores(), progress=progress or Progress()) as runner:
        failures = runner.run(stale)
    index, built = site.index(pages_in or root), False
    if not failures and not only:
        built = site.make(root, todo, output=pages_in or root, offline=offline)
    bad = {failure.chapter for failure in failures}
    return Report(
        index=index,
        ran=tuple(c.name for c in stale if c.name not in bad),
        reused=tuple(c.name for c in todo if c not in stale),
        failures=tuple(failures),
        pages_built=built,
        seconds=time.monotonic() - started,
    )
