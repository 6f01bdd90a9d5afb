"""Grid files: what makes a task, and what is refused before anything runs, with file, field, value and what is allowed."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lib import attacks
from lib.classifier import Spec
from lib.detectors import DETECTORS, named
from lib.experiments import grids, sweep, tasks
from lib.settings import plain

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIERS = "classifiers: [{%s}]\ndetectors: [{name: l-red, n: 2}]"
DETECTOR = "classifiers: [{groups: [C-0]}]\ndetectors: [{%s}]"
ATTACKS = "attacks: [{%s}]"
NO_NUMBER = ("null", "true", "'2'", "1.0", "-1", "[]", "{}", ".inf", "9" * 30, "x")
NO_NAMES = ("null", "true", "2", "G-9", "[]", "{}", "[null]", "[1]", "['']", "[[a]]", "[a, a]")
NO_SEEDS = (
    *NO_NUMBER,
    "0",
    "[null]",
    "[true]",
    "[1.5]",
    "['1']",
    "[-1]",
    "[1, 1]",
    f"[{2**63}]",
    "{a: 1}",
    "range(3)",
    "1000000000",
)
NO_CLASSES = (
    "null",
    "true",
    "3",
    "[]",
    "[1]",
    "[1, 1]",
    "[-1, 2]",
    "[0.5, 1.5]",
    "[true, false]",
    "['0', '1']",
    "{}",
)
NO_TEXT = ("null", "true", "1", "[a]", "{a: b}", "''")


@pytest.fixture
def read(tmp_path):
    def of(text: str) -> list:
        (tmp_path / "grid.yml").write_text(text)
        return grids.read_grid(tmp_path / "grid.yml")

    return of


@pytest.fixture
def refused(read):
    """What is said of a grid: one line that begins with the file and ends with what is allowed or wrong."""

    def of(text: str) -> str:
        with pytest.raises(grids.GridError) as error:
            read(text)
        said = str(error.value)
        assert "grid.yml" in said.split(":")[0] and "\n" not in said and len(said) < 900
        return said

    return of


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("seeds", NO_SEEDS),
        ("groups", NO_NAMES),
        ("classes", NO_CLASSES),
        ("n_train", (*NO_NUMBER, "0", "1")),
        ("dataset", NO_TEXT),
        ("network", (*NO_TEXT, "tiny")),
        ("recipe", (*NO_TEXT, "slow")),
    ],
)
def test_a_field_of_classifiers_is_refused_by_name_and_value(refused, field, values):
    for value in values:
        said = refused(CLASSIFIERS % f"{field}: {value}")
        assert f"entry 1 of classifiers: {field} = " in said and said.endswith("is needed"), value


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("seeds", NO_SEEDS),
        ("names", NO_NAMES),
        ("classes", NO_CLASSES),
        ("n_train", (*NO_NUMBER, "0", "1")),
        ("target", NO_NUMBER),
        ("dataset", NO_TEXT),
        ("network", (*NO_TEXT, "tiny")),
        ("recipe", (*NO_TEXT, "slow")),
    ],
)
def test_a_field_of_attacks_is_refused_by_name_and_value(refused, field, values):
    for value in values:
        said = refused(ATTACKS % f"{field}: {value}")
        assert f"entry 1 of attacks: {field} = " in said and said.endswith("is needed"), value


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("group: C-0", ("group = 'C-0'", "a group with an attack")),
        ("group: X", ("no attack group 'X'", "G-3")),
        ("group: null", ("group = None", "a text")),
        ("group: G-3, names: [global]", ("no field 'names'", "vary")),
        ("group: G-3, target: 2", ("no field 'target'", "settings")),
        ("group: G-3, vary: [1]", ("vary = [1]", "a mapping")),
        ("group: G-3, vary: {amplitude: 3}", ("vary: amplitude = 3", "a list of one or more")),
        ("group: G-3, vary: {amplitude: []}", ("vary: amplitude = []", "a list of one or more")),
        ("group: G-3, vary: {amplitud: [3]}", ("no setting 'amplitud'", "amplitude")),
        ("group: G-3, vary: {amplitude: [3, '4']}", ("amplitude = '4'", "a whole number")),
        ("group: G-3, vary: {amplitude: [3, 3]}", ("stands in the grid before",)),
        ("group: G-3, settings: {per_source: -1}", ("per_source = -1", "needed")),
        ("group: G-3, settings: {cover: 0}, vary: {cover: [1]}", ("vary: cover", "settings")),
        (f"group: G-3, seeds: 200, vary: {{amplitude: {list(range(1, 150))}}}", ("29,800 rows", "20,000")),
        ("group: patch-2, settings: {amplitude: 3}", ("no setting 'amplitude'", "size")),
    ],
)
def test_an_entry_of_a_group_is_refused_by_name_and_value(refused, entry, words):
    said = refused(f"attacks:\n  - {{{entry}}}\n")
    assert "entry 1 of attacks: " in said and all(word in said for word in words), said


def test_an_entry_of_a_group_is_what_a_chapter_asks_for(read):
    """The same tasks as `tasks.varied` makes; values in all combinations, and each seed the group's own attack."""
    entry = (
        "{group: G-3, settings: {cover: 0}, vary: {amplitude: [8, 24], per_source: [3, 5]}, seeds: [0, 3]}"
    )
    made = read(f"attacks:\n  - {entry}\n")
    ask = lambda seed: replace(attacks.group("G-3", "digits", seed=seed), cover=0)  # noqa: E731
    want = tasks.varied(Spec(), ask, seeds=[0, 3], amplitude=[8, 24], per_source=[3, 5])
    assert len(made) == 8 and [t.key for t in made] == [t.key for t in want]
    assert {t.attacked.attack.phase for t in made} == {(0, 0), (1, 1)}


