"""Reading a sweep's table: what is counted as right, under which name, and beside what."""

import json

import pandas as pd
import pytest

from lib.experiments import tables


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
    table = pd.DataFrame(rows, columns=["group", "target", "detector", "n", "gamma_case"])
    return table.assign(gamma_pairs_case=None)


def test_right_is_the_target_alone_or_nothing_on_a_clean_classifier(table):
    assert tables.right(table).tolist() == [True, False, False, True, True, False]


def test_the_papers_rule_judges_pairs_where_the_method_has_them(table):
    rows = table.assign(detector=["p-red", "nc-pairs", "l-red", *["u-red"] * 3], gamma_pairs_case="III")
    assert tables.verdicts(rows, "paper").tolist() == ["III", "II", "IV", "I", "IV", "III"]
    assert tables.verdicts(rows, "gamma").tolist() == table["gamma_case"].tolist()
    assert tables.verdicts(rows, "gamma-pairs").tolist() == ["III"] * 6


def test_standing_is_the_target_over_the_median_of_the_others():
    rows = pd.DataFrame({"norms": [[1.0, 2.0, 4.0, 6.0], [1.0, 2.0, 3.0, 4.0]], "target": [0, None]})
    found = tables.standing(rows)
    assert found[0] == 0.25 and pd.isna(found[1])


def test_an_attack_works_when_it_meets_both_marks():
    rows = pd.DataFrame({"asr": [0.9, 0.89, 1.0], "cta": [0.97, 0.99, 0.96], "clean_cta": [0.98, 0.98, 0.99]})
    assert tables.works(rows).tolist() == [True, False, False]


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
