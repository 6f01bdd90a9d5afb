"""Additive, imperceptible attacks: a pattern v added to the image, m(x; v) = [x + v]_c.

The bracket clips to [0, 1]. After Eq. (1) and Secs. A.4 and A.7 of L-RED (Xiang, Miller and Kesidis 2021);
the cross and the L-shape are groups B and C of its first version (2020). `amplitude` counts levels of
1/255, so a stamped 8-bit image is an 8-bit image. What a paper leaves open (place, channel) is drawn from
the attack's `seed` unless given.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import MISSING, dataclass

import torch
from torch import Tensor

from ..settings import Allowed, allowed, number
from .base import AttackError, Place, Shape, SingleAttack, is_whole, shape_of

LEVELS = Allowed(
    lambda value: is_whole(value, least=-255, most=255) and value != 0,
    "a whole number of 1/255 levels, -255 to 255 and not 0,",
)


@dataclass(frozen=True, kw_only=True)
class Additive(SingleAttack):
    """A pattern v added to the image; subclasses say which pixels it touches."""

    amplitude: int = allowed(MISSING, LEVELS)  # in levels of 1/255; negative darkens
    channel: int | None = number(None, least=0)  # None: the subclass's rule, "all" unless it says otherwise

    @abstractmethod
    def where(self, height: int, width: int) -> Tensor:
        """Boolean (H, W): the pixels that are perturbed."""

    def pattern(self, shape: Shape) -> Tensor:
        """The pattern v, (C, H, W), for images of this shape, in units of pixel value."""
        c, h, w = shape
        channel = self.channel_of(c)
        if channel is not None and channel >= c:
            raise AttackError(f"channel = {channel}: the images have channels 0 to {c - 1}")
        v = torch.zeros(shape)
        v[slice(None) if channel is None else channel][..., self.where(h, w)] = int(self.amplitude) / 255
        return v

    def embed(self, images: Tensor) -> Tensor:
        return (images + self.pattern(shape_of(images)).to(images)).clamp(0, 1)

    def channel_of(self, channels: int) -> int | None:
        """The one perturbed channel, or None for all."""
        return self.channel


@dataclass(frozen=True, kw_only=True)
class Global(Additive):
    """One pixel in every 2x2 window, all channels: the lattice i = a, j = b (mod 2), phase (a, b)."""

    phase: Place = (0, 0)

    def where(self, height: int, width: int) -> Tensor:
        i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return (i % 2 == self.phase[0] % 2) & (j % 2 == self.phase[1] % 2)


@dataclass(frozen=True, kw_only=True)
class Chessboard(Additive):
    """Of any two adjacent pixels exactly one, all channels; phase 0 or 1."""

    phase: int = number(0)

    def where(self, height: int, width: int) -> Tensor:
        i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return (i + j) % 2 == self.phase % 2


@dataclass(frozen=True, kw_only=True)
class LocalChessboard(Chessboard):
    """A size x size patch of the chessboard."""

    size: int = number(6, least=1)
    at: Place | None = None  # top-left corner; None: the patch lies in the image's bottom-right corner

    def where(self, height: int, width: int) -> Tensor:
        at = self.at or (height - self.size, width - self.size)
        i, j = self.place(at, (self.size, self.size), height, width)
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[i : i + self.size, j : j + self.size] = True
        return super().where(height, width) & inside


@dataclass(frozen=True, kw_only=True)
class Shaped(Additive):
    """A small shape at one place, given as cells (row, column) from its top-left corner."""

    at: Place | None = None  # top-left corner; None: drawn from the seed

    @abstractmethod
    def cells(self) -> tuple[Place, ...]:
        """The perturbed pixels, relative to the corner."""

    def where(self, height: int, width: int) -> Tensor:
        cells = self.cells()
        extent = (max(i for i, _ in cells) + 1, max(j for _, j in cells) + 1)
        i, j = self.place(self.at, extent, height, width)
        mask = torch.zeros(height, width, dtype=torch.bool)
        for a, b in cells:
            mask[i + a, j + b] = True
        return mask


@dataclass(frozen=True, kw_only=True)
class LocalSquare(Shaped):
    """A size x size square in one channel; place and channel are drawn from the seed unless given."""

    size: int = number(2, least=1)

    def cells(self) -> tuple[Place, ...]:
        return tuple((a, b) for a in range(self.size) for b in range(self.size))

    def channel_of(self, channels: int) -> int | None:
        # the first two draws are the place's
        return self.random(2**16, 2**16, channels)[2] if self.channel is None else self.channel


@dataclass(frozen=True, kw_only=True)
class SinglePixel(Shaped):
    """One pixel, all channels; by default one pixel in from the bottom-right corner."""

    at: Place | None = (-2, -2)  # the paper says only "bottom right"

    def cells(self) -> tuple[Place, ...]:
        return ((0, 0),)


@dataclass(frozen=True, kw_only=True)
class Cross(Shaped):
    """Five pixels in a plus sign, all channels."""

    def cells(self) -> tuple[Place, ...]:
        return ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))


@dataclass(frozen=True, kw_only=True)
class LShape(Shaped):
    """An L of five pixels, all channels: three down and two across are our choice."""

    def cells(self) -> tuple[Place, ...]:
        return ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2))
