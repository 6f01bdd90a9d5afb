"""USB, Universal Soldier for Backdoor detection (Xu et al. 2023): a targeted universal perturbation, refined.

Algorithm 1 (`universal_perturbations`) walks over the images and adds, for each that is not yet classified as
the target, the smallest perturbation that DeepFool finds towards *the target* (towards the nearest class
would be another method). Algorithm 2 refines it into a mask and a pattern: cross-entropy - SSIM + |m|, all
weights 1 (Eq. 1), on the engine of `masks.py`.

The paper keeps v in an l_p ball and gives neither p nor the radius, but follows Moosavi-Dezfooli et al. (2017);
`usb-paper` has their l2 radius (2000 of 255 gray levels), the default has none. Of a trigger's size the text takes
|v'|_1 of mask x pattern, the authors' code |m|_1 of the mask alone: `statistic` offers both.

Choices the paper leaves open: x + v is clipped to [0, 1]; images of the target class are left
out; whether v reaches theta is asked after each image of the first pass, and after every later pass;
mask = max_c |v| / max |v| and pattern = v / mask, clipped to [0, 1]; |m| in the loss is the mean over pixels
(the sum would dwarf the other two terms); a mask entry starts at `floor` or more, over a grey pattern, because a
network of ReLUs may have no gradient at all on a blank ground, so v says nothing there and an entry of 0 could
hardly move; the window of the SSIM is 11x11, sigma 1.5, 7x7 for images under 28
pixels. Each target is solved for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..settings import choice, number, share
from .base import Run
from .descent import Descent
from .masks import Extra, Step, estimate_masks
from .scan import L1_OF_MASK, Problems, Scan, assemble
from .uap import Walk, universal_perturbations

STATISTICS = {"mask": L1_OF_MASK, "trigger": "L1 norm of mask x pattern"}


@dataclass(frozen=True, kw_only=True)
class USB(Walk, Descent):
    """USB. `max_rounds * round_steps` is the paper's m = 500 iterations; most targets stop earlier (`stall`)."""

    pi: float = share(0.9)
    lr: float = number(0.1, above=0)
    batch: int = number(18, least=1)
    round_steps: int = number(5, least=1)
    max_rounds: int = number(100, least=1)
    stall: int = number(6, least=1)
    patience: int = number(0, least=0)
    keep_last: bool = True
    ssim_weight: float = number(1.0, least=0)  # 0: without the mask's control of the looks
    mask_weight: float = number(1.0, least=0)  # 0: the variant of A.6
    floor: float = number(0.1, least=0, below=1)  # smallest mask entry that the refinement starts from
    statistic: str = choice("mask", tuple(STATISTICS))  # what is judged: |m|_1, or |v'|_1 of mask x pattern

    @property
    def norm_name(self) -> str:  # type: ignore[override]
        return STATISTICS[self.statistic]

    def search(self, run: Run, uap: Tensor | None = None) -> Scan:
        """Both algorithms; the paper has 300 clean images in all.

        uap: universal perturbations (K, C, H, W) found on another model, its Scan.trajectory["uap"][0], to start
            from: each is used as it is where it already reaches theta.
        Raises ValueError for another shape.
        """
        clean, k = run.clean, len(run.clean)
        if uap is not None and uap.shape != (k, *clean.shape[2:]):
            raise ValueError(f"uap has shape {tuple(uap.shape)}: {(k, *clean.shape[2:])} is needed")
        v = universal_perturbations(run, self, start=uap)
        problems, how = Problems.all_to_one(k), self.refinement(clean.shape[-2] * clean.shape[-1])
        start = raised(*split(v), self.floor)
        found = estimate_masks(run, problems, how, start=start, extra=self.likeness(clean))
        found.trajectory["uap"] = v[None].cpu()
        if self.statistic == "trigger" and found.mask is not None:
            found = replace(found, norms=(found.mask[:, None] * found.pattern).abs().sum((1, 2, 3)))
        return assemble(self, problems, found, run.cost)

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
    """Masks (B, H, W) in [0, 1] and patterns (B, C, H, W) whose product is v (B, C, H, W) where v >= 0."""
    size = v.abs().amax(1)
    mask = size / size.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return mask, (v / mask[:, None].clamp_min(1e-12)).clamp(0, 1)


def raised(mask: Tensor, pattern: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The same with no mask entry under `floor`; the pattern is grey where an entry was raised."""
    low = (mask < floor)[:, None]
    return mask.clamp_min(floor), torch.where(low, torch.full_like(pattern, 0.5), pattern)


def gaussian_window(size: int, sigma: float = 1.5) -> Tensor:
    """Gaussian weights (size,) that sum to 1; their outer product is the window of the SSIM."""
    x = torch.arange(size) - (size - 1) / 2
    g = torch.exp(-(x**2) / (2 * sigma**2))
    return g / g.sum()


def ssim(x: Tensor, y: Tensor, window: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images (N, C, H, W) in [0, 1], averaged: (N,), 1 when equal.

    window: (size,), as `gaussian_window` gives it.
    """
    rows, columns = (_blurring(window, length) for length in x.shape[-2:])

    def blur(z: Tensor) -> Tensor:  # two products: a convolution's gradient is slow for single channels
        return rows @ z @ columns.T

    mx, my = blur(x), blur(y)
    vx, vy, both = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return index.flatten(1).mean(1)


def _blurring(window: Tensor, length: int) -> Tensor:
    """The matrix (length - size + 1, length) that slides the window along a line, without padding."""
    places = torch.arange(length - len(window) + 1, device=window.device)
    matrix = window.new_zeros(len(places), length)
    matrix[places[:, None], places[:, None] + torch.arange(len(window), device=window.device)] = window
    return matrix


PRESETS: dict[str, USB] = {
    "usb-paper": USB(stall=100, batch=36, radius=2000 / 255, statistic="trigger"),  # all 500 iterations
    "usb-no-mask-control": USB(mask_weight=0.0, stall=100),  # A.6
}
