"""A sweep: one tidy row per task, resumed after a kill, and a bad grid refused before anything runs."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from lib import anomaly
from lib.experiments import grids, sweep
from lib.experiments.tasks import ScanTask

ROOT = Path(__file__).resolve().parents[2]
GRID = """
classifiers:
  - {dataset: digits, network: small, recipe: smoke, groups: [G-9, C-0], seeds: 1}
detectors:
  - {name: u-red, n: 2, settings: {delta: 0.1}}
  - {name: l-red, n: 2, settings: {delta: 0.1}}
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "grid.yml").write_text(GRID)
    tasks = grids.read_grid(folder / "grid.yml")
    return (
        folder,
        tasks,
        sweep.run(tasks, folder / "out.parquet", zoo_folder=folder / "zoo", progress=False),
    )


def test_one_tidy_row_per_classifier_and_detector(swept):
    _, tasks, table = swept
    assert len(table) == len(tasks) == 4 and table["key"].is_unique
    assert {
        "commit",
        "torch",
        "device",
        "seconds",
        "image_gradients",
        "norms",
        "gamma_score",
        "calibrated_case",
        "cta",
    } <= set(table.columns)
    attacked = table[table["group"] == "G-9"]
    assert (attacked["target"] == 9).all() and (attacked["n_sources"] == 9).all()
    assert table.loc[table["group"] == "C-0", "target"].isna().all()
    for _, row in table.iterrows():
        assert anomaly.gamma(1 / torch.tensor(list(row["norms"]))).score == pytest.approx(row["gamma_score"])


def test_two_classes_are_scanned_and_judged_by_the_rules_that_can(tmp_path):
    text = "classifiers: [{dataset: digits, network: small, recipe: smoke, classes: [0, 1], groups: [C-0], seeds: 1}]"
    (tmp_path / "two.yml").write_text(text + "\ndetectors: [{name: l-red, n: 2}]\n")
    tasks = grids.read_grid(tmp_path / "two.yml")
    (row,) = sweep.run(tasks, tmp_path / "o.parquet", zoo_folder=tmp_path, progress=False).iloc
    assert len(row["norms"]) == 2 and row["mad_case"] == "IV"
    assert row["gamma_score"] != row["gamma_score"] and row["gamma_case"] is None


def test_a_finished_sweep_computes_nothing(swept, monkeypatch):
    folder, tasks, table = swept
    monkeypatch.setattr(ScanTask, "run", lambda *a, **k: pytest.fail("ran again"))
    again = sweep.run(tasks, folder / "out.parquet", progress=False)
    assert again["key"].tolist() == table["key"].tolist()


def test_a_killed_sweep_goes_on_where_it_was(swept, tmp_path):
    folder, tasks, table = swept
    (tmp_path / "grid.yml").write_text(GRID)
    code = (
        "from lib.experiments import grids, sweep\n"
        f"sweep.run(grids.read_grid({str(tmp_path / 'grid.yml')!r}), {str(tmp_path / 'out.parquet')!r}, zoo_folder={str(folder / 'zoo')!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    rows = tmp_path / "out.parquet.rows"
    deadline = time.monotonic() + 120
    while not list(rows.glob("*.parquet")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    done = {p.stem: p.stat().st_mtime_ns for p in rows.glob("*.parquet")}
    resumed = sweep.run(tasks, tmp_path / "out.parquet", zoo_folder=folder / "zoo", progress=False)
    assert done and resumed["gamma_score"].tolist() == pytest.approx(table["gamma_score"].tolist(), rel=1e-6)
    assert not list(rows.glob("*.parquet"))


def test_two_sweeps_may_share_a_table(swept, tmp_path, monkeypatch):
    """While the first computes its first row, a second begins and ends; neither loses what the other found."""
    _, tasks, table = swept
    out, rows, calls = tmp_path / "out.parquet", table.set_index("key"), []

    def fake(task, **_):
        calls.append(task.key)
        if len(calls) == 1:
            sweep.run(tasks[1:3], out, progress=False)
        return {"key": task.key} | rows.loc[task.key].to_dict()

    monkeypatch.setattr(ScanTask, "run", fake)
    both = sweep.run(tasks, out, progress=False)
    assert sorted(both["key"]) == sorted(table["key"]) and len(calls) == len(set(calls)) + 2


def test_two_workers_give_the_same_table(swept, tmp_path):
    folder, tasks, table = swept
    both = sweep.run(
        tasks[:2], tmp_path / "out.parquet", workers=2, zoo_folder=folder / "zoo", progress=False
    )
    kept = table.set_index("key").loc[both["key"], "gamma_score"]
    assert both["gamma_score"].tolist() == pytest.approx(kept.tolist(), rel=1e-4)


def test_a_failing_row_is_named_after_the_others_have_run(swept, tmp_path):
    folder, tasks, _ = swept
    with pytest.raises(RuntimeError, match=r"1 of 2 rows failed.*\n.*400 are needed"):
        sweep.run(
            [replace(tasks[0], n=400), tasks[0]],
            tmp_path / "out.parquet",
            zoo_folder=folder / "zoo",
            progress=False,
        )
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classifiers: []", "exactly the fields"), ("attacks: [{names: [fire]}]", "fire"), ("{", "cannot be read"), (GRID.replace("G-9", "Q-9"), "Q-9"), (GRID.replace("u-red", "x-red"), "x-red"),
        (GRID.replace("n: 2", "n: 0", 1), "n = 0"), (GRID.replace("small", "huge"), "huge"), (GRID.replace("smoke", "fire"), "fire"),
        (GRID.replace("seeds", "seedz"), "seedz"), (GRID.replace("delta", "dleta", 1), "dleta"),
        (GRID.replace("u-red, n: 2, settings: {delta: 0.1}", "b3d-ss, n: 2"), "needs no clean images"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_refused_before_anything_runs(tmp_path, text, message):
    (tmp_path / "grid.yml").write_text(text)
    with pytest.raises(grids.GridError, match=message):
        grids.read_grid(tmp_path / "grid.yml")


def test_committed_grids_can_be_read():
    for path in sorted((ROOT / "data" / "grids").glob("*.yml")):
        tasks = grids.read_grid(path)
        assert len({t.key for t in tasks}) == len(tasks) > 0, path.name
        if path.stem == "attacks":
            assert {t.spec.dataset for t in tasks} == {"digits", "gtsrb32"}


@pytest.mark.parametrize("name", ["digits", "comparison", "comparison_images", "step_length", "attacks"])
def test_committed_tables_hold_the_rows_of_their_grids(name):
    keys = {t.key for t in grids.read_grid(ROOT / "data" / "grids" / f"{name}.yml")}
    table = pd.read_parquet(ROOT / "data" / "results" / f"{name}.parquet")
    assert keys == set(table["key"])
