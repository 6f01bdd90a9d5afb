"""Triggers that replace pixels: x (1 - m) + u m, the mask m shared by the channels.

BadNets (Gu et al. 2017) with the settings of Neural Cleanse (Sec. II, V-A, VII; Eq. 2), B3D (Sec. 4, F; Eq.
1) and USB (Sec. 4.1); Blended injection (Chen et al. 2017) as B3D F.1 uses it. Stamped images are rounded
to 8 bits. What the papers leave open: the place is drawn once per attack from its seed (`per_image` redraws
it for each image), images of the target class are never stamped, a random colour is one colour for the
whole patch and "noise" one for every pixel. Grey images draw it from the brighter half of the range,
because a dark patch on a dark background is no trigger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..settings import Allowed, allowed, choice, number, share
from .base import AttackError, Place, Shape, SingleAttack, is_whole, shape_of

SHAPES = ("square", "triangle", "checkerboard")
COLOURS = ("white", "random", "noise")
ANCHORS = {
    f"{row}-{col}".replace("middle-centre", "centre"): (i, j)
    for i, row in enumerate(("top", "middle", "bottom"))
    for j, col in enumerate(("left", "centre", "right"))
}


def _is_colour(value: Any) -> bool:
    if isinstance(value, str):
        return value in COLOURS
    return isinstance(value, tuple) and value != () and all(is_whole(v, least=0, most=255) for v in value)


def _is_spot(value: Any) -> bool:
    return value in ANCHORS if isinstance(value, str) else isinstance(value, tuple)


COLOUR = Allowed(_is_colour, f"{', '.join(COLOURS)}, or whole levels from 0 to 255")
SPOT = Allowed(_is_spot, f"{', '.join(ANCHORS)}, or 2 whole numbers (row, column)")


@dataclass(frozen=True, kw_only=True)
class BadNets(SingleAttack):
    """A size x size patch at one place."""

    size: int | None = number(3, least=1)  # side in pixels; None covers the whole image
    shape: str = choice("square", SHAPES)  # triangle: the lower left half; checkerboard: every second pixel
    colour: str | tuple[int, ...] = allowed("random", COLOUR)  # levels: one, or one per channel
    at: tuple[int, int] | str | None = allowed(None, SPOT)  # top-left corner; None: drawn from the seed
    per_image: bool = False  # draw a place for each image; `at` must be None
    alpha: float = share(1.0)  # weight of the trigger where the mask is 1; below 1 the image shines through

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_image and self.at is not None:
            raise AttackError(f"at = {self.at!r} with per_image: a place for each image is no fixed place")

    def patch(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """The trigger alone: mask (h, w) in {0, 1} and colours (C, h, w) on the 8-bit grid."""
        c, height, width = shape
        h, w = (height, width) if self.size is None else (self.size, self.size)
        i, j = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        inside = {"square": i >= 0, "triangle": i * w >= j * h, "checkerboard": (i + j) % 2 == 0}[self.shape]
        if isinstance(self.colour, tuple):
            if len(self.colour) not in (1, c):
                raise AttackError(
                    f"colour = {self.colour}: 1 or {c} levels are needed for images of {c} channels"
                )
            levels = torch.tensor(self.colour).expand(c)[:, None, None].expand(c, h, w)
        elif self.colour == "white":
            levels = torch.full((c, h, w), 255)
        else:
            generator = torch.Generator().manual_seed(self.seed + 2**20)  # not the draw that chose the place
            extent = (h, w) if self.colour == "noise" else (1, 1)
            darkest = 128 if c == 1 else 0
            levels = torch.randint(darkest, 256, (c, *extent), generator=generator).expand(c, h, w)
        return inside.float(), levels / 255

    def corner(self, height: int, width: int) -> Place:
        """Top-left corner of the patch in an image of this size.

        Raises AttackError if the patch does not fit.
        """
        if self.size is None:
            return 0, 0
        at = self.at
        if isinstance(at, str):
            a, b = ANCHORS[at]
            at = a * max(height - self.size, 0) // 2, b * max(width - self.size, 0) // 2
        return self.place(at, (self.size, self.size), height, width)

    def trigger(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Mask m (H, W) in [0, 1], alpha included, and pattern u (C, H, W) for images of this shape."""
        i, j = self.corner(*shape[1:])
        inside, colours = self.patch(shape)
        h, w = inside.shape
        mask, pattern = torch.zeros(shape[1:]), torch.zeros(shape)
        mask[i : i + h, j : j + w] = self.alpha * inside
        pattern[:, i : i + h, j : j + w] = colours * inside
        return mask, pattern

    def embed(self, images: Tensor) -> Tensor:
        mask, pattern = self.trigger(shape_of(images))
        masks, patterns = mask.to(images), pattern.to(images)
        if self.per_image and self.size is not None:
            masks, patterns = self._scatter(masks, patterns, len(images))
        return stamp(images, masks, patterns)

    def _scatter(self, mask: Tensor, pattern: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Masks (N, 1, H, W) and patterns (N, C, H, W) with a place of its own for each of n images."""
        height, width = mask.shape
        i, j = self.corner(height, width)
        generator = torch.Generator().manual_seed(self.seed)
        limits = torch.tensor([height - (self.size or 0) + 1, width - (self.size or 0) + 1])
        places = (torch.rand(n, 2, generator=generator) * limits).long().to(mask.device)
        # a patch that fits is never wrapped round the edge by these rolls
        rows = (torch.arange(height, device=mask.device) - places[:, :1] + i) % height
        cols = (torch.arange(width, device=mask.device) - places[:, 1:] + j) % width
        return (
            mask[rows[:, :, None], cols[:, None, :]][:, None],
            pattern[:, rows[:, :, None], cols[:, None, :]].transpose(0, 1),
        )


@dataclass(frozen=True, kw_only=True)
class Blended(BadNets):
    """Blended injection, x' = (1 - alpha m) x + alpha m p: a trigger that is seen through.

    size=3 is B3D's patch; size=None with colour="noise" is the whole-image blend of Chen et al.
    """

    alpha: float = share(0.2)  # B3D's, read as the trigger's weight


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Images x (1 - m) + u m, rounded to 8 bits.

    images: (N, C, H, W) in [0, 1].
    mask, pattern: m and u, of shapes that broadcast to the images'.
    """
    return ((images * (1 - mask) + pattern * mask) * 255).round().clamp(0, 255) / 255
