"""Targeted universal perturbations: Algorithm 1 of USB (Xu et al. 2023), after Moosavi-Dezfooli et al. (2017).

Which choices are the paper's and which are ours is said in `usb.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..models import Cost, frozen, log_posterior
from ..settings import Settings, number
from .base import Run, clip


@dataclass(frozen=True, kw_only=True)
class Walk(Settings):
    """Settings of Algorithm 1; `USB` inherits them."""

    theta: float = number(0.6, above=0, below=1)  # share of images that must be sent to the target
    radius: float = number(
        float("inf"), above=0, most=float("inf")
    )  # of the l2 ball that the perturbation is kept in
    passes: int = number(5, least=1)  # over the images, at most
    deepfool_steps: int = number(10, least=1)  # per image, at most
    overshoot: float = number(0.02, least=0)


def universal_perturbations(run: Run, how: Walk, *, start: Tensor | None = None) -> Tensor:
    """Algorithm 1 for all K targets side by side: v (K, C, H, W) that sends more than theta of the others there.

    start: perturbations to go on from, zeros without. A target that does not get there within `passes` keeps its
    last v.
    """
    model, clean, cost, (k, _, *shape) = run.model, run.clean, run.cost, run.clean.shape
    images, visits = _visits(clean, run.generator)
    v = torch.zeros(k, *shape, device=clean.device) if start is None else start.to(clean).clone()
    window = min(50, visits.shape[1])
    with (
        cost.clock(),
        frozen(model),
        tqdm(total=k, desc="universal", disable=not run.progress, leave=False) as bar,
    ):
        active = _unfooled(model, images, visits, v, torch.arange(k, device=clean.device), how.theta, cost)
        bar.update(k - len(active))
        for _ in range(how.passes):
            hits = torch.zeros(k, visits.shape[1], device=clean.device)
            for i in range(visits.shape[1]):
                if not len(active) or run.stopped:
                    return v
                x = images[visits[active, i]]
                move, hit = deepfool(model, x, v[active], active, how, cost, n_classes=k)
                v[active] = project(v[active] + move, how.radius)
                hits[active, i] = hit.float()
                last = i + 1 == visits.shape[1]
                lately = hits[active, max(0, i + 1 - window) : i + 1].mean(1)
                seems = (lately > how.theta) & (i + 1 >= window)
                if last or (seems.any() and i % 10 == 0):
                    asked = active if last else active[seems]
                    still = _unfooled(model, images, visits, v, asked, how.theta, cost)
                    done = asked[~torch.isin(asked, still)]
                    active = active[~torch.isin(active, done)]
                    bar.update(len(done))
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


def _visits(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All images (N, C, H, W), and for each target the positions (K, M) of the images of other classes.

    Their order does not depend on how the classes are numbered.
    """
    k, n = clean.shape[:2]
    images = clean.flatten(0, 1)
    weight = torch.rand(clean.shape[2:], generator=torch.Generator().manual_seed(0)).to(clean)
    by_content = (images * weight).flatten(1).sum(1).argsort()
    order = by_content[torch.randperm(k * n, generator=generator, device=generator.device).to(clean.device)]
    label = order // n
    visits = torch.stack([torch.nonzero(label != t).flatten() for t in range(k)])
    return images[order], visits


@torch.no_grad()
def _unfooled(
    model: nn.Module, images: Tensor, visits: Tensor, v: Tensor, targets: Tensor, theta: float, cost: Cost
) -> Tensor:
    """Those of `targets` whose v sends no more than theta of the other classes' images there."""
    still = []
    for t in targets.tolist():
        x = (images[visits[t]] + v[t]).clamp(0, 1)
        cost.forward += len(x)
        hits = torch.cat([log_posterior(model, part, len(v)).argmax(1) == t for part in x.split(1000)])
        if hits.float().mean() <= theta:
            still.append(t)
    return torch.tensor(still, dtype=torch.long, device=images.device)
