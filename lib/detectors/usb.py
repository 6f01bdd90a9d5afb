"""USB, Universal Soldier for Backdoor detection (Xu et al. 2023): a targeted universal perturbation, refined.

Algorithm 1 (`universal_perturbations`) walks over the images and adds, for each that is not yet classified as
the target, the smallest perturbation that DeepFool finds towards *the target* (towards the nearest class
would be another method). Algorithm 2 refines it into a mask and a pattern: cross-entropy - SSIM + |m|, all
weights 1 (Eq. 1), on the engine of `masks.py`.

Choices the paper leaves open: the l2 ball; x + v is clipped to [0, 1]; images of the target class are left
out; the printed loop test is made after a pass, and earlier when the last images suggest that it would hold;
mask = max_c |v| / max |v| and pattern = v / mask, clipped to [0, 1]; |m| in the loss is the mean over pixels
(the sum would dwarf the other two terms); the window of the SSIM is 11x11, sigma 1.5, 7x7 for images under 28
pixels; the norm of the scan is |m|_1 of the 2-D mask, as for the other mask methods. Each target is solved
for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from .descent import Descent
from .masks import Extra, Step, estimate_masks
from .neural_cleanse import assemble, seeded
from .pattern_search import Problems
from .scan import Cost, Scan, check_clean
from .uap import Walk, universal_perturbations


@dataclass(frozen=True, kw_only=True)
class USB(Walk, Descent):
    """USB. `max_rounds * round_steps` is the paper's m = 500 iterations; most targets stop earlier (`stall`)."""

    ssim_weight: float = 1.0  # 0: without the mask's control of the looks
    mask_weight: float = 1.0  # 0: the variant of A.6
    batch: int = 18
    round_steps: int = 5
    max_rounds: int = 100
    stall: int = 6
    patience: int = 0
    keep_last: bool = True
    pi: float = 0.9

    def __post_init__(self) -> None:
        Descent.__post_init__(self)
        Walk.__post_init__(self)
        for name in ("ssim_weight", "mask_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: 0 or more is needed")

    def scan(
        self,
        model: nn.Module,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: bool = False,
        uap: Tensor | None = None,
    ) -> Scan:
        """Scan a model, images -> logits (N, K), with clean images (K, n, C, H, W); the paper has 300 in all.

        uap: universal perturbations (K, C, H, W) found on another model (its Scan.trajectory["uap"][0]) to
        start from: each is used as it is where it already reaches theta. Raises ValueError for another shape.
        """
        check_clean(clean)
        if uap is not None and uap.shape != (len(clean), *clean.shape[2:]):
            raise ValueError(f"uap has shape {tuple(uap.shape)}: {(len(clean), *clean.shape[2:])} is needed")
        generator, cost = generator or seeded(clean), Cost()
        v = universal_perturbations(
            model, clean, self, start=uap, generator=generator, cost=cost, progress=progress
        )
        problems = Problems.all_to_one(len(clean))
        found = estimate_masks(
            model, clean, problems, self.refinement(clean.shape[-2] * clean.shape[-1]),
            start=split(v), extra=self.likeness(clean), generator=generator, cost=cost, progress=progress,
        )  # fmt: skip
        found.trajectory["uap"] = v[None].cpu()
        return assemble(self, len(clean), problems, found, cost)

    def refinement(self, pixels: int) -> USB:
        """These settings with |m| weighted as a mean over this many pixels."""
        return replace(self, cost_start=self.mask_weight / pixels)

    def likeness(self, clean: Tensor) -> Extra | None:
        """The -SSIM(x, x') term, or None when its weight is 0."""
        if not self.ssim_weight:
            return None
        window = gaussian_window(11 if min(clean.shape[-2:]) >= 28 else 7).to(clean)

        def extra(step: Step) -> Tensor:
            x, y = step.images.flatten(0, 2), step.stamped.flatten(0, 2)
            return -self.ssim_weight * ssim(x, y, window).view(len(step.images), -1).mean(1)

        return extra


def split(v: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (B, H, W) in [0, 1] and patterns (B, C, H, W) whose product is v (B, C, H, W), wherever v is not
    negative.
    """
    size = v.abs().amax(1)
    mask = size / size.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return mask, (v / mask[:, None].clamp_min(1e-12)).clamp(0, 1)


def gaussian_window(size: int, sigma: float = 1.5) -> Tensor:
    """Gaussian weights (1, 1, size, size) that sum to 1."""
    x = torch.arange(size) - (size - 1) / 2
    g = torch.exp(-(x**2) / (2 * sigma**2))
    return torch.outer(g, g)[None, None] / g.sum() ** 2


def ssim(x: Tensor, y: Tensor, window: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images (N, C, H, W) in [0, 1], averaged: (N,), 1 when
    equal.
    """
    n = len(x)

    def blur(z: Tensor) -> Tensor:
        return conv2d(z.flatten(0, 1)[:, None], window)

    mx, my = blur(x), blur(y)
    vx, vy, both = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return index.view(n, -1).mean(1)


PRESETS: dict[str, USB] = {
    "usb-paper": USB(stall=100, batch=36),  # all 500 iterations
    "usb-no-mask-control": USB(mask_weight=0.0, stall=100),  # A.6
}
