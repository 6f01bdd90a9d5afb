"""Reading a sweep's table: what is counted as right, under which name, and beside what."""

import json

import pandas as pd
import pytest

from lib import tables


@pytest.fixture
def table():
    rows = [  # group, target, detector, n, case under gamma
        ("G-3", 9, "l-red", 8, "I"),
        ("G-3", 9, "l-red", 8, "II"),
        ("G-3", 9, "l-red", 8, "IV"),
        ("G-3", 9, "l-red", 2, "I"),
        ("C-0", None, "l-red", 8, "IV"),
        ("C-0", None, "u-red", 8, "III"),
    ]
    return pd.DataFrame(rows, columns=["group", "target", "detector", "n", "gamma_case"])


def test_right_is_the_target_alone_or_nothing_on_a_clean_classifier(table):
    assert tables.successes(table).tolist() == [True, False, False, True, True, False]


def test_l_red_with_two_images_is_a_method_of_its_own(table):
    rates = tables.detection_rates(table)
    assert {g: {m: r.fraction for m, r in row.items()} for g, row in rates.items()} == {
        "G-3": {"L-RED": "1/3", "L-RED'": "1/1"},
        "C-0": {"L-RED": "1/1", "U-RED": "0/1"},
    }


def test_paired_rows_are_of_the_same_classifier():
    rows = [
        ("digits", "G-3", s, json.dumps({"delta": 0.001} if slow else {}))
        for slow in (1, 0)
        for s in (2, 0, 1)
    ]
    rows.append(("digits", "G-3", 7, "{}"))  # no partner
    table = pd.DataFrame(rows, columns=["dataset", "group", "seed", "settings"])
    chosen, default = tables.paired(table, {"delta": 0.001})
    assert chosen["seed"].tolist() == default["seed"].tolist() == [0, 1, 2]
    assert set(default["settings"]) == {"{}"} and "{}" not in set(chosen["settings"])
