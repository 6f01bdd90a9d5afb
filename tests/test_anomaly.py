"""Verdicts: p-values against simulation and high-precision arithmetic, and every edge."""

import json
import math
from dataclasses import asdict

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


of_classes = [name for name, rule in anomaly.RULES.items() if rule.judges == "classes"]


def pairs(seed, k=6):
    r = np.random.default_rng(seed).gamma(10.0, size=(k, k))
    np.fill_diagonal(r, np.nan)
    return r


def test_rules_are_those_of_the_chapters():
    rules = anomaly.RULES.items()
    assert list(anomaly.RULES) == ["gamma", "gamma-pairs", "calibrated", "mad", "mad-pairs", "mad-or-quarter"]
    assert [name for name, rule in rules if rule.judges == "pairs"] == ["gamma-pairs", "mad-pairs"]
    assert [name for name, rule in rules if not rule.gives_p] == ["mad", "mad-pairs", "mad-or-quarter"]


@pytest.mark.parametrize("rule", of_classes)
def test_every_rule_finds_what_stands_out_and_carries_its_error_rate(rule):
    yes, no = (anomaly.judge(1 / torch.tensor(r), rule) for r in (attacked, clean))
    assert yes.attacked and yes.targets[0] == yes.suspect == 9
    assert yes.score_name == no.score_name == anomaly.RULES[rule].score
    # that of the union follows the spread of the norms too
    told = anomaly.RULES[rule].false_alarms(10)
    assert abs(yes.false_positive_rate - told) <= 0.02 * (rule == "mad-or-quarter") and 0 < told < 1
    assert anomaly.RULES[rule](1 / torch.tensor(attacked)) == yes
    if anomaly.RULES[rule].gives_p:
        assert not no.attacked and no.targets == () and yes.p_value == pytest.approx(math.exp(yes.score))
    else:
        assert (
            yes.p_value is None
            and yes.score == anomaly.judge(1 / torch.tensor(attacked), rule, level=0.5).score
        )


@pytest.mark.parametrize("rule", anomaly.RULES)
def test_a_verdict_is_plain_json(rule):
    k_norms = 1 / torch.tensor(attacked)[: len(pairs(0))]
    verdict = anomaly.judge(anomaly.Norms(k_norms, pair_norms=torch.tensor(1 / pairs(0))), rule)
    document = json.loads(json.dumps(asdict(verdict), allow_nan=False))
    assert document["rule"] == rule and tuple(document["targets"]) == verdict.targets


@pytest.mark.parametrize("rule", anomaly.RULES)
def test_a_rule_says_how_many_classes_it_needs(rule):
    how = anomaly.RULES[rule]
    norms = np.ones((how.least, how.least)) if how.judges == "pairs" else np.ones(how.least)
    how(norms)
    with pytest.raises(anomaly.AnomalyError, match=rf"(at least|K >=) {how.least}"):
        how(norms[1:, 1:] if how.judges == "pairs" else norms[1:])


@pytest.mark.parametrize("rule", of_classes)
def test_classes_without_a_full_search_are_left_out(rule):
    norms = 1 / torch.tensor(attacked)
    some = torch.cat([norms[:3], torch.full((2,), math.nan), norms[3:]])
    every, few = anomaly.judge(norms, rule), anomaly.judge(some, rule)
    assert few.targets == tuple(t + 2 * (t >= 3) for t in every.targets) and few.suspect == 11
    assert (few.score, few.false_positive_rate) == (every.score, every.false_positive_rate)
    with pytest.raises(anomaly.AnomalyError, match="at least"):
        anomaly.judge(torch.tensor([1.0, *[math.nan] * 9]), rule)


