"""Verdicts: p-values against simulation and high-precision arithmetic, and every edge."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lib import anomaly

clean = [0.52, 0.48, 0.61, 0.45, 0.57, 0.50, 0.55, 0.43, 0.49, 0.53]
attacked = [*clean[:9], 1.6]


def test_order_statistic_p_value_is_uniform_when_the_null_is_known():
    x = np.random.default_rng(0).gamma(3.0, size=(4000, 10)).max(1)
    p = np.exp(anomaly.log_order_p(anomaly.log_survival(x, 3.0), 10))
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("shape", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("x", [5.0, 400.0, 800.0, 3000.0, 1e6])
def test_log_survival_against_high_precision(x, shape):
    with mpmath.workdps(50):
        exact = mpmath.log(mpmath.gammainc(shape, x) / mpmath.gamma(shape))
    assert float(anomaly.log_survival(x, shape)) == pytest.approx(float(exact), rel=1e-9)


@given(st.floats(-2000, -1e-3), st.integers(2, 200))
def test_log_order_p_against_high_precision(log_s, k):
    with mpmath.workdps(900):
        exact = mpmath.log(1 - (1 - mpmath.exp(log_s)) ** k)
    assert float(anomaly.log_order_p(np.array(log_s), k)) == pytest.approx(float(exact), rel=1e-6, abs=1e-9)


def test_p_value_agrees_with_scipy_where_scipy_can():
    r = np.sort(clean)
    shape, _, scale = stats.gamma.fit(r[:-1], floc=0)
    direct = 1 - stats.gamma.cdf(r[-1], shape, scale=scale) ** len(r)
    assert anomaly.gamma(np.array(clean)).p_value == pytest.approx(direct, rel=1e-3)


@given(st.floats(0.3, 200), st.integers(0, 1000))
def test_gamma_fit_is_a_maximum_of_the_likelihood(shape, seed):
    x = np.random.default_rng(seed).gamma(shape, size=20)
    a, scale = anomaly.fit_gamma(x)
    best = stats.gamma.logpdf(x, a, scale=scale).sum()
    assert all(best >= stats.gamma.logpdf(x, a * f, scale=scale * g).sum() - 1e-9 for f, g in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95), (1.05, 1 / 1.05)))  # fmt: skip


def test_p_values_do_not_underflow():
    far = np.array([*clean[:9], 1e5])
    verdict = anomaly.gamma(far)
    assert verdict.score < math.log(1e-300) and math.isfinite(verdict.score) and verdict.targets == (9,)


@pytest.mark.parametrize("rule", anomaly.RULES)
def test_every_rule_finds_what_stands_out_and_carries_its_error_rate(rule):
    yes, no = (anomaly.judge(1 / torch.tensor(r), rule) for r in (attacked, clean))
    assert yes.attacked and yes.targets[0] == yes.suspect == 9
    assert no.score_name == yes.score_name and 0 < yes.false_positive_rate < 1
    if rule.startswith("mad"):
        assert yes.p_value is None
    else:
        assert not no.attacked and no.targets == ()


@given(st.permutations(range(10)), st.floats(0.01, 100))
def test_scale_and_order_do_not_matter(order, factor):
    r = np.array(attacked)[list(order)] * factor
    verdict = anomaly.gamma(r)
    assert verdict.suspect == order.index(9)
    assert verdict.score == pytest.approx(anomaly.gamma(np.array(attacked)).score, rel=1e-6)


def test_calibrated_rule_keeps_its_level_and_the_plain_one_does_not():
    null = np.random.default_rng(3).gamma(8.0, size=(300, 10))
    calibrated = [anomaly.calibrated(x, draws=499).attacked for x in null]
    plain = [anomaly.gamma(x).attacked for x in null]
    assert stats.binomtest(sum(calibrated), 300, 0.05).pvalue > 0.01
    assert np.mean(plain) == pytest.approx(anomaly.gamma_false_positive_rate(10), abs=0.08)
    assert np.mean(plain) > 0.15


def test_mad_false_positive_rate_matches_fresh_draws():
    a = 10 + np.random.default_rng(9).normal(size=(1500, 10))
    assert np.mean([anomaly.mad(x).attacked for x in a]) == pytest.approx(
        anomaly.mad_false_positive_rate(10), abs=0.04
    )
    assert anomaly.mad_false_positive_rate(43) > anomaly.mad_false_positive_rate(10)


def test_two_classes():
    with pytest.raises(anomaly.AnomalyError, match="at least 3 classes"):
        anomaly.gamma(np.array([1.0, 2.0]))
    assert not anomaly.mad(np.array([1.0, 100.0])).attacked


def test_ties_and_no_spread():
    assert not anomaly.mad(np.array([3.0, 3.0, 3.0, 3.0])).attacked
    lone = anomaly.mad(np.array([3.0, 3.0, 3.0, 1.0]))
    assert lone.targets == (3,) and lone.score == math.inf
    assert anomaly.gamma(np.array([1.0, 1.0, 1.0, 1.0])).score > math.log(0.05)
    assert anomaly.gamma(np.array([1.0, 1.0, 1.0, 2.0])).targets == (3,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("rule", ["gamma", "calibrated", "mad", "mad-or-quarter"])
def test_impossible_statistics_name_the_class(bad, rule):
    with pytest.raises(anomaly.AnomalyError, match="class 2 is"):
        anomaly.RULES[rule](np.array([1.0, 2.0, bad, 3.0]))


def test_unknown_rule():
    with pytest.raises(anomaly.AnomalyError, match="allowed are gamma"):
        anomaly.judge(torch.ones(4), "sigma")


def test_quarter_rule_is_the_union():
    a = np.array([1.0, 5.0, 9.0, 13.0, 17.0])
    assert not anomaly.mad(a).attacked and anomaly.mad_or_quarter(a).targets == (0,)


def test_mad_never_flags_a_large_norm():
    a = np.array([10.0, 10.1, 9.9, 10.05, 9.95, 40.0])
    assert anomaly.mad(a).targets == () and anomaly.mad(a).score < 2


def test_pairs_find_a_planted_pair_and_ignore_the_diagonal():
    r = np.random.default_rng(0).gamma(10.0, size=(6, 6))
    np.fill_diagonal(r, np.nan)
    r[2, 4] = 60.0
    verdict = anomaly.gamma_pairs(r)
    assert verdict.targets == (4,) and verdict.p_value < 1e-3
    assert anomaly.judge(torch.ones(6), "gamma", pair_norms=torch.tensor(1 / r)) == verdict
