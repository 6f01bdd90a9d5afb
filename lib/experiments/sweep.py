"""Tasks to a table: every row that is not there yet, resumable after any kill.

Every finished row is a parquet file of its own, written whole; the table is their union. A sweep killed at any
moment is continued by the same command: rows that exist are not computed again, classifiers come from the zoo.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from .. import files
from . import executors
from .grids import check_images
from .tasks import Task

if TYPE_CHECKING:
    import pandas as pd

# of the rows of a table, as far as it has these columns
ORDER = ("dataset", "group", "seed", "detector", "n")


def table_of(
    tasks: Iterable[Task],
    *,
    known: str | Path | None = None,
    device: str = "cpu",
    zoo_folder: str | Path | None = None,
) -> pd.DataFrame:
    """The rows of a few tasks, in their order, in memory alone.

    known: a table that a sweep has written; what it holds is taken from there as it stands. Raises ValueError where
        there is no such file.
    """
    import pandas as pd

    if known and not Path(known).is_file():
        raise ValueError(f"there is no table {known}")
    found = rows_of(known).to_dict("records") if known else []
    have = {row["key"]: row for row in found}
    rows = [
        (have.get(task.key) or task.run(device=device, zoo_folder=zoo_folder)) | task.columns
        for task in tasks
    ]
    return pd.DataFrame(rows)


def rows_of(path: str | Path) -> pd.DataFrame:
    """The rows of a table that a sweep has written, none where there is no file.

    Raises ValueError, naming the file, where it holds anything else.
    """
    import pandas as pd

    path = Path(path)
    if not path.exists():
        return pd.DataFrame({"key": []})
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no table of a sweep: {str(error)[:200]}") from None
    if "key" not in table or not all(isinstance(key, str) for key in table["key"]):
        raise ValueError(f"{path} is no table of a sweep: it has no column `key` of texts")
    return table


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
    A task that the image sets cannot serve is refused before any runs (see `grids.check_images`); one that fails is
    named at the end in a RuntimeError, after all others have run.
    """
    tasks, out = list(tasks), Path(out)
    rows = out.with_name(out.name + ".rows")
    have = set(rows_of(out)["key"]) | {p.stem for p in rows.glob("*.parquet")}
    todo = [t for t in tasks if t.key not in have]
    check_images(todo)
    rows.mkdir(parents=True, exist_ok=True)
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
    with files.written(rows / f"{task.key}.parquet") as whole:
        row.to_parquet(whole)


def _compact(rows: Path, out: Path, keys: Sequence[str]) -> pd.DataFrame:
    """Merge the single rows into the table as it is now, then drop them; one process at a time.

    keys: in the order that rows have which no column of ORDER tells apart.
    """
    import pandas as pd

    with files.alone(rows / "lock"):
        single = sorted(rows.glob("*.parquet"))
        parts = [rows_of(p) for p in ([out] if out.exists() else []) + single]
        if not parts:
            return pd.DataFrame({"key": []})
        table = pd.concat(parts, ignore_index=True).drop_duplicates("key")
        place = {key: i for i, key in enumerate(keys)}
        table = table.assign(place=table["key"].map(place).fillna(len(place)))
        columns = [name for name in ORDER if name in table]
        table = table.sort_values([*columns, "place", "key"], ignore_index=True).drop(columns="place")
        if single:
            with files.written(out) as whole:
                table.to_parquet(whole)
        for p in single:
            p.unlink()
    return table