@pytest.mark.parametrize("value", [*NO_NUMBER, "0"])
def test_a_number_of_images_is_refused_by_name_and_value(refused, value):
    said = refused(DETECTOR % f"name: l-red, n: {value}")
    assert "entry 1 of detectors: n = " in said and "a whole number from 1" in said


@pytest.mark.parametrize("name", [*NO_TEXT, "lred", "L-RED", "x" * 5000])
def test_a_detector_that_there_is_not_is_refused(refused, name):
    said = refused(DETECTOR % f"name: {name}")
    assert "entry 1 of detectors: " in said and ("l-red, surrogate-red" in said or "a text is needed" in said)


@pytest.mark.parametrize("value", ["null", "0", "[]", "''", "pi"])
def test_settings_are_a_mapping(refused, value):
    assert "settings = " in refused(DETECTOR % f"name: l-red, settings: {value}")


@pytest.mark.parametrize("name", DETECTORS)
def test_no_setting_of_any_detector_takes_another_type(refused, name):
    """Nothing is cut, rounded or read as something else: what is taken is equal to what was written."""
    for setting, default in plain(named(name)).items():
        for wrong in (True if not isinstance(default, bool) else 1, {"a": 1}, [[]], "x" * 5000):
            said = refused(DETECTOR % f"name: {name}, settings: {json.dumps({setting: wrong})}")
            assert f"{setting} = " in said, (setting, wrong)
        if isinstance(default, (int, float)):
            for wrong in ("1", *([default + 0.5] if isinstance(default, int) else [])):
                assert f"{setting} = " in refused(
                    DETECTOR % f"name: {name}, settings: {json.dumps({setting: wrong})}"
                )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CLASSIFIERS % "seedz: 3", ("no field 'seedz'", "dataset, network, recipe")),
        (CLASSIFIERS % "target: 1", ("no field 'target'",)),
        (CLASSIFIERS % "<<: {seeds: 3}", ("no field '<<'",)),
        (DETECTOR % "name: l-red, m: 3", ("no field 'm'", "name, n, settings")),
        (DETECTOR % "n: 3", ("no name",)),
        (DETECTOR % "name: l-red, settings: {dleta: 1}", ("no setting 'dleta'", "delta")),
        (DETECTOR % "name: l-red, settings: {name: 1}", ("no setting 'name'",)),
        (DETECTOR % "name: l-red, settings: {pi: 2}", ("pi = 2", "below 1")),
        (DETECTOR % "name: neural-cleanse, settings: {betas: [0.5]}", ("betas = [0.5]", "from 0 to below 1")),
        (DETECTOR % "name: b3d-ss, n: 2", ("n = 2", "needs no clean images")),
        (ATTACKS % "colour: red", ("no field 'colour'", "names, target")),
        (ATTACKS % "names: [fire]", ("'fire'", "global")),
        (CLASSIFIERS % "groups: [Q-9]", ("'Q-9'", "G-9")),
        (CLASSIFIERS % "groups: [paper]", ("paper", "'digits'", "G-1")),
        (CLASSIFIERS % "dataset: mnist, groups: [C-0, G-9]", ("G-9", "'mnist'", "paper")),
        (CLASSIFIERS % f"dataset: {'x' * 5000}, groups: [G-9]", ("xxx...xxx",)),
        ("classifiers: []\ndetectors: [{name: l-red}]", ("classifiers = []", "one or more entries")),
        ("classifiers: [{}]\ndetectors: null", ("detectors = None", "one or more entries")),
        ("classifiers: [5]\ndetectors: [{name: l-red}]", ("entry 1 of classifiers = 5", "a mapping")),
        ("classifiers: [{}]\ndetectors: [l-red]", ("entry 1 of detectors = 'l-red'", "a mapping")),
        ("attacks: {}", ("attacks = {}", "one or more entries")),
        ("attacks: [{}]\nclassifiers: []", ("fields ['attacks', 'classifiers']", "attacks alone")),
        ("detectors: [{name: l-red}]", ("fields ['detectors']", "classifiers and detectors")),
        ("{}", ("fields []",)),
        ("", ("is empty",)),
        ("attacks: [{names: [global]}", ("line 1: not YAML",)),
        ("attacks: &a [{}]", ("line 1: anchors",)),
        ("attacks: [{seeds: 1, seeds: 2}]", ("line 1: 'seeds' stands twice",)),
        ("classifiers: [{}, {}]\ndetectors: [{name: l-red}]", ("entry 2 of classifiers: C-0 with seed 0 stands",)),
        ("classifiers: [{seeds: 2}, {seeds: [3, 1]}]\ndetectors: [{name: l-red}]", ("entry 2 of classifiers: C-0 with seed 1",)),
        ("classifiers: [{}]\ndetectors: [{name: l-red}, {name: l-red, n: 8}]", ("entry 2 of detectors: l-red with this n",)),
        ("attacks: [{names: [cross]}, {}]", ("entry 2 of attacks: cross with seed 0 stands",)),
        ("classifiers: [{seeds: 20000}]\ndetectors: [{name: l-red}, {name: u-red}]", ("20,000 classifiers x 2 detectors",)),
        (ATTACKS % "seeds: 20000", ("more than 20,000 rows",)),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_meant_is_refused(refused, text, words):
    said = refused(text)
    assert all(word in said for word in words), said


