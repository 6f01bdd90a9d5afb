"""The rules, and what each concludes from the norms of a scan: a Verdict. The arithmetic is in `nulls`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np

from .nulls import (
    anomaly_index,
    fit_gamma,
    gamma_false_positive_rate,
    log_p_values,
    mad_false_positive_rate,
    null_log_p,
    pairs_false_positive_rate,
    small,
    union_false_positive_rate,
)

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray
ATTACKED, NOTHING, INCONCLUSIVE = "attacked", "nothing found", "inconclusive"
LOG_P = "log p-value"
SMALLEST = "anomaly index of the smallest norm"


class AnomalyError(ValueError):
    """Statistics that no rule can judge."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says of one model.

    rule: its name in RULES.
    attacked: is any class flagged?
    targets: flagged classes, most suspicious first.
    suspect: the most suspicious class, whether flagged or not.
    score: log p-value (Gamma rules) or anomaly index of the smallest norm (MAD rules); NaN where too few classes
        were reached to judge any.
    threshold: on the score, at the level asked for.
    false_positive_rate: share of clean models that the rule flags under its own null for this K.
    unreached: classes that were left out because no working trigger was found for them.
    pairs: (source, target) of the flagged pairs, most suspicious first, where the rule judges pairs.
    """

    rule: str
    attacked: bool
    targets: tuple[int, ...]
    suspect: int
    score: float
    threshold: float
    false_positive_rate: float
    unreached: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def outcome(self) -> str:
        """ "attacked", "nothing found", or "inconclusive": nothing is flagged, and classes had to be left out."""
        return ATTACKED if self.attacked else INCONCLUSIVE if self.unreached else NOTHING

    @property
    def flagged(self) -> str:
        """The flagged classes in words: "3", "3, 7", or "nothing"."""
        return ", ".join(map(str, self.targets)) or "nothing"

    @property
    def score_name(self) -> str:
        """What the score is, in words."""
        return RULES[self.rule].score

    @property
    def p_value(self) -> float | None:
        """exp(score) for the Gamma rules, 0.0 below about 1e-308 (read `score` then); else None."""
        return math.exp(self.score) if RULES[self.rule].gives_p else None


@dataclass(frozen=True)
class Rule:
    """A way to turn norms, of which small ones are suspicious, into a verdict: `rule(norms)`.

    name: as in RULES.
    judges: the K norms of "classes", or the (K, K) norms of "pairs", row = source, column = target.
    score: what its verdicts' score is, in words.
    least: the number of classes that it needs.
    test: the function behind it, of statistics 1 / norm where it gives a p-value, else of norms.
    alarms: K, level -> what `false_alarms` returns.
    finest: the level that no p-value of it falls below: at that level or a finer one it could flag nothing.
    """

    name: str
    judges: Literal["classes", "pairs"]
    score: str
    least: int
    test: Callable[..., Verdict]
    alarms: Callable[[int, float], float]
    finest: float = 0.0

    @property
    def gives_p(self) -> bool:
        """Is the score a p-value's logarithm, held against the level, or has it its own threshold?"""
        return self.score == LOG_P

    def __call__(self, norms: Tensor | Array, level: float = 0.05) -> Verdict:
        """The verdict on norms (K,), or (K, K) with the diagonal ignored where it judges pairs.

        level: of the p-value; a rule that gives none keeps its paper's threshold, whatever the level.
        Raises AnomalyError for fewer than `least` classes, or a norm that is not finite and positive.
        """
        a = _array(norms).astype(float)
        if not self.gives_p:
            return self.test(a)
        with np.errstate(divide="ignore"):
            return self.test(1 / a, level=level)

    def false_alarms(self, k: int, level: float = 0.05) -> float:
        """Share of clean models of k classes that the rule flags under its own null."""
        return self.alarms(k, level)


