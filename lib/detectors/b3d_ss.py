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
from torch import Tensor, nn

from . import b3d
from .b3d import B3D, pattern_gradient, target_loss
from .blackbox import Probabilities, Queries, black_box
from .scan import Cost, Scan, seeded


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Images (K, n, C, H, W) in [0, 1]; reached (K, n): was it given its class before any was copied?"""

    images: Tensor
    reached: Tensor


@dataclass(frozen=True, kw_only=True)
class B3DSS(B3D):
    """B3D on synthetic images. `budget` covers both parts; `image_budget` is the first part's share of it."""

    images: int = 20  # synthetic images per class; the paper's is 100
    image_budget: int = 1_000_000
    image_lr: float = 1.0  # eta of Eq. (7)
    image_sigma: float = 0.1
    image_samples: int = 50  # k of Eq. (7)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1 or self.image_budget < 1 or self.image_samples < 2:
            raise ValueError(
                f"images = {self.images}, image_budget = {self.image_budget}, "
                f"image_samples = {self.image_samples}: at least 1, 1 and 2 are needed"
            )
        if not (self.image_lr > 0 and self.image_sigma > 0):
            raise ValueError(
                f"image_lr = {self.image_lr}, image_sigma = {self.image_sigma}: both must be positive"
            )

    def scan(
        self,
        model: nn.Module | Probabilities,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Scan:
        """As `B3D.scan`; of `clean` only the shape (K, n, C, H, W) and the device are used; n may be 0."""
        if clean.ndim != 5 or clean.shape[0] < 2:
            raise ValueError(f"clean has shape {tuple(clean.shape)}: (K, n, C, H, W) with K >= 2 is needed")
        cost, k = Cost(), len(clean)
        queries = Queries(black_box(model), k, budget=self.budget, batch_size=self.query_batch, cost=cost)
        draw = seeded(generator, clean.device)
        least = self.least_queries(k, self.images)
        if queries.left < least + self.image_budget:
            raise ValueError(
                f"budget = {self.budget}: {self.image_budget} for images and {least} for a round are needed"
            )
        with cost.clock():
            made = self.synthesise(queries, tuple(clean.shape[2:]), draw)
            return self.search(queries, made.images, draw, progress)

    def synthesise(self, queries: Queries, shape: tuple[int, ...], generator: torch.Generator) -> Synthesis:
        """Eq. (7) for all images of all classes side by side, within `image_budget`;
        each rests once it has arrived.
        """
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


PAPER = B3DSS(
    **vars(b3d.PAPER) | {"budget": 100_000_000, "image_budget": 50_000_000, "images": 100}
)  # n as printed


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
