"""The search for additive patterns: Algorithm 1 of L-RED (Xiang et al. 2021) for B problems side by side.

A problem is a putative target, S putative source classes, and a pattern v; it is retired as soon as its
weighted share of misclassified images reaches pi. One forward and one backward pass make a step: the shares q
at the new v come from the same pass as the log-posteriors whose weighted gradient, with the new weights, is
the next step.

Choices the papers leave open: full batches; exact gradient through the clip; no projection and no
quantisation of v; a problem whose gradient vanishes, or that reaches max_steps, keeps its last v and is
marked as not converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .scan import Cost, clip, frozen
from .weights import Update

COARSE_UNTIL = 0.3  # below this Q the weights stay nearly uniform (exp(1/T) = 2.3); above it the path decides


@dataclass(frozen=True)
class Problems:
    """target (B,), sources (B, S): class indices."""

    target: Tensor
    sources: Tensor

    @classmethod
    def all_to_one(cls, k: int) -> Problems:
        """K problems: all other classes to each target."""
        return cls(torch.arange(k), torch.tensor([[s for s in range(k) if s != t] for t in range(k)]))

    @classmethod
    def pairs(cls, k: int) -> Problems:
        """K(K-1) problems: one source, one target."""
        target, source = torch.tensor([[t, s] for t in range(k) for s in range(k) if s != t]).T
        return cls(target, source[:, None])


@dataclass
class Solution:
    """v (B, C, H, W), w and q (B, S), success Q (B,), converged (B,), steps (B,),
    trajectory tensors (steps, B, ...).
    """

    v: Tensor
    w: Tensor
    q: Tensor
    success: Tensor
    converged: Tensor
    steps: Tensor
    trajectory: dict[str, Tensor]


class Recorder:
    """Keeps Q, T, w, q, ||v|| of every problem at every step, and v at every `every`-th;
    nothing when `every` is 0.
    """

    def __init__(self, every: int, n_problems: int) -> None:
        self.every, self.n = every, n_problems
        self.rows: dict[str, list[Tensor]] = {}

    def keep(self, step: int, active: Tensor, **values: Tensor) -> None:
        if not self.every:
            return
        for name, value in values.items():
            if name == "v" and step % self.every:
                continue
            row = torch.full((self.n, *value.shape[1:]), float("nan"))
            row[active.cpu()] = value.detach().float().cpu()
            self.rows.setdefault(name, []).append(row)

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.stack(rows) for name, rows in self.rows.items()}


def estimate(
    model: nn.Module,
    clean: Tensor,
    problems: Problems,
    *,
    update: Update,
    step: tuple[float, float],
    pi: float = 0.9,
    max_steps: int = 10_000,
    record_every: int = 0,
    stop: Callable[[], bool] | None = None,
    cost: Cost | None = None,
    progress: bool = False,
) -> Solution:
    """Algorithm 1 for all problems at once. clean: (K, n, C, H, W).

    update: new weights from (w, q, mean log-posteriors, step). step: lengths (coarse, fine). A problem takes
    coarse steps until one lands at Q >= COARSE_UNTIL; that step is shortened to a fine one, and fine ones
    follow. Equal lengths are Algorithm 1 to the letter: ||delta v|| is that length at every step. stop: asked
    before every step; True ends the run with what there is. Raises ValueError if the model gives anything but
    (N, K) finite logits.
    """
    device, (k, n, *shape) = clean.device, clean.shape
    target, sources = problems.target.to(device), problems.sources.to(device)
    (b, s), cost, (coarse, fine) = sources.shape, cost or Cost(), step
    v, direction = torch.zeros(2, b, *shape, device=device)
    w, q = torch.full((b, s), 1 / s, device=device), torch.zeros(b, s, device=device)
    success, steps = torch.zeros(b, device=device), torch.zeros(b, dtype=torch.long, device=device)
    converged, careful = torch.zeros(2, b, dtype=torch.bool, device=device)
    careful |= coarse == fine
    recorder, active = Recorder(record_every, b), torch.arange(b, device=device)
    images = clean[sources]  # (B, S, n, C, H, W), made anew when a problem retires
    bar = tqdm(total=b, desc="patterns", disable=not progress, leave=False)
    with cost.clock(), frozen(model), bar:
        for i in range(max_steps + 1):
            if not len(active) or (stop is not None and stop()):
                break
            here = v[active].requires_grad_(True)
            log_p = _posteriors(model, images, here, k)
            cost.forward += len(active) * s * n
            toward = log_p.gather(3, target[active][:, None, None, None].expand(-1, s, n, 1))[..., 0]
            q[active] = shares = (log_p.argmax(3) == target[active][:, None, None]).float().mean(2)
            w_old = w[active]
            success[active] = (w_old * shares).sum(1)  # Q with the old weights
            temperature = torch.full_like(success[active], torch.inf)
            too_far = ~careful[active] & (success[active] >= COARSE_UNTIL) & (i > 0)
            done = (success[active] >= pi - 1e-6) & ~too_far & (i > 0)
            if i:
                w_new, temperature = update(w_old, shares, toward.detach().mean(2), i)
                w[active] = torch.where((done | too_far)[:, None], w_old, w_new)
            norm = here.detach().flatten(1).norm(dim=1)
            recorder.keep(
                i, active, Q=success[active], T=temperature, w=w[active], q=shares, norm=norm, v=here
            )
            steps[active], converged[active] = i, done
            if i == max_steps:
                break
            unit, flat = _unit_gradient((w[active] * toward.mean(2)).sum(), here)
            cost.backward += len(active) * s * n
            length = torch.where(careful[active], fine, coarse)
            unit = torch.where(_wide(too_far), direction[active], unit)
            length = torch.where(too_far, fine - coarse, length)
            retired = done | (flat & ~too_far)
            v[active] = here.detach() + torch.where(_wide(retired), 0, _wide(length) * unit)
            direction[active], careful[active] = unit, careful[active] | too_far
            if retired.any():
                active = active[~retired]
                images = clean[sources[active]]
                bar.update(int(retired.sum()))
    return Solution(v, w, q, success, converged, steps, recorder.tensors())


def _wide(x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to meet patterns."""
    return x[:, None, None, None]


def _posteriors(model: nn.Module, images: Tensor, v: Tensor, k: int) -> Tensor:
    """Log-posteriors (B, S, n, K) of images (B, S, n, C, H, W)
    with their problem's pattern v (B, C, H, W) on them.
    """
    shifted = clip(images + v[:, None, None]).flatten(0, 2)
    return log_posterior(model, shifted, k).view(*images.shape[:3], -1)


def _unit_gradient(value: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (B, C, H, W) scaled to norm 1, and which of them vanish (B,)."""
    (gradient,) = torch.autograd.grad(value, at)
    size = gradient.flatten(1).norm(dim=1)
    return gradient / _wide(size.clamp_min(torch.finfo(size.dtype).tiny)), size == 0


def log_posterior(model: nn.Module, images: Tensor, k: int) -> Tensor:
    """Log-posteriors (N, K). Raises ValueError if the model gives anything but (N, K) finite logits."""
    logits = model(images)
    if logits.ndim != 2 or logits.shape[1] != k:
        raise ValueError(
            f"the model gave shape {tuple(logits.shape)} for {len(images)} images of {k} classes: (N, K) is needed"
        )
    if not torch.isfinite(logits).all():
        raise ValueError("the model gave logits that are not finite")
    return torch.log_softmax(logits, 1)
