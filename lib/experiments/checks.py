"""Does today's code stand behind a table? Which rows it made, and which of the others it gives again.

A row says which code made it (`code`). One that other code made is old, and may still be right: `verify` runs a few
old rows of every stratum (a detector on a data set) again and compares. What it finds lies beside the table, in
`<table>.verified.json`, together with the print of the code that found it and of the old rows, so that the next edit
of either voids it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import fingerprint
from ..classifier import Spec
from ..data import DataError
from ..files import written
from .sweep import rows_of
from .tasks import Task

TOLERANCE = 1e-3  # relative, of every figure of a row
SAME, OTHER, ELSEWHERE = "the same", "other figures", "another classifier"
UNKNOWN = "the same figures, of a classifier whose weights were not recorded"


@dataclass(frozen=True)
class Again:
    """A row that was run again.

    outcome: SAME; OTHER, the same classifier with figures further apart than TOLERANCE; ELSEWHERE, weights of another
        hash, of which nothing follows for the scan; or UNKNOWN. A row without a hash whose figures are further apart
        counts as ELSEWHERE: it cannot be told from another scan.
    difference: the largest relative one.
    """

    key: str
    row: str
    outcome: str
    difference: float


@dataclass(frozen=True)
class Stratum:
    """The rows of a grid that are checked together.

    todays: how many the present code made.
    old: the tasks of those that other code made, or code that is not on record, or that are of other images.
    content: hash of the old rows' figures.
    missing: tasks without a row.
    hidden: tasks that cannot be told, because their image set is not on this machine.
    again: old rows that the present code has run again.
    """

    name: str
    todays: int = 0
    old: tuple[Task, ...] = ()
    content: str = ""
    missing: int = 0
    hidden: int = 0
    again: tuple[Again, ...] = ()

    @property
    def code(self) -> str:
        """Print of its old rows and of the code that should give them again: what `again` must have been found with."""
        return fingerprint.digest([sorted({task.code for task in self.old}), self.content])[:20]

    @property
    def verified(self) -> bool:
        """Did at least one old row come out the same, and none otherwise?"""
        found = {a.outcome for a in self.again}
        return SAME in found and OTHER not in found

    @property
    def stands(self) -> bool:
        """Is every row there, and today's or of a verified stratum?"""
        return not (self.missing or self.hidden) and (not self.old or self.verified)

    @property
    def state(self) -> str:
        """In words: "made by today's code", "verified on 3 of 70", "stale"."""
        parts = []
        if self.old:
            counts = Counter(a.outcome for a in self.again)
            tried = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
            if self.verified:
                parts.append(f"verified on {counts[SAME]} of {len(self.old)}")
            else:
                parts.append(
                    f"stale: {len(self.old)} by other code" + (f" (run again: {tried})" if tried else "")
                )
        if self.todays:
            parts.append(f"{self.todays} made by today's code" if parts else "made by today's code")
        if self.missing:
            parts.append(f"{self.missing} missing")
        if self.hidden:
            parts.append(f"{self.hidden} not to be told: the image set is not here")
        return "; ".join(parts)


@dataclass(frozen=True)
class Checked:
    """A table beside its grid. strays: rows that no task of the grid has made."""

    strata: tuple[Stratum, ...]
    strays: int
    rows: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def stands(self) -> bool:
        """Does today's code stand behind every row of the grid?"""
        return all(s.stands for s in self.strata)

    @property
    def state(self) -> str:
        """Of the table as a whole, in words, as the results page prints it."""
        if all(s.state == "made by today's code" for s in self.strata):
            return "made by today's code"
        old = [s for s in self.strata if s.old]
        if self.stands:
            again = sum(a.outcome == SAME for s in old for a in s.again)
            return f"verified on {again} of {sum(len(s.old) for s in old)}"
        stale = sum(len(s.old) for s in old if not s.verified)
        lacking = sum(s.missing + s.hidden for s in self.strata)
        return ", ".join(
            ([f"stale: {stale} rows"] if stale else []) + ([f"{lacking} missing"] if lacking else [])
        )


