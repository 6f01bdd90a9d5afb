"""What norms of clean classifiers look like: the Gamma null, deviations from a median, and how often each flags by chance.

Arithmetic of arrays alone; `rules` says what follows. The Gamma order-statistic test is of L-RED
(Xiang et al. 2021), Sec. 3.2; the anomaly index of Neural Cleanse (Wang et al. 2019), Sec. IV-C; a quarter of the
median of B3D (Dong et al. 2021), Sec. 4. The rates are by simulation, which no paper has.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import digamma, gammaln, polygamma
from scipy.stats import gamma as gamma_distribution
from scipy.stats import truncnorm

Array = np.ndarray


def log_survival(x: Array | float, shape: Array | float) -> Array:
    """log of the Gamma survival function S(x; shape), scale 1, exact where S itself underflows.

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
    """Maximum-likelihood Gamma fit with location 0: x (..., n) -> shape (...), scale (...).

    Newton steps on log a - digamma(a) = log(mean) - mean(log), from a start that is right to 2 %: four of them reach
    the accuracy of the numbers. Equal values have no finite fit: the shape is capped at 1e12.
    """
    mean = x.mean(-1)
    s = np.maximum(np.log(mean) - np.log(x).mean(-1), 1e-13)
    a = (3 - s + np.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    for _ in range(4):
        step = (np.log(a) - digamma(a) - s) / (1 / a - polygamma(1, a))
        a = np.clip(np.where(a - step > 0, a - step, a / 2), 1e-8, 1e12)
    return a, mean / a


def log_p_values(r: Array, *, competing: int | None = None) -> Array:
    """log pv of L-RED Sec. 3.2 along the last axis, r (..., K) -> (...).

    The null G is fitted to all but the largest; pv = 1 - G(r_max)^K.
    competing: K in that power, where it is not the number of statistics.
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


def anomaly_index(norms: Array) -> Array:
    """|a - median| / (1.4826 MAD) of each norm, along the last axis.

    MAD = 0: infinite where a differs from the median, 0 where it does not.
    """
    median = np.median(norms, axis=-1, keepdims=True)
    deviation = np.abs(norms - median)
    spread = 1.4826 * np.median(deviation, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(deviation == 0, 0.0, deviation / spread)


def small(a: Array, threshold: float, *, quarter: bool = False) -> Array:
    """Which norms (..., K) stand out below: by their index, or by being under a quarter of the median."""
    middle = np.median(a, axis=-1, keepdims=True)
    return (a < middle) & ((anomaly_index(a) > threshold) | (quarter & (a < middle / 4)))


@lru_cache(maxsize=256)
def null_log_p(k: int, shape: float, draws: int, seed: int) -> Array:
    """log pv of `draws` clean models: K i.i.d. Gamma statistics each. The scale cancels."""
    x = np.random.default_rng(seed).gamma(shape, size=(draws, k))
    return log_p_values(np.maximum(x, np.finfo(float).tiny))


def gamma_false_positive_rate(k: int, level: float = 0.05, *, shape: float = 10.0) -> float:
    """P(pv < level) of the plain Gamma test for K i.i.d. Gamma statistics.

    By 9,999 simulated models. It hardly depends on the shape.
    """
    return float((null_log_p(k, shape, 9999, 1) < math.log(level)).mean())


@lru_cache(maxsize=64)
def pairs_false_positive_rate(k: int, level: float) -> float:
    """The same of P-RED's test: K(K-1) statistics, the suspect's column left out of the fit."""
    x = np.random.default_rng(1).gamma(10.0, size=(4000, k, k - 1))
    top = x.reshape(len(x), -1).max(1)
    suspect = x.max(2).argmax(1)
    null = np.stack([np.delete(m, t, axis=0).ravel() for m, t in zip(x, suspect, strict=True)])
    log_p = log_p_values(np.concatenate([null, top[:, None]], 1))
    return float((log_p < math.log(level)).mean())


@lru_cache(maxsize=64)
def mad_false_positive_rate(k: int, threshold: float = 2.0) -> float:
    """P(a small norm has an index > threshold) for K i.i.d. normal norms, by 20,000 draws."""
    draws = min(20_000, 4_000_000 // k)
    return float(small(np.random.default_rng(0).normal(size=(draws, k)), threshold).any(1).mean())


def union_false_positive_rate(k: int, steady: float, threshold: float = 2.0) -> float:
    """The same of MAD or a quarter of the median, where the mean norm is `steady` standard deviations.

    By 20,000 draws; norms that a normal distribution would make negative are not drawn.
    """
    return _union_rate(k, round(min(max(steady, 0.1), 20.0), 1), threshold)


@lru_cache(maxsize=256)
def _union_rate(k: int, steady: float, threshold: float) -> float:
    a = truncnorm.rvs(-steady, np.inf, size=(20_000, k), random_state=np.random.default_rng(0)) + steady
    return float(small(a, threshold, quarter=True).any(1).mean())
