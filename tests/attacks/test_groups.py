"""Attack groups: the papers' settings by name, for the data sets that they are made for and no others."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lib import attacks
from lib.attacks import AttackError, BadNets, Chessboard, Global, LocalSquare
from lib.attacks.groups import CIFAR10, DIGITS, GROUPS

ROOT = Path(__file__).resolve().parents[2]
EVERY = [(dataset, name) for dataset, groups in GROUPS.items() for name in groups]


@pytest.mark.parametrize(("dataset", "name"), EVERY)
def test_a_group_keeps_its_settings_and_draws_from_its_seed(dataset, name):
    kept, drawn = GROUPS[dataset][name], attacks.group(name, dataset, seed=3)
    assert type(drawn) is type(kept) and drawn.seed == 3
    changed = {f.name for f in fields(kept) if getattr(kept, f.name) != getattr(drawn, f.name)}
    assert changed <= {"seed", "phase"}
    assert attacks.group(name, dataset, seed=3) == drawn != attacks.group(name, dataset, seed=4)


def test_the_digits_have_a_twin_of_every_group():
    assert DIGITS.keys() == CIFAR10.keys()
    for name, twin in DIGITS.items():
        assert (type(twin), twin.target, twin.sources) == (
            type(CIFAR10[name]), CIFAR10[name].target, CIFAR10[name].sources
        )  # fmt: skip


def test_settings_of_the_papers():
    g1, l3 = attacks.group("G-1", "cifar10"), attacks.group("L-3", "cifar10")
    assert g1 == Global(amplitude=2, sources=(0,), target=9, per_source=150)
    assert l3 == LocalSquare(amplitude=50, sources=(0, 4, 5), target=1, per_source=300)
    assert attacks.group("patch-3", "cifar10", seed=1) == BadNets(size=3, target=3, rate=0.1, seed=1)
    assert attacks.group("paper", "gtsrb32") == attacks.group("paper", "gtsrb")


def test_phases_come_from_the_seed():
    lattices = {attacks.group("G-9", "digits", seed=s).phase for s in range(4)}
    boards = {attacks.group("A", "digits", seed=s).phase for s in range(2)}
    assert lattices == {(0, 0), (0, 1), (1, 0), (1, 1)} and boards == {0, 1}
    # a local chessboard is a Chessboard that keeps its phase
    assert isinstance(attacks.group("paper", "mnist", seed=1), Chessboard)
    assert attacks.group("paper", "mnist", seed=1).phase == 0


@pytest.mark.parametrize("dataset", [*GROUPS, "imagenette", "some/folder"])
def test_no_attack_is_a_group_of_every_data_set(dataset):
    assert attacks.group("C-0", dataset) is None


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("G-3", "mnist", "G-3.*'mnist'.*digits, cifar10"),
        ("G-3", "imagenette", "G-3.*'imagenette'.*digits, cifar10"),
        ("paper", "cifar10", "paper.*'cifar10'.*mnist, fashion-mnist, gtsrb, gtsrb32, cifar100"),
        ("paper", "mnist32", "'mnist32'"),
        ("G-2", "digits", "no attack group 'G-2'.*C-0, G-1.*paper"),
    ],
)
def test_a_group_without_settings_for_a_data_set_is_refused(name, dataset, message):
    with pytest.raises(AttackError, match=message):
        attacks.group(name, dataset)


@pytest.mark.parametrize("path", sorted((ROOT / "data/grids").glob("*.yml")), ids=lambda p: p.stem)
def test_grids_name_groups_that_there_are(path):
    for block in yaml.safe_load(path.read_text()).get("classifiers", []):
        for name in block["groups"]:
            attacks.group(name, block["dataset"])


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks/profiles").glob("*.yml")), ids=lambda p: p.stem)
def test_profiles_name_groups_that_there_are(path):
    for parameters in yaml.safe_load(path.read_text()).values():
        if "group" in parameters:
            attacks.group(parameters["group"], parameters["dataset"])


def test_classes_are_numbered_as_the_official_descriptions_do():
    """L-RED A.7.1: Fashion-MNIST {1} to 3, CIFAR-100 {1, ..., 15} to 21, GTSRB to the 120 kph sign, all from 0; MNIST has a
    class "10" there, so {5, 7, 10} to 9 counts from 1."""
    found = {d: attacks.group("paper", d) for d in ("fashion-mnist", "cifar100", "gtsrb", "mnist")}
    assert {d: (a.sources[0], a.sources[-1], a.target) for d, a in found.items()} == {
        "fashion-mnist": (1, 1, 3),
        "cifar100": (1, 15, 21),
        "gtsrb": (13, 30, 8),
        "mnist": (4, 9, 8),
    }