def _array(values: Tensor | Array) -> Array:
    """Of a tensor without asking for torch: this room has no other use for it."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _checked(values: Tensor | Array, least: int, name: str) -> Array:
    x = _array(values).astype(float)
    if x.ndim != 1 or len(x) < least:
        raise AnomalyError(
            f"{name}s have shape {x.shape}: one per class, for at least {least} classes, is needed"
        )
    bad = np.flatnonzero(~np.isfinite(x) | (x <= 0))
    if len(bad):
        raise AnomalyError(
            f"the {name} of class {bad[0]} is {x[bad[0]]}: a finite and positive one is needed"
        )
    return x


def gamma(statistics: Tensor | Array, *, level: float = 0.05) -> Verdict:
    """Gamma order-statistic test (L-RED Sec. 3.2) on r_t = 1 / ||v_t||, (K,), K >= 3.

    Flags at most one class, that of the largest statistic.
    """
    r = _checked(statistics, 3, "statistic")
    log_p, suspect = float(log_p_values(r)), int(r.argmax())
    rate = gamma_false_positive_rate(len(r), level)
    return _p_verdict("gamma", log_p, suspect, level, rate)


def calibrated(
    statistics: Tensor | Array, *, level: float = 0.05, draws: int = 9999, seed: int = 0
) -> Verdict:
    """The Gamma test with a parametric-bootstrap p-value.

    The fit leaves the maximum out, so the plain p-value is too small on clean models. Here the same p-value
    is computed on `draws` simulated clean models, K i.i.d. draws from the fitted Gamma, and its rank among
    them is the verdict's: (1 + #{simulated <= observed}) / (draws + 1).
    """
    r = _checked(statistics, 3, "statistic")
    observed, suspect = float(log_p_values(r)), int(r.argmax())
    shape = float(fit_gamma(np.sort(r)[:-1])[0])
    p = (1 + int((null_log_p(len(r), min(shape, 1e6), draws, seed) <= observed).sum())) / (draws + 1)
    return _p_verdict("calibrated", math.log(p), suspect, level, level)


def _checked_pairs(values: Tensor | Array, name: str) -> tuple[Array, Array]:
    """Values (K, K) of pairs, and which of them are to be judged: those off the diagonal that are not NaN."""
    raw = _array(values).astype(float)
    if raw.ndim != 2 or raw.shape[0] != raw.shape[1] or len(raw) < 3:
        raise AnomalyError(f"pair {name}s have shape {raw.shape}: (K, K) with K >= 3 is needed")
    off = ~(np.eye(len(raw), dtype=bool) | np.isnan(raw))
    for source, target in np.argwhere(off & ~(np.isfinite(raw) & (raw > 0)))[:1]:
        value = raw[source, target]
        raise AnomalyError(
            f"the {name} of pair {source} to {target} is {value}: a finite and positive one is needed"
        )
    if off.any(0).sum() < 3:
        raise AnomalyError(
            f"pairs of {off.any(0).sum()} targets have a {name}: those of 3 or more are needed"
        )
    return raw, off


def gamma_pairs(pair_statistics: Tensor | Array, *, level: float = 0.05) -> Verdict:
    """P-RED's test on r_st = 1 / ||v_st||, (K, K), K >= 3: flags at most the largest one's target.

    Row = source, column = target; the diagonal is ignored, and so is a pair whose statistic is NaN. The paper says
    only that P-RED's test is similar. Our reading: the null is fitted to every pair whose target is not that of the
    largest r_st, and as many statistics compete as the fit has seen, (K-1)^2 plus the largest.
    """
    raw, off = _checked_pairs(pair_statistics, "statistic")
    masked = np.where(off, raw, -np.inf)
    source, suspect = (int(i) for i in np.unravel_index(masked.argmax(), raw.shape))
    null = np.delete(raw, suspect, axis=1)[np.delete(off, suspect, axis=1)]
    competitors = np.append(np.minimum(null, masked.max()), masked.max())
    log_p = float(log_p_values(competitors, competing=len(null) + 1))
    verdict = _p_verdict("gamma-pairs", log_p, suspect, level, pairs_false_positive_rate(len(raw), level))
    return replace(verdict, pairs=((source, suspect),) if verdict.attacked else ())


def _p_verdict(rule: str, log_p: float, suspect: int, level: float, rate: float) -> Verdict:
    attacked = log_p < math.log(level)
    return Verdict(rule, attacked, (suspect,) if attacked else (), suspect, log_p, math.log(level), rate)


def mad(norms: Tensor | Array, *, threshold: float = 2.0) -> Verdict:
    """Neural Cleanse's rule on norms (K,): flags each small norm with an index above `threshold`."""
    a = _checked(norms, 3, "norm")
    return _mad_verdict("mad", a, small(a, threshold), threshold, mad_false_positive_rate(len(a), threshold))


