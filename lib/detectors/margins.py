"""MM-BD: the largest margin that any image gives a class (Wang et al. 2024), without a single clean image.

For each class t the margin over all images x in [0, 1],

    r_t = max_x [ z_t(x) - max_{k != t} z_k(x) ],    z the logits,

is sought by projected gradient ascent from several random images. Training on a backdoor lets the target's logit grow
beyond what any other class's can, whatever the trigger looks like: the target's r is unusually *large*.

The paper fits a Gamma null G to all r_t but the largest and takes pv = 1 - G(r_max)^K. Rules here judge norms, of which
small ones are suspicious, and the Gamma rules turn them into 1 / norm; so the norm of a scan is 1 / r_t. The rule
"gamma" is then the paper's test on r itself, with the same K, and "calibrated" the same with a p-value by simulation. (The
authors' code also fits where G begins; here, as in L-RED, it begins at 0.) The MAD rules have a null of their own, for
1 / r_t, that no paper has.

A class for which no image with a positive margin is found has no such norm. It counts as not reached, and is given the
median of the others' norms, at which the rules leave it out and a scan that flags nothing is inconclusive.

No trigger is estimated. The pattern is the image found and the mask is 1 everywhere: "stamped" on any image it is that
image, so `success` is 1 where the network calls it t, else 0. Nothing here is for a mitigation to unlearn.

Choices of ours: the authors' code takes 300 steps of 0.01 times the gradient, from 30 images; here a step has the same
length whatever the scale of the logits (gradients of pixels that would leave [0, 1] set to 0, the rest scaled to a mean
square of 1), there are 10 images, the same for all classes, the best image on the way is kept, and a class is done when
its margin has stopped rising.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models import log_posterior
from ..settings import number
from .base import Detector, Needs, Run
from .parts import in_parts
from .scan import Found, Problems, Scan, assemble


@dataclass(frozen=True, kw_only=True)
class MMBD(Detector):
    """Largest margins; it takes at most `starts * max_steps` image-gradients a class."""

    starts: int = number(10, least=1)  # random images that each class's ascent begins from
    step: float = number(0.05, above=0)  # root mean square of the change of an image's pixels
    max_steps: int = number(300, least=1)
    stall: int = number(20, least=1)  # done when not risen by `rise` in so many steps
    rise: float = number(1e-3, least=0)  # share of the margin

    needs = Needs(access="gradients", images=False)
    norm_name = "1 / largest margin"

    def search(self, run: Run) -> Scan:
        """Of the clean images only the shape (K, n, C, H, W) and the device are used."""
        k = len(run.clean)
        found = in_parts(run, k, self.starts, self._climb)
        there = found.norms[found.reached]
        typical = there.median() if len(there) else there.new_ones(())
        norms = torch.where(found.reached, found.norms, typical)
        return assemble(self, Problems.all_to_one(k), replace(found, norms=norms), run.cost)

    def _climb(self, run: Run, targets: Tensor, tell: Callable[[int], object]) -> Found:
        """The ascents of these targets (B,) side by side."""
        b, (k, _, *shape) = len(targets), run.clean.shape
        draw = torch.rand(self.starts, *shape, generator=run.generator, device=targets.device)
        x = draw.to(run.clean).repeat(b, 1, 1, 1, 1)
        best, images = x.new_full((b,), -torch.inf), x[:, 0].clone()
        path: list[Tensor] = []  # of best, by step
        active, steps = torch.ones_like(targets, dtype=torch.bool), torch.zeros_like(targets)
        while active.any() and len(path) < self.max_steps and not run.stopped:
            at = torch.nonzero(active).flatten()
            margin, slope = slopes(run, x[at], targets[at], k)
            top, which = margin.max(1)
            higher = top > best[at]
            best[at[higher]], images[at[higher]] = top[higher], x[at[higher], which[higher]]
            x[at] = (x[at] + self.step * direction(x[at], slope)).clamp(0, 1)
            path.append(best.clone())
            steps[at] += 1
            if len(path) > self.stall:
                active &= best - path[-1 - self.stall] > self.rise * best.abs()
                tell(len(at) - int(active.sum()))
        return Found(
            norms=1 / best,
            mask=x.new_ones(b, *shape[1:]),
            pattern=images,
            success=(best > 0).to(x),
            reached=best > 0,
            converged=~active,
            steps=steps,
        )


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """z_t - max_{k != t} z_k of logits (N, K), target (N,): (N,). Log-posteriors have the same margins."""
    own = logits.gather(1, target[:, None])
    return (own - logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]


def slopes(run: Run, x: Tensor, target: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Margins (A, S) of images x (A, S, C, H, W) for target (A,) of k classes, and their gradients, shaped as x."""
    flat = x.flatten(0, 1).requires_grad_(True)
    margin = margins(log_posterior(run.model, flat, k), target.repeat_interleave(x.shape[1]))
    (gradient,) = torch.autograd.grad(margin.sum(), flat)
    run.cost.forward += len(flat)
    run.cost.backward += len(flat)
    return margin.detach().view(x.shape[:2]), gradient.view_as(x)


def direction(x: Tensor, slope: Tensor) -> Tensor:
    """The way up for images x (A, S, C, H, W) in [0, 1]: 0 where it would leave [0, 1], of mean square 1 each, or all 0."""
    leaving = ((x <= 0) & (slope < 0)) | ((x >= 1) & (slope > 0))
    free = slope.masked_fill(leaving, 0)
    size = free.square().mean((2, 3, 4), keepdim=True).sqrt()
    return free / size.clamp_min(torch.finfo(x.dtype).tiny)
