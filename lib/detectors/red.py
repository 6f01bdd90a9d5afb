"""The RED family for additive patterns:
P-RED, U-RED, L-RED (Xiang et al. 2021) and the surrogate of Eq. (12).

U-RED and L-RED pose K problems of K - 1 sources each, P-RED K(K - 1) problems of one; `pattern_search` solves
them all in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .pattern_search import Problems, Solution, estimate
from .scan import Cost, Scan, check_clean
from .weights import Schedule, Update, annealed, frozen_weights, schedule, surrogate


def _assemble(detector: _RED, name: str, k: int, problems: Problems, found: Solution, cost: Cost) -> Scan:
    """Per-class results; for pairs, the smallest norm over the sources of each target."""
    norms = found.v.flatten(1).norm(dim=1)
    settings = {
        key: value if isinstance(value, (int, float, str, tuple)) else repr(value)
        for key, value in asdict(detector).items()
    }
    weights, pair_norms = torch.zeros(k, k), None
    rows = torch.arange(k)
    if problems.sources.shape[1] == 1 and k > 2:
        pair_norms = torch.full((k, k), float("nan"))
        pair_norms[problems.sources[:, 0], problems.target] = norms.cpu()
        best = torch.stack(
            [torch.where(problems.target == t, norms.cpu(), torch.inf).argmin() for t in range(k)]
        )
        weights[rows, problems.sources[best, 0]] = 1.0
    else:
        best = rows
        weights[rows[:, None], problems.sources] = found.w.cpu()
    return Scan(
        detector=name,
        settings=settings,
        norms=norms[best].cpu(),
        norm_name="L2 norm of the pattern",
        pattern=found.v[best].cpu(),
        success=found.success[best].cpu(),
        converged=found.converged[best].cpu(),
        weights=weights,
        pair_norms=pair_norms,
        trajectory=found.trajectory,
        cost=cost,
    )


@dataclass(frozen=True, kw_only=True)
class _RED:
    """Shared settings.

    delta: step length in pixel units. One number is the paper's fixed step (its value: 1e-4 at norms near
    0.2). A pair (coarse, fine) takes coarse steps while Q < 0.3, where the weights hardly move, and fine ones
    from there to pi, where they concentrate "late and fast". The default pair suits norms of 1 to 3; its fine
    step is the shortest that keeps the cost at a twentieth of a fixed 1e-3.
    """

    pi: float = 0.9
    delta: float | tuple[float, float] = (0.06, 0.006)
    max_steps: int = 10_000
    record_every: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.pi < 1:
            raise ValueError(f"pi = {self.pi}: a share between 0 and 1 is needed")
        steps = (self.delta,) if isinstance(self.delta, (int, float)) else tuple(self.delta)
        if not 1 <= len(steps) <= 2 or not all(isinstance(x, (int, float)) and x > 0 for x in steps):
            raise ValueError(
                f"delta = {self.delta!r}: a positive number, or a pair (coarse, fine) of them, is needed"
            )
        object.__setattr__(self, "delta", steps[0] if len(steps) == 1 else steps)
        if self.max_steps < 1 or self.record_every < 0:
            raise ValueError(
                f"max_steps = {self.max_steps}, record_every = {self.record_every}: "
                "max_steps >= 1 and record_every >= 0 are needed"
            )

    @property
    def step(self) -> tuple[float, float]:
        """Step lengths (coarse, fine)."""
        return self.delta if isinstance(self.delta, tuple) else (self.delta, self.delta)

    def _update(self) -> Update:
        return frozen_weights()

    def _problems(self, k: int) -> Problems:
        return Problems.all_to_one(k)

    def scan(
        self,
        model: nn.Module,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> Scan:
        """Scan a model, images -> logits (N, K), with clean images (K, n, C, H, W). Deterministic:
        `generator` is not used.
        """
        check_clean(clean)
        cost, problems = Cost(), self._problems(len(clean))
        found = estimate(
            model,
            clean,
            problems,
            update=self._update(),
            step=self.step,
            pi=self.pi,
            max_steps=self.max_steps,
            record_every=self.record_every,
            stop=stop,
            cost=cost,
            progress=progress,
        )
        return _assemble(self, type(self).__name__, len(clean), problems, found, cost)


@dataclass(frozen=True, kw_only=True)
class PRED(_RED):
    """P-RED: one problem per class pair (Eq. 2). Scan.pair_norms has all K(K-1) norms."""

    def _problems(self, k: int) -> Problems:
        return Problems.pairs(k)


@dataclass(frozen=True, kw_only=True)
class URED(_RED):
    """U-RED: every other class is a source with the same weight 1/(K-1)."""


@dataclass(frozen=True, kw_only=True)
class LRED(_RED):
    """L-RED: weights annealed by T = -log Q (Eqs. 3-8).
    With two clean images per class it is the paper's L-RED'.

    schedule: another temperature schedule, see `weights.schedule`.
    """

    schedule: str | float | Schedule = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule(self.schedule)

    def _update(self) -> Update:
        return annealed(schedule(self.schedule))


@dataclass(frozen=True, kw_only=True)
class SurrogateRED(_RED):
    """The surrogate that the paper tried and dropped (Eq. 12): joint gradient ascent on J in v and w, w
    projected on the simplex.
    """

    weight_rate: float = 1e-3

    def _update(self) -> Update:
        return surrogate(self.weight_rate)
