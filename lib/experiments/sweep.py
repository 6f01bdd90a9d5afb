"""Tasks to a table: every row that is not there yet, resumable after any kill.

Every finished row is a parquet file of its own, written whole; the table is their union. A sweep killed at any
moment is continued by the same command: rows that exist are not computed again, classifiers come from the zoo.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from .. import zoo
from . import executors
from .tasks import Task

if TYPE_CHECKING:
    import pandas as pd

# of the rows of a table, as far as it has these columns
ORDER = ("dataset", "group", "seed", "detector", "n")


def table_of(
    tasks: Iterable[Task], *, device: str = "cpu", zoo_folder: str | Path | None = None
) -> pd.DataFrame:
    """The rows of a few tasks, in their order, in memory alone."""
    import pandas as pd

    return pd.DataFrame([task.run(device=device, zoo_folder=zoo_folder) for task in tasks])


def run(
    tasks: Iterable[Task],
    out: str | Path,
    *,
    workers: int = 1,
    device: str = "cpu",
    zoo_folder: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run every task that the table `out` does not hold yet; returns (and writes to `out`) the whole table.

    Rows land one by one in `<out>.rows/`, so an interrupted sweep resumes, and two sweeps may share a table.
    A task that fails is named at the end in a RuntimeError, after all others have run.
    """
    import pandas as pd

    tasks, out = list(tasks), Path(out)
    rows = out.with_name(out.name + ".rows")
    rows.mkdir(parents=True, exist_ok=True)
    kept = pd.read_parquet(out) if out.exists() else pd.DataFrame({"key": []})
    have = set(kept["key"]) | {p.stem for p in rows.glob("*.parquet")}
    todo = [t for t in tasks if t.key not in have]
    # One classifier's tasks stand together, so two workers seldom wait for the same training.
    todo.sort(key=lambda t: (t.spec.seed, getattr(t, "group", "")))
    one = partial(_one, rows=rows, device=device, zoo_folder=zoo_folder)
    running = executors.processes(todo, one, workers=workers) if workers > 1 else executors.here(todo, one)
    failed, done = [], len(tasks) - len(todo)
    with tqdm(total=len(tasks), initial=done, desc="sweep", unit="row", disable=not progress) as bar:
        for task, error in running:
            bar.update()
            if error is not None:
                failed.append(f"{task}: {error}")
    keys = [t.key for t in tasks]
    table = _compact(rows, out, keys)
    if failed:
        counts = f"{len(failed)} of {len(tasks)} rows failed, the others are in {out}"
        raise RuntimeError(f"{counts}:\n" + "\n".join(failed))
    return table[table["key"].isin(keys)].reset_index(drop=True)


def _one(task: Task, rows: Path, device: str, zoo_folder: str | Path | None) -> None:
    import pandas as pd

    if (rows / f"{task.key}.parquet").exists():  # another process has been here since this one began
        return
    row = pd.DataFrame([task.run(device=device, zoo_folder=zoo_folder)])
    partial_ = rows / f"{task.key}.{os.getpid()}.partial"
    row.to_parquet(partial_)
    os.replace(partial_, rows / f"{task.key}.parquet")


def _compact(rows: Path, out: Path, keys: Sequence[str]) -> pd.DataFrame:
    """Merge the single rows into the table as it is now, then drop them; one process at a time.

    keys: in the order that rows have which no column of ORDER tells apart.
    """
    import pandas as pd

    with zoo.alone(rows / "lock"):
        files = sorted(rows.glob("*.parquet"))
        parts = [pd.read_parquet(p) for p in ([out] if out.exists() else []) + files]
        if not parts:
            return pd.DataFrame({"key": []})
        table = pd.concat(parts, ignore_index=True).drop_duplicates("key")
        place = {key: i for i, key in enumerate(keys)}
        table = table.assign(place=table["key"].map(place).fillna(len(place)))
        columns = [name for name in ORDER if name in table]
        table = table.sort_values([*columns, "place", "key"], ignore_index=True).drop(columns="place")
        if files:
            whole = out.with_name(out.name + ".partial")
            table.to_parquet(whole)
            os.replace(whole, out)
        for p in files:
            p.unlink()
    return table
