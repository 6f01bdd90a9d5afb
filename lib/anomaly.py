"""From per-class statistics to a verdict:
Gamma order-statistic p-value, the same calibrated, MAD index, MAD or quarter.

Estimation and decision are separate rooms: any detector's statistics can meet any rule here. Every verdict
carries the rule's false-positive rate under the rule's own null for this number of classes, found by
simulation. Sources: L-RED (Xiang et al. 2021, Sec. 3.2), Neural Cleanse (Wang et al. 2019, Sec. IV-C), B3D
(Dong et al. 2021, Sec. 4).

Non-finite or non-positive statistics are an error, not a verdict. Fewer than three classes leave no null to
fit: the Gamma rules then say so; MAD rules never flag, because with K <= 2 both deviations are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.special import digamma, gammaln, polygamma
from scipy.stats import gamma as gamma_distribution
from torch import Tensor

Array = np.ndarray


class AnomalyError(ValueError):
    """Statistics that no rule can judge."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says of one model.

    attacked; targets: flagged classes, most suspicious first; score: log p-value (Gamma rules) or largest
    anomaly index (MAD rules); score_name; threshold on the score; suspect: the most suspicious class
    whether flagged or not; false_positive_rate: share of clean models that the rule flags under its own
    null for this K.
    """

    rule: str
    attacked: bool
    targets: tuple[int, ...]
    suspect: int
    score: float
    score_name: str
    threshold: float
    false_positive_rate: float

    @property
    def p_value(self) -> float | None:
        """exp(score) for the Gamma rules (0.0 below about 1e-308: read `score` then); None for the others."""
        return math.exp(self.score) if self.score_name == "log p-value" else None


def _checked(values: Tensor | Array, least: int, name: str) -> Array:
    x = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)
    if x.ndim != 1 or len(x) < least:
        raise AnomalyError(
            f"{name} have shape {x.shape}: one per class, for at least {least} classes, is needed"
        )
    bad = np.flatnonzero(~np.isfinite(x) | (x <= 0))
    if len(bad):
        raise AnomalyError(f"{name} of class {bad[0]} is {x[bad[0]]}: finite and positive values are needed")
    return x


def log_survival(x: Array | float, shape: Array | float) -> Array:
    """log of the Gamma survival function S(x; shape), scale 1, exact far beyond the underflow of S.

    Where S underflows: log S = shape log x - x - log Gamma(shape) + log F, F by Lentz's continued fraction.
    """
    x, a = np.broadcast_arrays(np.asarray(x, float), np.asarray(shape, float))
    with np.errstate(divide="ignore"):
        direct = np.log(gamma_distribution.sf(x, a))
    far = direct < -600
    if not far.any():
        return direct
    xs, s = x[far], a[far]
    b = xs + 1 - s
    c, d = np.full_like(b, 1e300), 1 / b
    f = d.copy()
    for i in range(1, 300):
        an = -i * (i - s)
        b = b + 2
        d, c = 1 / (an * d + b), b + an / c
        f *= d * c
    out = np.array(direct)
    out[far] = s * np.log(xs) - xs - gammaln(s) + np.log(f)
    return out


def fit_gamma(x: Array) -> tuple[Array, Array]:
    """Maximum-likelihood Gamma fit with location 0 along the last axis: x (..., n) -> shape, scale (...).

    Newton steps on log a - digamma(a) = log(mean) - mean(log). Equal values have no finite fit:
    the shape is capped at 1e12.
    """
    mean = x.mean(-1)
    s = np.maximum(np.log(mean) - np.log(x).mean(-1), 1e-13)
    a = (3 - s + np.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    for _ in range(12):
        step = (np.log(a) - digamma(a) - s) / (1 / a - polygamma(1, a))
        a = np.clip(np.where(a - step > 0, a - step, a / 2), 1e-8, 1e12)
    return a, mean / a


def log_p_values(r: Array, *, competing: int | None = None) -> Array:
    """log pv of L-RED Sec. 3.2 along the last axis: null fitted to all but the largest; pv = 1 -
    G(r_max)^K. r (..., K) -> (...).
    """
    ordered = np.sort(r, axis=-1)
    a, scale = fit_gamma(ordered[..., :-1])
    log_s = log_survival(ordered[..., -1] / scale, a)
    return log_order_p(log_s, competing or r.shape[-1])


def log_order_p(log_s: Array, k: int) -> Array:
    """log(1 - (1 - S)^K) from log S without cancellation or underflow."""
    log_s = np.minimum(log_s, 0.0)
    with np.errstate(divide="ignore"):
        inside = k * np.log1p(-np.exp(log_s))
        exact = np.log(-np.expm1(inside))
    return np.where(log_s > -30, exact, np.log(k) + log_s)


def gamma(statistics: Tensor | Array, *, level: float = 0.05) -> Verdict:
    """Gamma order-statistic test ([LR] 3.2) on r_t = 1 / ||v_t||, (K,), K >= 3.
    Flags at most the class of the largest.
    """
    r = _checked(statistics, 3, "statistics")
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
    r = _checked(statistics, 3, "statistics")
    observed, suspect = float(log_p_values(r)), int(r.argmax())
    shape = float(fit_gamma(np.sort(r)[:-1])[0])
    p = (1 + int((_null_log_p(len(r), min(shape, 1e6), draws, seed) <= observed).sum())) / (draws + 1)
    return _p_verdict("calibrated", math.log(p), suspect, level, level)


def gamma_pairs(pair_statistics: Tensor | Array, *, level: float = 0.05) -> Verdict:
    """P-RED's test on r_st, (K, K), row = source, column = target, diagonal ignored; K >= 3.

    The paper says only that P-RED's test is similar. Our reading: the null is fitted to every pair whose
    target is not that of the largest r_st, and as many statistics compete as the fit has seen, (K-1)^2 plus
    the largest.
    """
    raw = np.asarray(
        pair_statistics.detach().cpu() if isinstance(pair_statistics, Tensor) else pair_statistics,
        dtype=float,
    )
    if raw.ndim != 2 or raw.shape[0] != raw.shape[1] or len(raw) < 3:
        raise AnomalyError(f"pair statistics have shape {raw.shape}: (K, K) with K >= 3 is needed")
    off = ~np.eye(len(raw), dtype=bool)
    _checked(raw[off], 6, "pair statistics")
    masked = np.where(off, raw, -np.inf)
    suspect = int(np.unravel_index(masked.argmax(), raw.shape)[1])
    null = np.delete(raw, suspect, axis=1)[np.delete(off, suspect, axis=1)]
    log_p = float(
        log_p_values(np.append(np.minimum(null, masked.max()), masked.max()), competing=len(null) + 1)
    )
    return _p_verdict("gamma-pairs", log_p, suspect, level, _pairs_false_positive_rate(len(raw), level))


def _p_verdict(rule: str, log_p: float, suspect: int, level: float, rate: float) -> Verdict:
    attacked = log_p < math.log(level)
    return Verdict(
        rule, attacked, (suspect,) if attacked else (), suspect, log_p, "log p-value", math.log(level), rate
    )


def anomaly_index(norms: Array) -> Array:
    """|a - median| / (1.4826 MAD) of each norm, last axis. MAD = 0: infinite where a differs from the
    median, 0 where it does not.
    """
    median = np.median(norms, axis=-1, keepdims=True)
    deviation = np.abs(norms - median)
    spread = 1.4826 * np.median(deviation, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(deviation == 0, 0.0, deviation / spread)


def mad(norms: Tensor | Array, *, threshold: float = 2.0) -> Verdict:
    """Median-absolute-deviation rule of Neural Cleanse on norms (K,):
    flags every small norm with index > threshold.
    """
    a = _checked(norms, 2, "norms")
    flags = (anomaly_index(a) > threshold) & (a < np.median(a))
    return _mad_verdict("mad", a, flags, threshold)


def mad_or_quarter(norms: Tensor | Array, *, threshold: float = 2.0) -> Verdict:
    """B3D's rule: MAD, or a norm below a quarter of the median; the union of the two."""
    a = _checked(norms, 2, "norms")
    small = a < np.median(a)
    flags = small & ((anomaly_index(a) > threshold) | (a < np.median(a) / 4))
    return _mad_verdict("mad-or-quarter", a, flags, threshold)


