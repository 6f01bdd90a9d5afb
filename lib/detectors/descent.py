"""The descent of mask-and-pattern estimation: its settings, and the state of problems that run side by side.

See `masks.py` for the engine and for which choices are the papers' and which are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import Allowed, allowed, are_numbers, number, share
from .base import Detector
from .scan import L1_OF_MASK

BETAS = Allowed(lambda value: are_numbers(value, 2, least=0, below=1), "a pair of numbers from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Descent(Detector):
    """Settings of the engine; the mask detectors inherit them.

    cost_waits: the mask's weight is 0 until `patience` successful rounds in a row.
    stall: a class retires after so many rounds without progress, with a moving cost only once that has been both up
        and down. Progress is a norm below `threshold` times that of the last round with progress (`keep_last`: a
        change as large, either way).
    keep_last: keep the last mask instead of the smallest successful one.
    record_every: record the masks at every so many rounds, norms and shares at all of them; 0 records nothing.
    """

    pi: float = share(0.99)  # share of the images that a successful trigger sends to the target
    lr: float = number(0.2, above=0)  # the released code of Neural Cleanse: 0.1
    betas: tuple[float, float] = allowed((0.5, 0.9), BETAS)
    batch: int = number(18, least=1)  # images per problem and step, spread over its source classes
    round_steps: int = number(2, least=1)  # Adam steps between two looks at the success share
    max_rounds: int = number(200, least=1)
    cost_start: float = number(1e-3, least=0)  # weight of |m|_1 from the first success on
    cost_waits: bool = False
    cost_up: float = number(2.0, least=1)
    cost_down: float = number(2.0**1.5, least=1)
    patience: int = number(3, least=0)  # rounds in a row before the cost moves; 0 leaves it at cost_start
    stall: int = number(20, least=1)
    threshold: float = number(0.99, above=0, most=1)
    keep_last: bool = False
    record_every: int = number(0, least=0)

    norm_name = L1_OF_MASK

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))


def unit(theta: Tensor) -> Tensor:
    """(tanh(theta) + 1) / 2, in (0, 1)."""
    return (theta.tanh() + 1) / 2


def inverse_unit(x: Tensor, margin: float = 1e-4) -> Tensor:
    """theta with unit(theta) = x, x kept `margin` away from 0 and 1, where the slope would vanish."""
    return torch.atanh((2 * x - 1).clamp(-1 + 2 * margin, 1 - 2 * margin))


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """x (1 - m) + u m: images (A, ..., C, H, W), mask (A, H, W), pattern (A, C, H, W)."""
    extra = (1,) * (images.ndim - 4)
    m = mask.view(len(mask), *extra, 1, *mask.shape[1:])
    return images * (1 - m) + pattern.view(len(pattern), *extra, *pattern.shape[1:]) * m


class State:
    """Parameters, Adam moments, costs and counters of the running problems; results of those that are done.

    index (A,): which problems run. All other tensors but the results have one row for each of them.
    """

    def __init__(
        self, how: Descent, start: tuple[Tensor, Tensor], b: int, s: int, device: torch.device
    ) -> None:
        mask = start[0].to(device).expand(b, *start[0].shape[-2:])
        pattern = start[1].to(device).expand(b, *start[1].shape[-3:])
        self.how, self.index, self.steps = how, torch.arange(b, device=device), 0
        self.mask, self.pattern = mask.clone(), pattern.clone()  # results, all B
        self.w_kept = torch.full((b, s), 1 / s, device=device)
        self.reached, self.converged = torch.zeros(2, b, dtype=torch.bool, device=device)
        self.rounds = torch.zeros(b, dtype=torch.long, device=device)
        self.w = self.w_kept.clone()
        self.theta = [inverse_unit(mask), inverse_unit(pattern)]
        self.seen = self.theta  # what the model was last asked about: only that has a success share
        self.moments = [torch.zeros_like(t) for t in self.theta for _ in range(2)]
        self.cost = torch.full((b,), 0.0 if how.cost_waits else how.cost_start, device=device)
        self.smallest = torch.full((b,), torch.inf, device=device)
        self.mark = self.smallest.clone()  # norm of the last round with progress
        self.ups, self.downs, self.stalled = (
            torch.zeros(b, dtype=torch.long, device=device) for _ in range(3)
        )
        self.rose, self.fell = (torch.zeros(b, dtype=torch.bool, device=device) for _ in range(2))

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Mask (A, H, W) and pattern (A, C, H, W), differentiable."""
        self.theta = [t.detach().requires_grad_(True) for t in self.theta]
        self.seen = [t.detach() for t in self.theta]
        return unit(self.theta[0]), unit(self.theta[1])

    def step(self, loss: Tensor) -> None:
        """One step of Adam (Kingma and Ba 2015, Algorithm 1) on the sum of the problems' losses."""
        self.steps += 1
        (b1, b2), gradients = self.how.betas, torch.autograd.grad(loss, self.theta)
        for i, g in enumerate(gradients):
            first, second = self.moments[2 * i : 2 * i + 2]
            first.mul_(b1).add_(g, alpha=1 - b1)
            second.mul_(b2).addcmul_(g, g, value=1 - b2)
            scale = (second / (1 - b2**self.steps)).sqrt_().add_(1e-8)
            self.theta[i] = self.theta[i].detach() - self.how.lr * (first / (1 - b1**self.steps)) / scale

    def look(self, success: Tensor) -> Tensor:
        """After a round with success shares (A,): keep smaller masks, move the costs; returns masks (A, H, W)."""
        mask, pattern = unit(self.seen[0]), unit(self.seen[1])
        norm, good = mask.sum((1, 2)), success >= self.how.pi - 1e-6
        eligible = good | self.how.keep_last
        moved = norm < self.how.threshold * self.mark
        if self.how.keep_last:  # a fixed cost may let a mask grow before it shrinks: any change counts
            moved |= norm > self.mark / self.how.threshold
        moved &= eligible
        self.stalled = torch.where(moved, 0, self.stalled + 1)
        self.mark = torch.where(moved, norm, self.mark)
        better = (eligible & (norm < self.smallest)) | self.smallest.isinf() | self.how.keep_last
        at = self.index[better]
        self.mask[at], self.pattern[at], self.w_kept[at] = mask[better], pattern[better], self.w[better]
        self.reached[at] = good[better]
        least = norm if self.how.keep_last else torch.minimum(norm, self.smallest)
        self.smallest = torch.where(eligible, least, self.smallest)
        if self.how.patience:
            self._move_cost(good)
        return mask

    def _move_cost(self, good: Tensor) -> None:
        how = self.how
        self.ups, self.downs = torch.where(good, self.ups + 1, 0), torch.where(good, 0, self.downs + 1)
        begin = (self.cost == 0) & (self.ups >= how.patience)
        raise_ = (self.cost > 0) & (self.ups >= how.patience)
        lower = (self.cost > 0) & (self.downs >= how.patience)
        factor = torch.where(raise_, how.cost_up, torch.where(lower, 1 / how.cost_down, 1.0))
        self.cost = torch.where(begin, how.cost_start, self.cost * factor)
        self.ups, self.downs = self.ups.masked_fill(begin | raise_, 0), self.downs.masked_fill(lower, 0)
        self.rose, self.fell = self.rose | raise_, self.fell | lower

    def retire(self, turn: int, *, last: bool) -> int:
        """Let go of the problems that are done (all of them if `last`) and say how many they are."""
        self.rounds[self.index] = turn
        settled = (self.rose & self.fell) if self.how.patience else torch.ones_like(self.rose)
        by_itself = (self.stalled >= self.how.stall) & settled
        done = by_itself | last
        if not done.any():
            return 0
        self.converged[self.index] = by_itself
        stay = ~done
        self.theta, self.moments, self.seen = (
            [t[stay] for t in x] for x in (self.theta, self.moments, self.seen)
        )
        for name in ("index", "w", "cost", "smallest", "mark", "ups", "downs", "stalled", "rose", "fell"):
            setattr(self, name, getattr(self, name)[stay])
        return int(done.sum())

    def norms(self) -> Tensor:
        """|m|_1 of all B problems now: of the current mask while one runs, of the kept one afterwards."""
        norms = self.mask.sum((1, 2))
        norms[self.index] = unit(self.seen[0]).sum((1, 2))
        return norms
