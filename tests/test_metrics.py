"""Metrics: counts, intervals and areas against what they are by definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from lib import anomaly, metrics


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_wilson_interval_holds_the_share_and_narrows(count, extra):
    total = count + extra
    low, high = metrics.Rate(count, total).interval
    assert 0 <= low <= high <= 1
    if total:
        assert low - 1e-9 <= count / total <= high + 1e-9
        wider = metrics.Rate(count, total, 0.99).interval
        assert wider[0] <= low + 1e-12 and wider[1] >= high - 1e-12


def test_target_images_never_count_as_successes():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    everything_to_two = torch.full_like(labels, 2)
    assert metrics.asr(everything_to_two, labels, 2).total == 4
    assert metrics.asr(everything_to_two, labels, 2, [0]).total == 2
    assert metrics.non_source_rate(everything_to_two, labels, 2, [0]).total == 2


@pytest.mark.parametrize(
    ("flags", "target", "case"),
    [
        ((1,), 1, "I"),
        ((1, 2), 1, "II"),
        ((2,), 1, "III"),
        ((2,), None, "III"),
        ((), 1, "IV"),
        ((), None, "IV"),
    ],
)
def test_cases(flags, target, case):
    assert metrics.case(flags, target) == case


@settings(deadline=None)  # scikit-learn is imported by the first call
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20)
)
def test_auc_is_the_chance_of_ranking_right(a, b):
    wins = sum((x > y) + 0.5 * (x == y) for x in a for y in b) / (len(a) * len(b))
    assert metrics.auc(torch.tensor(a), torch.tensor(b)) == pytest.approx(wins)


def test_collateral_damage_is_told_from_clean_confusion():
    labels = torch.tensor([0] * 100 + [1] * 100 + [2] * 50)
    clean, stamped = labels.clone(), labels.clone()
    clean[100:104] = 2
    stamped[100:104] = 2
    stamped[:30] = 2
    found = {c.label: c for c in metrics.collateral_damage(stamped, clean, labels, 2)}
    assert set(found) == {0, 1} and found[0].suffers() and not found[1].suffers()
    assert found[0].stamped.value == 0.3 and found[1].clean.count == 4


def test_collateral_damage_compares_the_same_images():
    """A class of which 40 of 100 arrive anyway: 12 more with the pattern are no chance, for none of the 40 is lost."""
    labels, clean = torch.zeros(100, dtype=torch.long), torch.zeros(100, dtype=torch.long)
    clean[:40] = 1
    stamped = clean.clone()
    stamped[40:52] = 1
    (found,) = metrics.collateral_damage(stamped, clean, labels, 1)
    assert found.p_value == pytest.approx(0.5**12) and (found.stamped.count, found.clean.count) == (52, 40)
    stamped[:12] = 0  # as many lost as gained
    assert metrics.collateral_damage(stamped, clean, labels, 1)[0].p_value > 0.5
    assert metrics.collateral_damage(clean, clean, labels, 1)[0].p_value == 1


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.5, 0.999))
def test_wilson_interval_against_its_formula(count, more, confidence):
    n = count + more
    p, z = count / n, norm.ppf(0.5 + confidence / 2)
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wanted = [max(0, (centre - half) / (1 + z * z / n)), min(1, (centre + half) / (1 + z * z / n))]
    assert metrics.Rate(count, n, confidence).interval == pytest.approx(wanted, abs=1e-12)


@pytest.mark.filterwarnings("ignore:Only one class")
def test_auc_of_infinite_scores_and_of_none():
    far = torch.tensor([math.inf, 1.0])
    assert metrics.auc(far, torch.tensor([-math.inf, math.inf])) == pytest.approx(0.625)
    assert math.isnan(metrics.auc(torch.tensor([]), torch.tensor([1.0])))


def test_sources_never_hold_the_target():
    labels = torch.tensor([0, 1, 2, 2, 3])
    assert metrics.of_sources(labels, 2).tolist() == [True, True, False, False, True]
    assert metrics.of_sources(labels, 2, [2, 3]).tolist() == [False, False, False, False, True]
    assert not metrics.of_sources(labels, 2, []).any()


def test_an_inconclusive_verdict_is_no_case_iv():
    ten = [2.0, 2.1, 1.9, 2.2, 2.05, 1.95, 2.15, 1.85, 2.3, 0.3]
    lost = anomaly.judge(anomaly.Norms(np.array(ten), np.array([True] * 9 + [False])), "mad")
    found = anomaly.judge(np.array(ten), "mad")
    assert metrics.case_of(lost, None) == metrics.case_of(lost, 9) == "inconclusive"
    assert [metrics.case_of(found, t) for t in (9, 3, None)] == ["I", "III", "III"]


def test_a_share_that_is_a_whole_number_of_scores_is_used_up():
    scores = torch.arange(100.0)
    assert [metrics.threshold_at(scores, k / 100) for k in range(100)] == [99.0 - k for k in range(100)]
