"""Reading a sweep's table: what rules say of its rows, what is counted as right, under which name, beside what."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib import anomaly
from lib.experiments import tables

pytestmark = pytest.mark.long

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
FLAT = [9.0, 9.5, 10.0, 10.5, 11.0, 8.5, 8.0, 11.5, 12.0, 9.7]
LOW, WRONG = [*FLAT[:4], 0.1, *FLAT[5:]], [0.1, *FLAT[1:]]
TWO_LOW = [0.1, *LOW[1:]]


def rows_of(*rows, rule="gamma"):
    """(group, target, detector, n, norms): the rest as a sweep writes it."""
    table = pd.DataFrame(rows, columns=["group", "target", "detector", "n", "norms"])
    return table.assign(
        reached=[[True] * len(norms) for norms in table["norms"]], pair_norms=None, pair_reached=None
    )


@pytest.fixture
def table():
    return rows_of(
        ("G-3", 4, "l-red", 8, LOW),
        ("G-3", 4, "l-red", 8, WRONG),
        ("G-3", 4, "l-red", 8, FLAT),
        ("G-3", 4, "l-red", 2, LOW),
        ("C-0", None, "l-red", 8, FLAT),
        ("C-0", None, "u-red", 8, LOW),
    )


def test_a_rule_judges_the_norms_of_a_row_when_it_is_read(table):
    assert tables.verdicts(table, "gamma").tolist() == ["I", "III", "IV", "I", "IV", "III"]
    assert tables.verdicts(table, "gamma", "flags").tolist() == [[4], [0], [], [4], [], [4]]
    expected = [anomaly.judge(np.array(norms), "gamma").score for norms in table["norms"]]
    assert tables.verdicts(table, "gamma", "score").tolist() == expected
    both = tables.verdicts(rows_of(("G-3", 4, "usb", 8, TWO_LOW)), "mad")
    assert both.tolist() == ["II"]


def test_what_a_search_did_not_reach_is_no_all_clear(table):
    lost = table.assign(reached=[[t != 4 for t in range(10)]] * len(table))
    # class 4 is the target; where another is flagged that counts, and above the median 4 is a lower bound
    outcomes = ["inconclusive", "attacked", "nothing found", "inconclusive", "nothing found", "inconclusive"]
    assert tables.verdicts(lost, "mad", "outcome").tolist() == outcomes
    cases = ["inconclusive", "III", "IV", "inconclusive", "IV", "inconclusive"]
    assert tables.verdicts(lost, "mad").tolist() == cases
    assert tables.right(lost, "mad").tolist() == [False, False, False, False, True, False]


def test_right_is_the_target_alone_or_nothing_on_a_clean_classifier(table):
    assert tables.right(table).tolist() == [True, False, False, True, True, False]


def test_the_papers_rule_judges_pairs_where_the_method_has_them(table):
    rng = np.random.default_rng(0)
    pairs = rng.gamma(50, size=(10, 10))
    pairs[0, 4] = 0.01
    rows = table.assign(detector=["p-red", "nc-pairs", "l-red", *["u-red"] * 3])
    rows["pair_norms"], rows["pair_reached"] = [pairs.tolist()] * 6, [np.ones((10, 10), bool).tolist()] * 6
    assert tables.verdicts(rows, "gamma-pairs", "flags").tolist() == [[4]] * 6
    assert tables.verdicts(rows, "paper", "flags").tolist() == [[4], [0], [], [4], [], [4]]
    flat = rows.assign(pair_norms=[np.linspace(9, 12, 100).reshape(10, 10).T.tolist()] * 6)
    assert tables.verdicts(flat, "paper", "flags").tolist() == [[], [0], [], [4], [], [4]]


def test_a_rule_that_cannot_judge_a_row_leaves_it_empty(table):
    two = table.assign(norms=[[1.0, 2.0]] * 6, reached=[[True, True]] * 6)
    assert tables.verdicts(two, "gamma").isna().all() and tables.verdicts(two, "mad-or-quarter").notna().all()
    assert tables.verdicts(table, "gamma-pairs").isna().all()
    assert math.isnan(tables.verdicts(table, "gamma-pairs", "score")[0])


def test_a_rule_invented_for_the_occasion_judges_a_committed_table(monkeypatch):
    """No scan, no classifier: rows hold what was found, and rules are applied when they are read."""

    def half(norms):
        """Flags the smallest norm if it is below half of the second smallest."""
        order = np.argsort(norms)
        low = norms[order[0]] < 0.5 * norms[order[1]]
        return anomaly.Verdict("half", bool(low), (int(order[0]),) * bool(low), int(order[0]), 0.0, 0.0, 0.0)

    new = replace(anomaly.RULES["mad"], name="half", test=half)
    monkeypatch.setitem(anomaly.RULES, "half", new)
    table = pd.read_parquet(RESULTS / "digits.parquet")
    flags, norms = tables.verdicts(table, "half", "flags"), table["norms"]
    expected = [
        [int(a.argmin())] if np.sort(a)[0] < 0.5 * np.sort(a)[1] else [] for a in map(np.asarray, norms)
    ]
    assert flags.tolist() == expected and 0 < sum(map(len, expected)) < len(table)


@pytest.mark.parametrize("name", ["digits", "comparison", "comparison_images", "step_length"])
def test_every_rule_judges_every_row_of_a_committed_table(name):
    table = pd.read_parquet(RESULTS / f"{name}.parquet")
    # the verdict on pairs is on record in rows of old, their norms are not
    recorded = table["detector"].isin(["p-red", "nc-pairs"])
    judged = {"gamma-pairs": recorded, "mad-pairs": recorded & ("pair_norms" in table)}
    for rule in set(anomaly.RULES) - {"calibrated"}:
        found = tables.verdicts(table, rule)
        assert found[judged.get(rule, slice(None))].isin(["I", "II", "III", "IV"]).all(), rule
        assert found[~judged[rule]].isna().all() if rule in judged else True, rule


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


def test_old_rows_and_new_ones_are_read_in_one_table(table):
    old = pd.read_parquet(RESULTS / "digits.parquet").iloc[:5]
    both = pd.concat([table, old], ignore_index=True)
    assert tables.verdicts(both, "gamma").tolist()[:6] == tables.verdicts(table, "gamma").tolist()
    assert tables.verdicts(both, "paper").tolist()[6:] == tables.verdicts(old, "paper").tolist()
    weighed = pd.DataFrame(
        [{"target": 1.0, "weights": [[0, 1.0], [0.5, 0.5]]}, {"target": 1.0, "target_weights": [0.2, 0.8]}]
    )
    assert [list(tables.target_weights(row)) for _, row in weighed.iterrows()] == [[0.5, 0.5], [0.2, 0.8]]