def test_verdicts_are_of_every_rule_that_can():
    norms, pair_norms = 1 / torch.tensor(attacked[4:]), torch.tensor(1 / pairs(0))
    scan = anomaly.Norms(norms=norms, pair_norms=pair_norms)
    found = anomaly.verdicts(scan, level=0.01)
    assert list(found) == list(anomaly.RULES)
    assert found["gamma-pairs"] == anomaly.judge(
        anomaly.Norms(norms, pair_norms=pair_norms), "gamma-pairs", level=0.01
    )
    assert found["gamma"].threshold == math.log(0.01)
    assert list(anomaly.verdicts(anomaly.Norms(norms=norms, pair_norms=None))) == of_classes
    two = anomaly.Norms(norms=norms[:2], pair_norms=pair_norms[:2, :2])
    assert list(anomaly.verdicts(two)) == ["mad-or-quarter"]


@given(st.permutations(range(10)), st.floats(0.01, 100))
def test_scale_and_order_do_not_matter(order, factor):
    r = np.array(attacked)[list(order)] * factor
    verdict = anomaly.gamma(r)
    assert verdict.suspect == order.index(9)
    assert verdict.score == pytest.approx(anomaly.gamma(np.array(attacked)).score, rel=1e-6)


@pytest.mark.long
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


@pytest.mark.parametrize("k", [5, 10, 43])
def test_the_quarter_rule_carries_the_rate_of_the_union(k):
    """More than MAD's where norms spread: of positive normal ones with a mean of two standard deviations."""
    told = anomaly.union_false_positive_rate(k, 2.0)
    a = 2 + np.random.default_rng(5).normal(size=(6000, 3 * k))
    a = np.stack([x[x > 0][:k] for x in a])
    assert np.mean([anomaly.mad_or_quarter(x).attacked for x in a]) == pytest.approx(told, abs=0.025)
    assert told > anomaly.mad_false_positive_rate(k) + 0.03
    assert anomaly.union_false_positive_rate(k, 20.0) == pytest.approx(
        anomaly.mad_false_positive_rate(k), abs=0.02
    )
    steady, spread = 10 + np.linspace(-1, 1, k), 10 + np.linspace(-9, 9, k)
    of = [anomaly.mad_or_quarter(a).false_positive_rate for a in (steady, spread)]
    assert of[0] < of[1], "its own norms decide"
    strict = anomaly.mad_or_quarter(steady, threshold=4.0).false_positive_rate
    assert strict < of[0], "and so does the threshold that was asked for"


def test_a_pair_without_a_working_trigger_is_not_flagged():
    """Its norm may lie among the smallest, above the median of the few that were reached."""
    norms = 100 + np.random.default_rng(0).uniform(-1, 1, size=(6, 6))
    reached = np.zeros((6, 6), dtype=bool)
    for pair, norm in {(0, 1): 1.0, (2, 3): 2.0, (4, 5): 3.0}.items():
        norms[pair], reached[pair] = norm, True
    norms[1, 2] = 2.5
    found = anomaly.judge(anomaly.Norms(np.ones(6), pair_norms=norms, pair_reached=reached), "mad-pairs")
    assert found.pairs == ((0, 1), (2, 3), (4, 5)) and found.targets == (1, 3, 5) and found.attacked
    every = anomaly.judge(anomaly.Norms(np.ones(6), pair_norms=norms), "mad-pairs")
    assert (1, 2) in every.pairs


def test_pairs_are_judged_all_together_and_named():
    """Neural Cleanse's Sec. VII-E: one list of K(K-1) norms, of which small ones are pairs, and not classes."""
    norms = 10 + np.random.default_rng(0).uniform(-1, 1, size=(6, 6))
    norms[4, 2], norms[1, 2], norms[0, 5] = 1.0, 2.0, 3.0
    np.fill_diagonal(norms, 0.001)
    found = anomaly.mad_pairs(norms)
    assert found.pairs == ((4, 2), (1, 2), (0, 5)) and found.targets == (2, 5) and found.suspect == 2
    flat = anomaly.mad(norms[~np.eye(6, dtype=bool)])
    assert (found.score, found.false_positive_rate) == (flat.score, flat.false_positive_rate)
    assert found.false_positive_rate > anomaly.mad(norms[0, 1:]).false_positive_rate, "thirty values, not six"
    one = anomaly.gamma_pairs(1 / norms)
    assert one.pairs == ((4, 2),) and one.targets == (2,)