def _mad_verdict(rule: str, a: Array, flags: Array, threshold: float) -> Verdict:
    order = np.argsort(a, kind="stable")
    index = anomaly_index(a)[order[0]] if a[order[0]] < np.median(a) else 0.0
    targets = tuple(int(t) for t in order if flags[t])
    rate = mad_false_positive_rate(len(a), threshold)
    return Verdict(
        rule,
        bool(targets),
        targets,
        int(order[0]),
        float(index),
        "anomaly index of the smallest norm",
        threshold,
        rate,
    )


@lru_cache(maxsize=256)
def _null_log_p(k: int, shape: float, draws: int, seed: int) -> Array:
    """log pv of `draws` clean models: K i.i.d. Gamma statistics each. The scale cancels."""
    x = np.random.default_rng(seed).gamma(shape, size=(draws, k))
    return log_p_values(np.maximum(x, np.finfo(float).tiny))


def gamma_false_positive_rate(k: int, level: float = 0.05, *, shape: float = 10.0) -> float:
    """P(pv < level) of the plain Gamma test for K i.i.d. Gamma statistics, by 9,999 simulated models (it
    hardly depends on the shape).
    """
    return float((_null_log_p(k, shape, 9999, 1) < math.log(level)).mean())


@lru_cache(maxsize=64)
def _pairs_false_positive_rate(k: int, level: float) -> float:
    """The same for P-RED's reading: K(K-1) i.i.d. statistics, the suspect's column left out of the fit."""
    x = np.random.default_rng(1).gamma(10.0, size=(4000, k, k - 1))
    top = x.reshape(len(x), -1).max(1)
    suspect = x.max(2).argmax(1)
    null = np.stack([np.delete(m, t, axis=0).ravel() for m, t in zip(x, suspect, strict=True)])
    log_p = log_p_values(np.concatenate([null, top[:, None]], 1))
    return float((log_p < math.log(level)).mean())


@lru_cache(maxsize=64)
def mad_false_positive_rate(k: int, threshold: float = 2.0) -> float:
    """P(any small norm has index > threshold) for K i.i.d. normal norms, by 20,000 simulated models."""
    a = np.random.default_rng(0).normal(size=(20_000, k))
    flagged = (anomaly_index(a) > threshold) & (a < np.median(a, axis=1, keepdims=True))
    return float(flagged.any(1).mean())


RULES: dict[str, Callable[..., Verdict]] = {
    "gamma": gamma,
    "calibrated": calibrated,
    "mad": mad,
    "mad-or-quarter": mad_or_quarter,
}


def judge(norms: Tensor, rule: str, *, pair_norms: Tensor | None = None, level: float = 0.05) -> Verdict:
    """Any rule on a scan's norms (K,). With pair_norms, `gamma` is P-RED's test.
    Raises AnomalyError for an unknown rule.
    """
    if rule not in RULES:
        raise AnomalyError(f"no rule {rule!r}: allowed are {', '.join(RULES)}")
    if rule == "gamma" and pair_norms is not None:
        return gamma_pairs(1 / torch.as_tensor(pair_norms), level=level)
    if rule.startswith("mad"):
        return RULES[rule](norms)
    return RULES[rule](1 / torch.as_tensor(norms), level=level)