def mad_or_quarter(norms: Tensor | Array, *, threshold: float = 2.0) -> Verdict:
    """B3D's rule: MAD, or a norm below a quarter of the median; the union of the two.

    MAD's false-positive rate depends on K alone, the union's also on how many standard deviations the mean norm is;
    here that is the median over 1.4826 MAD of these norms.
    """
    a = _checked(norms, 2, "norm")
    with np.errstate(divide="ignore"):
        steady = float(np.median(a) / (1.4826 * np.median(np.abs(a - np.median(a)))))
    return _mad_verdict(
        "mad-or-quarter",
        a,
        small(a, threshold, quarter=True),
        threshold,
        union_false_positive_rate(len(a), steady, threshold),
    )


def mad_pairs(pair_norms: Tensor | Array, *, threshold: float = 2.0) -> Verdict:
    """Neural Cleanse's rule for backdoors of few source classes (Sec. VII-E), on norms (K, K), K >= 3.

    Row = source, column = target; the diagonal is ignored, and so is a pair whose norm is NaN. Every pair's norm is
    held against those of all pairs, and what is flagged is a pair; the verdict's targets are theirs.
    """
    raw, off = _checked_pairs(pair_norms, "norm")
    a, places = raw[off], np.argwhere(off)
    verdict = _mad_verdict(
        "mad-pairs", a, small(a, threshold), threshold, mad_false_positive_rate(len(a), threshold)
    )
    pairs = tuple((int(s), int(t)) for s, t in places[list(verdict.targets)])
    targets = tuple(dict.fromkeys(t for _, t in pairs))
    return replace(verdict, targets=targets, suspect=int(places[verdict.suspect][1]), pairs=pairs)


def _mad_verdict(rule: str, a: Array, flags: Array, threshold: float, rate: float) -> Verdict:
    order = np.argsort(a, kind="stable")
    index = float(anomaly_index(a)[order[0]]) if a[order[0]] < np.median(a) else 0.0
    targets = tuple(int(t) for t in order if flags[t])
    return Verdict(rule, bool(targets), targets, int(order[0]), index, threshold, rate)


_ALL = (
    Rule("gamma", "classes", LOG_P, 3, gamma, gamma_false_positive_rate),
    Rule("gamma-pairs", "pairs", LOG_P, 3, gamma_pairs, pairs_false_positive_rate),
    Rule("calibrated", "classes", LOG_P, 3, calibrated, lambda k, level: level, finest=1e-4),
    Rule("mad", "classes", SMALLEST, 3, mad, lambda k, level: mad_false_positive_rate(k)),
    Rule("mad-pairs", "pairs", SMALLEST, 3, mad_pairs, lambda k, level: mad_false_positive_rate(k * (k - 1))),
    # at norms whose mean is four standard deviations; a verdict's own rate is of its own norms
    Rule(
        "mad-or-quarter",
        "classes",
        SMALLEST,
        2,
        mad_or_quarter,
        lambda k, level: union_false_positive_rate(k, 4.0),
    ),
)
RULES: dict[str, Rule] = {rule.name: rule for rule in _ALL}


class Findings(Protocol):
    """What a rule reads of a scan."""

    @property
    def norms(self) -> Tensor | Array:
        """(K,), NaN for a class that had no full search."""

    @property
    def reached(self) -> Tensor | Array | None:
        """(K,) bool; None: all."""

    @property
    def pair_norms(self) -> Tensor | Array | None:
        """(K, K), row = source, column = target; None where the detector looks at no pairs."""

    @property
    def pair_reached(self) -> Tensor | Array | None:
        """(K, K) bool; None: all."""


@dataclass(frozen=True)
class Norms:
    """Findings without a scan, such as a row of a table."""

    norms: Tensor | Array
    reached: Tensor | Array | None = None
    pair_norms: Tensor | Array | None = None
    pair_reached: Tensor | Array | None = None