def check(tasks: Iterable[Task], out: str | Path) -> Checked:
    """Which rows of the table `out` the present code made; nothing is computed but prints of code."""
    rows: dict[str, dict[str, Any]] = {row["key"]: row for row in rows_of(out).to_dict("records")}
    counts: dict[str, dict[str, Any]] = {}
    seen = set()
    for task in tasks:
        of = counts.setdefault(task.stratum, {"todays": 0, "old": [], "missing": 0, "hidden": 0})
        try:
            key = task.key
        except DataError:  # what the gallery's attacks are depends on the images
            of["hidden"] += 1
            continue
        seen.add(key)
        if key not in rows:
            of["missing"] += 1
        elif rows[key].get("code") == task.code and _same_images(task.spec, rows[key]):
            of["todays"] += 1
        else:
            of["old"].append(task)
    found = [
        Stratum(name, **of | {"old": tuple(of["old"]), "content": _content(out, of["old"], rows)})
        for name, of in counts.items()
    ]
    record = _record(out)
    strata = tuple(_with_record(stratum, record.get(stratum.name)) for stratum in found)
    hidden = any(stratum.hidden for stratum in strata)  # then nobody can tell a stray row from one of theirs
    return Checked(strata, 0 if hidden else len(rows.keys() - seen), rows)


def _same_images(spec: Spec, row: dict[str, Any]) -> bool:
    """Are the images those that the row was made of? Yes, where that is not on record or they are not here."""
    recorded = row.get("data_sha256")
    try:
        return not isinstance(recorded, str) or spec.load_data().hash == recorded
    except DataError:
        return True


def _content(out: str | Path, tasks: Iterable[Task], rows: dict[str, dict[str, Any]]) -> str:
    return fingerprint.digest(sorted([t.key, _figures(out, t, rows[t.key])] for t in tasks))


def _figures(out: str | Path, task: Task, row: dict[str, Any]) -> list[float]:
    try:
        return [float(x) for x in task.figures(row)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{out}: the row of {task} lacks figures, or has others: {error!r}") from None


def verify(
    tasks: Iterable[Task],
    out: str | Path,
    n: int = 3,
    *,
    device: str = "cpu",
    zoo_folder: str | Path | None = None,
    seed: int = 0,
    tell: Callable[[Again], None] = lambda again: None,
) -> Checked:
    """Run n old rows of every stratum again, drawn by `seed`; what comes out is kept beside the table, one by one.

    Rows that this code has already run again count among the n, so a killed run goes on where it was.
    """
    tasks = list(tasks)
    found = check(tasks, out)
    for stratum in found.strata:
        done = list(stratum.again)
        for task in _drawn(stratum, n, seed):
            if task.key in {a.key for a in done}:
                continue
            kept, new = found.rows[task.key], task.run(device=device, zoo_folder=zoo_folder)
            before, after = (np.array(_figures(out, task, row)) for row in (kept, new))
            again = _compared(task, before, after, kept.get("weights_sha256"), new["weights_sha256"])
            done.append(again)
            _keep(out, stratum, done)
            tell(again)
    return check(tasks, out)


def _drawn(stratum: Stratum, n: int, seed: int) -> Iterator[Task]:
    tasks = sorted(stratum.old, key=lambda task: task.key)
    yield from random.Random(f"{stratum.name} {seed}").sample(tasks, min(n, len(tasks)))


def _compared(task: Task, before: np.ndarray, after: np.ndarray, weights: Any, now: str) -> Again:
    difference = float("inf")
    if before.shape == after.shape:
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.where(before == after, 0.0, np.abs(after - before) / np.abs(before))
        apart = np.where(np.isnan(before) & np.isnan(after), 0.0, apart)
        difference = float(np.nan_to_num(apart, nan=np.inf).max())
    close = difference <= TOLERANCE
    if not isinstance(weights, str):  # of rows from before weights were recorded
        outcome = UNKNOWN if close else ELSEWHERE
    elif weights != now:
        outcome = ELSEWHERE
    else:
        outcome = SAME if close else OTHER
    return Again(task.key, str(task), outcome, difference)


def _beside(out: str | Path) -> Path:
    return Path(f"{out}.verified.json")


def _record(out: str | Path) -> dict[str, Any]:
    file = _beside(out)
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text())
        for entry in record.values():
            assert isinstance(entry["code"], str) and [Again(**a) for a in entry["again"]]
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{file} is no record of rows that were run again: {error!r}; delete it") from None
    return record


def _with_record(stratum: Stratum, record: dict[str, Any] | None) -> Stratum:
    """The stratum with what was found by the present code on the present rows; all else is void."""
    if not stratum.old or record is None or record["code"] != stratum.code:
        return stratum
    return replace(stratum, again=tuple(Again(**a) for a in record["again"]))


def _keep(out: str | Path, stratum: Stratum, again: list[Again]) -> None:
    made = fingerprint.provenance("cpu")
    entry = {"code": stratum.code, "again": [vars(a) for a in again], **made}
    record = _record(out) | {stratum.name: entry}
    with written(_beside(out)) as file:
        file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
