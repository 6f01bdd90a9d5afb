"""What every rule of the register must do with norms: theorems, a planted truth, and its error rate by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.anomaly import RULES, anomaly_index

pytestmark = pytest.mark.long

each = pytest.mark.parametrize("name", RULES)
some = settings(deadline=None, max_examples=10)


def null(name, rng, k=10):
    """Norms of a clean model under the rule's own null: Gamma statistics 1 / norm, or normal norms."""
    shape = (k, k) if RULES[name].judges == "pairs" else (k,)
    return 1 / rng.gamma(10.0, size=shape) if RULES[name].gives_p else 10 + rng.normal(size=shape)


def planted(name, norms, target, factor):
    """The same norms with a class, or a class as the target of one source, that has a fraction of the smallest."""
    norms = norms.copy()
    norms[(target - 1, target) if norms.ndim == 2 else target] = factor * norms.min()
    return norms


def renumbered(norms, order):
    return norms[np.ix_(*[order] * norms.ndim)]


@each
@some
@given(seed=st.integers(0, 999), power=st.integers(-30, 30), k=st.integers(3, 12))
def test_the_unit_of_the_norms_does_not_matter(name, seed, power, k):
    norms = null(name, np.random.default_rng(seed), k)
    one, other = RULES[name](norms), RULES[name](norms * 2.0**power)
    assert (one.targets, one.suspect) == (other.targets, other.suspect)
    assert one.score == pytest.approx(other.score, rel=1e-6, abs=1e-9)


@each
@some
@given(seed=st.integers(0, 999), order=st.permutations(range(8)))
def test_the_numbers_of_the_classes_do_not_matter(name, seed, order):
    norms = planted(name, null(name, np.random.default_rng(seed), 8), 3, 0.7)
    one, other = RULES[name](norms), RULES[name](renumbered(norms, order))
    assert [order[t] for t in other.targets] == list(one.targets) and order[other.suspect] == one.suspect
    assert one.score == pytest.approx(other.score, rel=1e-6, abs=1e-9)


@each
@pytest.mark.parametrize("k", [5, 10, 43])
def test_a_planted_class_is_flagged(name, k):
    norms = planted(name, null(name, np.random.default_rng(k), k), 2, 0.02)
    verdict = RULES[name](norms)
    assert verdict.attacked and verdict.targets[0] == verdict.suspect == 2 and verdict.rule == name
    assert verdict.targets == (2,) or not RULES[name].gives_p, "a rule that gives a p-value flags one class"


@each
@pytest.mark.parametrize("k", [3, 4, 10])
def test_norms_that_are_alike_are_not_flagged(name, k):
    alike = np.full((k, k) if RULES[name].judges == "pairs" else k, 1.7)
    assert not RULES[name](alike).attacked
    above = alike.copy()
    above[(1, 2) if above.ndim == 2 else 1] = 40.0
    assert 1 not in RULES[name](above).targets, "a large norm is no backdoor's"


@pytest.mark.parametrize(
    "name", [name for name in RULES if name != "calibrated"]
)  # minutes: see test_anomaly.py
@pytest.mark.parametrize("k", [5, 10])
def test_a_rule_flags_as_many_clean_models_as_it_says(name, k):
    """Within four standard errors of both simulations, this one and the rule's own."""
    rng, n = np.random.default_rng(k), 1500
    found = np.mean([RULES[name](null(name, rng, k)).attacked for _ in range(n)])
    told = RULES[name].false_alarms(k)
    own = RULES[name](null(name, rng, k)).false_positive_rate
    assert own == pytest.approx(told, abs=0.02 * (name == "mad-or-quarter")), (
        "the union's follows the norms' spread"
    )
    assert found == pytest.approx(told, abs=4 * math.sqrt(told * (1 - told) * (1 / n + 1 / 4000)))


@each
def test_a_stricter_level_never_flags_more(name):
    levels, rng = (0.001, 0.01, 0.05, 0.2), np.random.default_rng(1)
    for factor in (0.5, 0.7, 0.9, 1.0):
        norms = planted(name, null(name, rng), 4, factor)
        called = [RULES[name](norms, level) for level in levels]
        assert [v.attacked for v in called] == sorted(v.attacked for v in called)
        assert len({v.score for v in called}) == 1
        if RULES[name].gives_p:
            assert [v.attacked for v in called] == [v.p_value < level for v, level in zip(called, levels)]
        else:
            assert len(set(called)) == 1
    alarms = [RULES[name].false_alarms(10, level) for level in levels]
    assert alarms == sorted(alarms) and (len(set(alarms)) == len(levels)) == RULES[name].gives_p


def test_the_anomaly_index_counts_standard_deviations():
    """Of normal norms, as Neural Cleanse's 1.4826 has it; an index above 2 is flagged, and no smaller one."""
    a = np.random.default_rng(0).normal(50, 3, size=20_001)
    np.testing.assert_allclose(anomaly_index(a), np.abs(a - np.median(a)) / 3, rtol=0.03)
    for name in ("mad", "mad-or-quarter"):
        for index in (1.99, 2.01):
            norms = np.array([10 - 1.4826 * index, 9, 9, 10, 10, 11, 11])
            assert RULES[name](norms).attacked == (index > 2)
            assert RULES[name](norms).score == pytest.approx(index)


def test_a_quarter_of_the_median_is_enough_for_the_rule_that_says_so():
    for smallest in (2.24, 2.26):  # the median is 9, and no index is above 2
        norms = np.array([13, 5, smallest, 9, 17])
        assert RULES["mad-or-quarter"](norms).targets == ((2,) if smallest < 2.25 else ())
        assert not RULES["mad"](norms).attacked