def test_a_setting_spelled_out_as_its_default_is_the_same_row(refused):
    same = json.dumps(plain(named("l-red")))
    said = refused(DETECTOR % f"name: l-red}}, {{name: l-red, settings: {same}")
    assert "entry 2 of detectors: l-red with this n and these settings stands" in said


def test_what_is_written_is_what_the_task_says(read):
    (task,) = read(
        "classifiers: [{network: lenet5, recipe: laptop, groups: [G-3], seeds: [7], classes: [0, 6, 8, 9], n_train: 500}]\n"
        "detectors: [{name: neural-cleanse, settings: {betas: [0.5, 1e-1], lr: 1}}]"
    )
    spec = task.spec
    assert (spec.network, spec.recipe, spec.seed, spec.n_train) == ("lenet5", "laptop", 7, 500)
    assert spec.classes == (0, 6, 8, 9) and spec.attack.seed == 7 and task.n == 8
    assert dict(task.settings) == {"betas": (0.5, 0.1), "lr": 1.0}


def test_a_number_of_seeds_counts_from_0_and_every_classifier_meets_every_detector(read):
    tasks = read("classifiers: [{seeds: 3, groups: [G-1, C-0]}]\ndetectors: [{name: l-red}, {name: b3d-ss}]")
    assert [(t.spec.seed, t.group, t.detector, t.n) for t in tasks] == [
        (seed, group, detector, n)
        for seed in range(3)
        for group in ("G-1", "C-0")
        for detector, n in (("l-red", 8), ("b3d-ss", 0))
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CLASSIFIERS % "dataset: digitz", ("digitz", "allowed are digits")),
        (CLASSIFIERS % "dataset: '2'", ("'2'", "allowed are digits")),
        (CLASSIFIERS % "classes: [3, 10]", ("[3, 10]", "0 to 9")),
        (CLASSIFIERS % "n_train: 5", ("n_train = 5", "10 to 1300")),
        (CLASSIFIERS % "n_train: 99999", ("n_train = 99999", "10 to 1300")),
        (CLASSIFIERS % "classes: [0, 1, 2], groups: [G-9]", ("class 9 does not exist", "0 to 2")),
        (CLASSIFIERS % "n_train: 20, groups: [G-1]", ("60 images of class 0 are wanted",)),
        (DETECTOR % "name: l-red, n: 60", ("n = 60", "test images")),
        (ATTACKS % "target: 10", ("class 10 does not exist", "0 to 9")),
        (ATTACKS % "classes: [3, 4], names: ['source-specific, no cover']", ("class 2 does not exist",)),
        (ATTACKS % "dataset: digitz, names: [global]", ("digitz", "allowed are digits")),
    ],
)
def test_what_the_images_cannot_serve_is_refused_before_any_row_runs(read, tmp_path, text, words):
    good = "classifiers: [{groups: [C-0], seeds: [5]}]\ndetectors: [{name: l-red}]"
    tasks = [*read(good), *read(text)]
    with pytest.raises(ValueError) as error:
        sweep.run(tasks, tmp_path / "out.parquet", zoo_folder=tmp_path / "zoo", progress=False)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.yml"]  # no row, no table, nothing in a zoo


@pytest.mark.parametrize("columns", [{"a": [1]}, {"key": [1], "dataset": ["x"], "seed": [0]}, None])
def test_a_table_of_something_else_is_refused_and_left_as_it_is(read, tmp_path, columns):
    out = tmp_path / "out.parquet"
    out.write_text("no table") if columns is None else pd.DataFrame(columns).to_parquet(out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"out\.parquet is no table of a sweep"):
        sweep.run(read(CLASSIFIERS % "seeds: 1"), out, zoo_folder=tmp_path / "zoo", progress=False)
    assert out.read_bytes() == before and {p.name for p in tmp_path.iterdir()} == {"grid.yml", "out.parquet"}