def test_two_classes():
    with pytest.raises(anomaly.AnomalyError, match="at least 3 classes"):
        anomaly.gamma(np.array([1.0, 2.0]))
    with pytest.raises(anomaly.AnomalyError, match="at least 3 classes"):  # it could never flag one of two
        anomaly.mad(np.array([1.0, 100.0]))


def test_ties_and_no_spread():
    assert not anomaly.mad(np.array([3.0, 3.0, 3.0, 3.0])).attacked
    lone = anomaly.mad(np.array([3.0, 3.0, 3.0, 1.0]))
    assert lone.targets == (3,) and lone.score == math.inf
    assert anomaly.gamma(np.array([1.0, 1.0, 1.0, 1.0])).score > math.log(0.05)
    assert anomaly.gamma(np.array([1.0, 1.0, 1.0, 2.0])).targets == (3,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("rule", of_classes)
def test_impossible_statistics_name_the_class(bad, rule):
    with pytest.raises(anomaly.AnomalyError, match="class 2 is"):
        anomaly.RULES[rule](np.array([1.0, 2.0, bad, 3.0]))
    if not math.isnan(bad):
        with pytest.raises(anomaly.AnomalyError, match="the norm of class 3 is"):
            anomaly.judge(torch.tensor([1.0, math.nan, 2.0, bad, 3.0]), rule)


@pytest.mark.parametrize("bad", [float("inf"), 0.0, -1.0])
def test_an_impossible_pair_is_named(bad):
    r = pairs(0)
    r[1, 3] = bad
    with pytest.raises(anomaly.AnomalyError, match="pair 1 to 3 is"):
        anomaly.gamma_pairs(r)


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
    r = pairs(0)
    r[2, 4] = 60.0
    verdict = anomaly.gamma_pairs(r)
    assert verdict.targets == (4,) and verdict.p_value < 1e-3
    assert (
        anomaly.judge(anomaly.Norms(torch.ones(6), pair_norms=torch.tensor(1 / r)), "gamma-pairs") == verdict
    )
    assert verdict.false_positive_rate == anomaly.RULES["gamma-pairs"].false_alarms(6)


def test_a_rule_on_pairs_is_asked_for_by_name():
    norms = 1 / torch.tensor(attacked)
    pair_norms = torch.tensor(1 / pairs(0, k=10))
    assert anomaly.judge(anomaly.Norms(norms, pair_norms=pair_norms), "gamma") == anomaly.judge(
        norms, "gamma"
    )
    with pytest.raises(anomaly.AnomalyError, match="'gamma-pairs' judges the norms of all pairs"):
        anomaly.judge(norms, "gamma-pairs")


def scan_of(norms, unreached=(), **more):
    reached = [t not in unreached for t in range(len(norms))]
    return anomaly.Norms(torch.tensor(norms), torch.tensor(reached), **more)


ten = [2.0, 2.1, 1.9, 2.2, 2.05, 1.95, 2.15, 1.85, 2.3, 0.3]


@pytest.mark.parametrize("rule", of_classes)
def test_nothing_reached_is_no_all_clear(rule):
    verdict = anomaly.judge(scan_of(ten, unreached=range(10)), rule)
    assert verdict.outcome == "inconclusive" and not verdict.attacked and verdict.targets == ()
    assert verdict.unreached == tuple(range(10)) and math.isnan(verdict.score) and verdict.suspect == 9
    # whatever the norms are: nobody has said that they are norms of triggers
    assert anomaly.judge(scan_of([0.0, math.inf, *ten[2:]], range(10)), rule).outcome == "inconclusive"


@pytest.mark.parametrize("rule", of_classes)
def test_a_small_norm_counts_only_where_the_class_was_reached(rule):
    found = anomaly.judge(scan_of(ten), rule)
    assert found.outcome == "attacked" and found.targets == (9,) and found.unreached == ()
    lost = anomaly.judge(scan_of(ten, unreached=[9]), rule)
    assert lost.outcome == "inconclusive" and lost.unreached == (9,)
    # the same judgement as of the nine others, under their own numbers
    nine = anomaly.judge(torch.tensor(ten[:9]), rule)
    assert (lost.score, lost.suspect, lost.false_positive_rate) == (
        nine.score,
        nine.suspect,
        nine.false_positive_rate,
    )


@pytest.mark.parametrize("rule", of_classes)
def test_a_class_left_out_keeps_the_numbers_of_the_others(rule):
    verdict = anomaly.judge(scan_of([0.01, *ten], unreached=[0]), rule)
    assert verdict.outcome == "attacked" and verdict.targets == (10,) and verdict.unreached == (0,)


@pytest.mark.parametrize("rule", of_classes)
def test_above_the_median_an_unreached_norm_is_the_lower_bound_that_it_is(rule):
    flat = [2.0, 2.1, 1.9, 2.2, 2.05, 1.95, 2.15, 1.85, 2.3, 2.5]
    whole, bound = (anomaly.judge(scan_of(flat, unreached), rule) for unreached in ([], [9]))
    assert bound == whole and bound.outcome == "nothing found"
    # at the median of the reached, or below it, it says nothing
    at = [2.0, 2.1, 1.9, 2.2, 2.05, 1.95, 2.15, 1.85, 2.3, float(np.median(flat[:9]))]
    assert anomaly.judge(scan_of(at, [9]), rule).outcome == "inconclusive"


def test_pairs_are_left_out_one_by_one():
    r = pairs(0)
    k = len(r)
    norms, every = torch.ones(k), torch.ones(k, k, dtype=torch.bool)
    found = anomaly.judge(anomaly.Norms(norms, None, torch.tensor(1 / r), every), "gamma-pairs")
    assert found == anomaly.gamma_pairs(r)
    some = every.clone()
    smallest = np.unravel_index(np.where(np.eye(k, dtype=bool), -np.inf, r).argmax(), r.shape)
    some[tuple(map(int, smallest))] = False
    lost = anomaly.judge(anomaly.Norms(norms, None, torch.tensor(1 / r), some), "gamma-pairs")
    assert lost.unreached == (int(smallest[1]),) and lost.score != found.score
    left = r.copy()
    left[smallest] = np.nan
    assert lost.score == anomaly.gamma_pairs(left).score
    nothing = anomaly.judge(anomaly.Norms(norms, None, torch.tensor(1 / r), ~every), "gamma-pairs")
    assert nothing.outcome == "inconclusive" and nothing.unreached == tuple(range(k))


def test_pairs_of_another_number_of_classes_are_refused():
    with pytest.raises(anomaly.AnomalyError, match=r"\(5, 5\) is needed"):
        anomaly.judge(anomaly.Norms(torch.ones(5), pair_norms=torch.ones(6, 6)), "gamma-pairs")


@pytest.mark.parametrize("level", [0, 1, -0.1, 2, float("nan")])
def test_a_level_is_a_probability(level):
    with pytest.raises(anomaly.AnomalyError, match="level = "):
        anomaly.judge(torch.tensor(ten), "gamma", level=level)


@pytest.mark.parametrize(
    "r",
    [
        [0.52, 0.48, 0.61, 0.45, 0.57, 0.50, 0.55, 0.43, 0.49, 0.7],
        [0.01, 0.3, 0.05, 0.6, 0.02, 0.4, 0.1, 3.0],
    ],
)
def test_the_calibrated_rule_draws_from_the_fit_without_the_largest(r):
    shape, _ = anomaly.fit_gamma(np.sort(r)[:-1])
    null = anomaly.log_p_values(np.random.default_rng(0).gamma(shape, size=(999, len(r))))
    p = (1 + (null <= anomaly.log_p_values(np.array(r))).sum()) / 1000
    assert anomaly.calibrated(np.array(r), draws=999).p_value == pytest.approx(p)


def test_the_median_is_that_of_the_reached_however_many_are_not():
    found = anomaly.Norms(np.array([1.0, 2.0, 3.0, 10.0, 10.0, 10.0, 10.0]), np.arange(7) < 3)
    assert anomaly.judge(found, "mad").unreached == ()
