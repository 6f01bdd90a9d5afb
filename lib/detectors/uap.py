"""Targeted universal perturbations: Algorithm 1 of USB (Xu et al. 2023), after Moosavi-Dezfooli et al. (2017).

Which choices are the paper's and which are ours is said in `usb.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..models import Cost, frozen, log_posterior
from ..models.ask import BATCH
from ..settings import Settings, number
from .base import Run, clip, of_others


@dataclass(frozen=True, kw_only=True)
class Walk(Settings):
    """Settings of Algorithm 1; `USB` inherits them."""

    theta: float = number(0.6, above=0, below=1)  # share of images that must be sent to the target
    radius: float = number(float("inf"), above=0, most=float("inf"))  # of the l2 ball that v is kept in
    passes: int = number(5, least=1)  # over the images, at most
    deepfool_steps: int = number(10, least=1)  # per image, at most
    overshoot: float = number(0.02, least=0)


def universal_perturbations(run: Run, how: Walk, *, start: Tensor | None = None) -> Tensor:
    """Algorithm 1 for all K targets side by side: v (K, C, H, W) that sends more than theta of the others there.

    Whether it does is asked after each image of the first pass that has moved v, and after every later pass: the
    printed loop asks after passes alone, but two to nine images are often enough, and each adds to v's length.
    start: perturbations to go on from, zeros without. A target that does not get there within `passes` keeps its
    last v.
    """
    model, clean, cost, (k, _, *shape) = run.model, run.clean, run.cost, run.clean.shape
    images, visits = of_others(clean, run.generator)
    v = torch.zeros(k, *shape, device=clean.device) if start is None else start.to(clean).clone()
    with (
        cost.clock(),
        frozen(model),
        tqdm(total=k, desc="universal", disable=not run.progress, leave=False) as bar,
    ):
        active = torch.arange(k, device=clean.device)

        def look(at: Tensor) -> Tensor:
            """Which targets go on, once those `at` have been looked at."""
            done = at[_share(model, images, visits, v, at, cost) > how.theta]
            bar.update(len(done))
            return active[~torch.isin(active, done)]

        active = look(active)
        for turn in range(how.passes):
            for i in range(visits.shape[1]):
                if not len(active) or run.stopped:
                    return v
                x = images[visits[active, i]]
                move, there = deepfool(model, x, v[active], active, how, cost, n_classes=k)
                v[active] = project(v[active] + move, how.radius)
                if turn == 0 and not there.all():
                    active = look(active[~there])
            if turn:
                active = look(active)
    return v


def deepfool(
    model: nn.Module, x: Tensor, v: Tensor, target: Tensor, how: Walk, cost: Cost, *, n_classes: int
) -> tuple[Tensor, Tensor]:
    """The smallest steps r that bring the images x + v into their target's region, linearised again and again.

    With logits z and the present class k: r += (z_k - z_t + eps) / |w|^2 w, w = grad(z_t - z_k). x and v (A,
    C, H, W), target (A,). Returns (1 + overshoot) r, zero where x + v is there already, and where that was so
    (A,).
    """
    r, todo = torch.zeros_like(v), torch.arange(len(x), device=x.device)
    there = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for step in range(how.deepfool_steps + 1):
        shift = (v + (1 + how.overshoot) * r)[todo].requires_grad_(True)
        z = log_posterior(model, clip(x[todo] + shift), n_classes)
        cost.forward += len(todo)
        present, goal = z.argmax(1), target[todo]
        away = present != goal
        if step == 0:
            there = ~away
        if step == how.deepfool_steps or not away.any():
            break
        gap = (z.gather(1, goal[:, None]) - z.gather(1, present[:, None]))[:, 0]
        (w,) = torch.autograd.grad(gap.sum(), shift)
        cost.backward += len(todo)
        w, todo = w[away], todo[away]
        size = w.flatten(1).square().sum(1).clamp_min(1e-12)
        r[todo] += ((1e-4 - gap.detach()[away]) / size)[:, None, None, None] * w
    return (1 + how.overshoot) * r, there


def project(v: Tensor, radius: float) -> Tensor:
    """Onto the l2 ball: v (A, C, H, W) scaled down where it is longer than `radius`."""
    norm = v.flatten(1).norm(dim=1).clamp_min(1e-12)
    return v * (radius / norm).clamp_max(1)[:, None, None, None]


@torch.no_grad()
def _share(
    model: nn.Module, images: Tensor, visits: Tensor, v: Tensor, targets: Tensor, cost: Cost
) -> Tensor:
    """The share of the other classes' images that v sends to each of these targets, (A,)."""
    shares = []
    for some in targets.split(max(1, BATCH // visits.shape[1])):
        x = (images[visits[some]] + v[some, None]).clamp(0, 1).flatten(0, 1)
        cost.forward += len(x)
        said = torch.cat([log_posterior(model, part, len(v)).argmax(1) for part in x.split(BATCH)])
        shares.append((said.view(len(some), -1) == some[:, None]).float().mean(1))
    return torch.cat(shares)
