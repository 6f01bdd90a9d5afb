"""B3D-SS: B3D without a single clean image (Dong et al. 2021, Sec. 3.4, Eq. 7).

For each class n random images are moved down the cross-entropy towards it, by gradients estimated from
queries, until the model gives them that class; these images then stand in for the clean ones in `b3d.py`.

What the paper leaves open, and our choice: an image is uniform noise at first, one query a step says whether
it has arrived, samples and images are clipped to [0, 1], estimates use B3D's leave-one-out baseline. Images
that never arrive are replaced by copies of images of their class that did, so that every class weighs the
same; a class where none did keeps its last ones and is named in a warning.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import Queries
from ..settings import number
from . import b3d
from .b3d import B3D, pattern_gradient, target_loss
from .base import Needs, Run
from .scan import Scan


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Images (K, n, C, H, W) in [0, 1]; reached (K, n): was it given its class before any was copied?"""

    images: Tensor
    reached: Tensor


@dataclass(frozen=True, kw_only=True)
class B3DSS(B3D):
    """B3D on synthetic images. `budget` covers both parts; `image_budget` is the first part's share of it."""

    images: int = number(20, least=1)  # synthetic images per class; the paper's is 100
    image_budget: int = number(1_000_000, least=1)
    image_lr: float = number(1.0, above=0)  # eta of Eq. (7)
    image_sigma: float = number(0.1, above=0)
    image_samples: int = number(50, least=2)  # k of Eq. (7)

    needs = Needs(access="answers", images=False)

    def search(self, run: Run) -> Scan:
        """As `B3D.search`; of the clean images only the shape (K, n, C, H, W) and the device are used."""
        k, queries = len(run.clean), self.queries(run)
        least = self.least_queries(k, self.images)
        if queries.left < least + self.image_budget:
            needed = f"{self.image_budget} for images and {least} for a round are needed"
            raise ValueError(f"budget = {self.budget}: {needed}")
        with run.cost.clock():
            made = self.synthesise(queries, tuple(run.clean.shape[2:]), run.generator)
            return self.descend(queries, run, made.images)

    def synthesise(self, queries: Queries, shape: tuple[int, ...], generator: torch.Generator) -> Synthesis:
        """Eq. (7) for all images of all classes side by side, within `image_budget`; each rests once arrived."""
        k, n, device = queries.n_classes, self.images, generator.device
        x = torch.rand(k * n, *shape, generator=generator, device=device)
        labels = torch.arange(k, device=device).repeat_interleave(n)
        away = torch.ones(k * n, dtype=torch.bool, device=device)
        before = queries.cost.queries
        while away.any():
            at = torch.nonzero(away).flatten()
            if queries.cost.queries - before + len(at) * (self.image_samples + 1) > self.image_budget:
                break
            away[at] = queries(x[at]).argmax(1) != labels[at]
            at = at[away[at]]
            if len(at):
                x[at] = self._descend(queries, x[at], labels[at], generator)
        return Synthesis(images=_replaced(x, away, k), reached=~away.view(k, n))

    def _descend(self, queries: Queries, x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(x), self.image_samples, *x.shape[1:], generator=generator, device=x.device)
        around = (x[:, None] + self.image_sigma * noise).clamp(0, 1)
        losses, _ = target_loss(queries, around[:, :, None], labels)
        gradient = pattern_gradient(losses, noise, self.image_sigma, baseline=self.baseline)
        return (x - self.image_lr * gradient).clamp(0, 1)


PRESETS: dict[str, B3DSS] = {
    # as printed, n too
    "b3d-ss-paper": B3DSS(
        **vars(b3d.PRESETS["b3d-paper"]) | {"budget": 100_000_000, "image_budget": 50_000_000, "images": 100}
    ),
}


def _replaced(x: Tensor, away: Tensor, k: int) -> Tensor:
    """Images (K, n, ...) with copies, in turn, of those that arrived in the place of those that did not."""
    images, away = x.view(k, -1, *x.shape[1:]).clone(), away.view(k, -1)
    for c in range(k):
        good, bad = torch.nonzero(~away[c]).flatten(), torch.nonzero(away[c]).flatten()
        if not len(good):
            warnings.warn(
                f"no synthetic image was given class {c}: raise image_budget or image_lr", stacklevel=4
            )
        elif len(bad):
            images[c, bad] = images[c, good[torch.arange(len(bad), device=x.device) % len(good)]]
    return images