def judge(found: Findings | Tensor | Array, rule: str, *, level: float = 0.05) -> Verdict:
    """The verdict of one rule on a scan.

        judge(scan, "calibrated"); judge(norms, "mad"); judge(Norms(norms, reached), "mad")

    found: a scan, or norms (K,) alone, all of them then reached. A norm of NaN marks a class that had no full
        search, as in Neural Cleanse's low-cost scheme. Medians and nulls are those of the classes that are judged,
        and targets are still numbered among all K.
    rule: a name in RULES.
    level: of the rules that give a p-value.

    Raises AnomalyError for an unknown rule, a level outside (0, 1), a rule that judges pairs where there are none,
    pairs of another number of classes, too few classes, and norms that are infinite, zero or negative.
    """
    if rule not in RULES:
        raise AnomalyError(f"no rule {rule!r}: allowed are {', '.join(RULES)}")
    if not 0 < level < 1:
        raise AnomalyError(f"level = {level}: a number between 0 and 1 is needed")
    how, scan = RULES[rule], _findings(found)
    norms = _array(scan.norms).astype(float)
    if how.judges == "pairs":
        return _of_pairs(how, scan, norms, level)
    # here, where classes have their own numbers
    known, open_ = _told(norms, scan.reached)
    _checked(np.where(known, norms, 1.0), how.least, "norm")
    if known.sum() < how.least and open_.any():
        return _undecided(rule, np.where(np.isnan(norms), np.inf, norms), open_, level)
    at = np.flatnonzero(known)
    verdict = how(norms[at], level)
    working = known if scan.reached is None else _array(scan.reached).astype(bool)
    targets = tuple(int(at[t]) for t in verdict.targets if working[at[t]])
    return replace(
        verdict,
        attacked=bool(targets),
        targets=targets,
        suspect=int(at[verdict.suspect]),
        unreached=tuple(np.flatnonzero(open_).tolist()),
    )


def _findings(found: Findings | Tensor | Array) -> Findings:
    return cast(Findings, found) if hasattr(found, "norms") else Norms(cast(Array, found))


def _of_pairs(how: Rule, scan: Findings, norms: Array, level: float) -> Verdict:
    if scan.pair_norms is None:
        raise AnomalyError(
            f"rule {how.name!r} judges the norms of all pairs of classes, and this scan has none"
        )
    pairs, k = _array(scan.pair_norms).astype(float), len(norms)
    if pairs.shape != (k, k):
        raise AnomalyError(f"pair norms have shape {pairs.shape}: {(k, k)} is needed beside {k} norms")
    off = ~np.eye(k, dtype=bool)
    known, open_ = _told(np.where(off, pairs, np.nan), scan.pair_reached)
    if known.any(0).sum() < how.least and open_.any():
        return _undecided(how.name, norms, np.any(open_, 0), level)
    verdict = how(np.where(known, pairs, np.nan), level)
    working = known if scan.pair_reached is None else _array(scan.pair_reached).astype(bool)
    flagged = tuple(pair for pair in verdict.pairs if working[pair])
    targets = tuple(dict.fromkeys(t for _, t in flagged))
    unreached = tuple(np.flatnonzero(open_.any(0)).tolist())
    return replace(verdict, attacked=bool(targets), targets=targets, pairs=flagged, unreached=unreached)


def _told(norms: Array, reached: Tensor | Array | None) -> tuple[Array, Array]:
    """Which norms are judged, and which are left out because nothing was reached; in neither: not searched."""
    searched = ~np.isnan(norms)
    if reached is None:
        return searched, np.zeros_like(searched)
    there = searched & _array(reached).astype(bool)
    middle = np.median(norms[there]) if there.any() else np.inf
    with np.errstate(invalid="ignore"):
        known = there | (searched & (norms > middle))
    return known, searched & ~known


def _undecided(rule: str, norms: Array, open_: Array, level: float) -> Verdict:
    threshold = math.log(level) if RULES[rule].gives_p else float("nan")
    nan, unreached = float("nan"), tuple(np.flatnonzero(open_).tolist())
    return Verdict(rule, False, (), int(np.argmin(norms)), nan, threshold, nan, unreached)


def verdicts(scan: Findings, *, level: float = 0.05) -> dict[str, Verdict]:
    """The verdicts of every rule that can judge this scan, in the order of RULES.

    One that cannot is left out: the rule on pairs without pairs, the Gamma rules on two classes.
    Raises AnomalyError for norms that nothing can judge, such as infinite ones.
    """
    k = int((~np.isnan(_array(scan.norms))).sum())
    able = [
        name
        for name, rule in RULES.items()
        if k >= rule.least and (rule.judges == "classes" or scan.pair_norms is not None)
    ]
    return {rule: judge(scan, rule, level=level) for rule in able}
