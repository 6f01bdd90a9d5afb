"""How L-RED weighs the putative source classes: temperature, closed form, and the variants that fail.

All functions are batched over B problems with S putative sources each: shares q (B, S), weights w (B, S) on
the simplex. Source: L-RED (Xiang et al. 2021), Eqs. 6-8 and 12, Algorithm 1, Sec. A.1-A.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from ..settings import HUGE, shown

Schedule = Callable[[Tensor, int], Tensor]  # Q (B,), step -> T (B,) in [0, inf]
# w, q, mean log-posteriors (B, S), step -> new w, T
Update = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def temperature(success: Tensor) -> Tensor:
    """Annealing temperature of L-RED, Eq. (7): T = -log Q.

    success: Q, weighted misclassification share, shape (B,), in [0, 1].
    Returns T, shape (B,), in [0, inf]; inf where Q = 0, which makes the weights of Eq. (8) uniform.
    """
    return (-success.log()).clamp_min(0)  # rounding can lift a sum of weights a little above 1


def closed_form(shares: Tensor, temperature: Tensor) -> Tensor:
    """Weights that maximise Q + T * entropy, Eq. (8): softmax of q / T.

    shares: q, (B, S).
    temperature: T, (B,).
    Returns w, (B, S). The limits are included: T = inf gives uniform weights, T = 0 shares all weight among the
    largest q.
    """
    t = temperature[:, None]
    best = shares == shares.max(1, keepdim=True).values
    soft = torch.softmax(shares / t.clamp_min(torch.finfo(shares.dtype).tiny), dim=1)
    return torch.where(t > 0, soft, best / best.sum(1, keepdim=True))


def schedule(name: str | float | Schedule) -> Schedule:
    """A temperature schedule by name, as a number (constant), or as any callable (Q, step) -> T.

    Names: `paper` (Eq. 7), `hard` (T = 0), `uniform` (T = inf), `constant:T`, `linear:T0,steps` (T0 down to
    0 in so many steps), `geometric:T0,ratio` (T0 * ratio^step). Raises ValueError for anything else.
    """
    if callable(name):
        return name
    if isinstance(name, Real) and not isinstance(name, bool):
        name = f"constant:{float(name)}"
    kind, _, text = name.partition(":") if isinstance(name, str) else ("", "", "")
    try:
        numbers = [float(x) for x in text.split(",")] if text else []
    except ValueError:
        numbers = [-1.0]
    if len(numbers) == _ARGUMENTS.get(kind) and all(0 <= x <= HUGE for x in numbers):
        return lambda success, step: _MAKE[kind](success, step, *numbers)
    raise ValueError(
        f"schedule = {shown(name)}: allowed are paper, hard, uniform, constant:T, linear:T0,steps, geometric:T0,ratio "
        "with finite numbers >= 0, a number, or a callable (Q, step) -> T"
    )


_ARGUMENTS = {"paper": 0, "hard": 0, "uniform": 0, "constant": 1, "linear": 2, "geometric": 2}
_MAKE: dict[str, Callable[..., Tensor]] = {
    "paper": lambda q, step: temperature(q),
    "hard": lambda q, step: torch.zeros_like(q),
    "uniform": lambda q, step: torch.full_like(q, math.inf),
    "constant": lambda q, step, t: torch.full_like(q, t),
    "linear": lambda q, step, t, steps: torch.full_like(q, t * max(0.0, 1 - step / max(steps, 1))),
    "geometric": lambda q, step, t, ratio: torch.full_like(q, _times(t, ratio, step)),
}


def _times(t: float, ratio: float, step: int) -> float:
    """t ratio^step, infinite where no tensor could hold it."""
    try:
        found = t * ratio**step
    except OverflowError:
        found = math.inf if t else 0.0
    return found if found <= HUGE else math.inf


def annealed(temperatures: Schedule) -> Update:
    """Algorithm 1: Q with the old weights sets T; the new weights are Eq. (8), or uniform again where Q = 0."""

    def update(w: Tensor, q: Tensor, log_posteriors: Tensor, step: int) -> tuple[Tensor, Tensor]:
        success = (w * q).sum(1)
        t = temperatures(success, step)
        if t.shape != success.shape or torch.isnan(t).any() or (t < 0).any():
            raise ValueError(
                f"the schedule gave {t} at step {step}: one temperature >= 0 per problem is needed"
            )
        uniform = torch.full_like(w, 1 / w.shape[1])
        return torch.where(success[:, None] > 0, closed_form(q, t), uniform), t

    return update


def frozen_weights() -> Update:
    """Weights never move: U-RED with uniform weights, P-RED with a single source."""
    return lambda w, q, log_posteriors, step: (w, torch.full_like(q[:, 0], math.inf))


def surrogate(rate: float) -> Update:
    """Joint ascent on J_t(v, w), Eq. (12): dJ/dw_s is the mean log-posterior of source s; then projection."""
    return lambda w, q, log_posteriors, step: (
        simplex_projection(w + rate * log_posteriors),
        torch.full_like(q[:, 0], math.nan),
    )


def simplex_projection(x: Tensor) -> Tensor:
    """Euclidean projection of each row of (B, S) onto the probability simplex."""
    ordered, _ = x.sort(1, descending=True)
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
    active = (ordered > excess).sum(1, keepdim=True)
    return (x - excess.gather(1, active - 1)).clamp_min(0)
