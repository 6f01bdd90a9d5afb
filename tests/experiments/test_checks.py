"""What today's code has to do with a table: made by it, given again by it, or neither."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from lib.data import DataError
from lib.experiments import checks


@dataclass(frozen=True)
class Task:
    """A task of a laboratory where code is a word, and a scan is a look into `world`."""

    name: str
    stratum: str
    code: str
    world: dict

    spec = None

    @property
    def key(self):
        if self.code == "no images":
            raise DataError("no such image set")
        return self.name

    def run(self, **_):
        self.world.setdefault("ran", []).append(self.name)
        norms = self.world.get(self.name, [1.0, 2.0])
        return {"norms": norms, "weights_sha256": self.world.get("weights", "w")}

    def figures(self, row):
        return list(row["norms"])

    def __str__(self):
        return self.name


@pytest.fixture
def world():
    return {}


@pytest.fixture
def tasks(world):
    return [Task(f"{s} {i}", f"{s} on digits", "today", world) for s in ("usb", "l-red") for i in range(4)]


@pytest.fixture
def table(tmp_path, tasks):
    out = tmp_path / "t.parquet"
    row = {"norms": [1.0, 2.0], "weights_sha256": "w"}
    pd.DataFrame(
        [{"key": t.key, "code": "old" if t.name < "m" else "today"} | row for t in tasks]
    ).to_parquet(out)
    return out


def strata(found):
    return {s.name.split()[0]: s for s in found.strata}


def test_what_other_code_made_is_told_from_what_todays_did(tasks, table, world):
    found = checks.check(tasks, table)
    assert [s.state for s in found.strata] == ["made by today's code", "stale: 4 by other code"]
    assert not found.stands and found.state == "stale: 4 rows" and not world
    assert checks.check(tasks[:4], table).stands and checks.check(tasks[:4], table).strays == 4
    assert checks.check(tasks[:4], table).state == "made by today's code"


def test_rows_that_are_missing_or_cannot_be_told_do_not_stand(tasks, table):
    more = [replace(tasks[0], name="usb 9"), replace(tasks[0], code="no images")]
    found = checks.check([*tasks[:4], *more], table)
    (usb,) = found.strata
    assert (usb.todays, usb.missing, usb.hidden, found.strays) == (4, 1, 1, 0)
    assert not found.stands and "1 missing" in usb.state and "not here" in usb.state
    assert not checks.check(tasks[:1], table.with_name("none.parquet")).stands


def test_a_stratum_stands_when_some_of_its_rows_come_out_the_same(tasks, table, world):
    world["l-red 2"] = [1.0005, 2.0]  # within the tolerance
    found = checks.verify(tasks, table, 3)
    assert found.stands and strata(found)["l-red"].state == "verified on 3 of 4"
    assert found.state == "verified on 3 of 4" and len(world["ran"]) == 3
    assert not [name for name in world["ran"] if name.startswith("usb")]
    assert checks.check(tasks, table).stands  # it is on record
    assert checks.verify(tasks, table, 3).stands and len(world["ran"]) == 3  # and not done twice
    assert len(checks.verify(tasks, table, 9).strata[1].again) == 4


def test_one_other_figure_is_enough_to_say_so(tasks, table, world):
    world["l-red 1"] = [1.0, 2.004]
    found = checks.verify(tasks, table, 4)
    (apart,) = [a for a in strata(found)["l-red"].again if a.outcome == checks.OTHER]
    assert not found.stands and apart.row == "l-red 1" and apart.difference == pytest.approx(0.002)
    assert "1 other figures" in strata(found)["l-red"].state


def test_other_weights_are_another_classifier_and_prove_nothing(tasks, table, world):
    world["weights"] = "others"
    found = checks.verify(tasks, table, 2)
    assert not found.stands and {a.outcome for a in found.strata[1].again} == {checks.ELSEWHERE}


@pytest.mark.parametrize(("norms", "outcome"), [([1.0, 2.0], checks.UNKNOWN), ([1.0, 3.0], checks.ELSEWHERE)])
def test_rows_without_a_hash_of_their_weights_are_not_verified(tasks, table, world, norms, outcome):
    pd.read_parquet(table).assign(weights_sha256=None).to_parquet(table)
    world.update({t.name: norms for t in tasks})
    found = checks.verify(tasks, table, 1)
    assert not found.stands and [a.outcome for a in found.strata[1].again] == [outcome]


def test_the_next_edit_voids_what_was_verified(tasks, table):
    assert checks.verify(tasks, table, 3).stands
    edited = [replace(t, code="tomorrow") if t.name == "l-red 0" else t for t in tasks]
    assert not checks.check(edited, table).stands  # whichever of the stratum it touches


def test_a_killed_verification_goes_on(tasks, table, world, monkeypatch):
    run = Task.run

    def once(task, **more):
        if world.get("ran"):
            raise KeyboardInterrupt
        return run(task, **more)

    monkeypatch.setattr(Task, "run", once)
    with pytest.raises(KeyboardInterrupt):
        checks.verify(tasks, table, 3)
    monkeypatch.setattr(Task, "run", run)
    assert checks.verify(tasks, table, 3).stands and len(world["ran"]) == len(set(world["ran"])) == 3


def test_which_rows_are_drawn_depends_on_the_seed_alone(tasks, table, world):
    checks.verify(tasks, table, 2)
    first, world["ran"] = world["ran"], []
    Path(f"{table}.verified.json").unlink()
    checks.verify(tasks[::-1], table, 2)
    assert world["ran"] == first


def test_the_record_says_when_and_with_what_it_was_made(tasks, table):
    checks.verify(tasks, table, 1)
    record = json.loads(Path(f"{table}.verified.json").read_text())
    assert set(record) == {"l-red on digits"} and {"code", "commit", "when", "torch"} <= set(
        record["l-red on digits"]
    )


def test_another_row_in_the_place_of_one_that_was_verified_is_not(tasks, table):
    assert checks.verify(tasks, table, 3).stands
    rows = pd.read_parquet(table)
    rows["norms"] = [[9.0, 9.0]] * len(rows)
    rows.to_parquet(table)
    assert not checks.check(tasks, table).stands


def test_tables_of_one_stem_have_records_of_their_own(tasks, table):
    twin = table.with_suffix(".two")
    pd.read_parquet(table).to_parquet(twin)
    assert checks.verify(tasks, table, 3).stands and not checks.check(tasks, twin).stands


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"l-red on digits": 3}', '{"x": {"code": "a", "again": [{"x": 1}]}}']
)
def test_a_damaged_record_is_named(tasks, table, text):
    Path(f"{table}.verified.json").write_text(text)
    with pytest.raises(ValueError, match=r"t\.parquet\.verified\.json is no record"):
        checks.check(tasks, table)


def test_a_row_without_figures_is_named_before_anything_runs(tasks, table, world):
    pd.read_parquet(table).drop(columns="norms").to_parquet(table)
    with pytest.raises(ValueError, match="the row of l-red 0 lacks figures"):
        checks.verify(tasks, table, 1)
    assert not world


def test_a_row_of_another_number_of_classes_is_another_figure(tasks, table, world):
    world.update({t.name: [1.0, 2.0, 3.0] for t in tasks})
    found = checks.verify(tasks, table, 1)
    assert [a.outcome for a in found.strata[1].again] == [checks.OTHER]
