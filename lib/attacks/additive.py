"""Additive, imperceptible attacks: m(x; v) = [x + v]_c, clipped to [0, 1] (L-RED Eq. 1, Sec. A.4 and A.7).

`amplitude` counts levels of 1/255, so a stamped 8-bit image is an 8-bit image. Negative amplitudes darken.
What a paper leaves open (place, channel) is drawn from the attack's `seed` unless given.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Attack, AttackError, Place

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Additive(Attack):
    """A pattern v added to the image. Subclasses say which pixels it touches."""

    amplitude: int  # in levels of 1/255; negative darkens
    channel: int | None = None  # None: the subclass's rule ("all" unless it says otherwise)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.amplitude != int(self.amplitude) or not 1 <= abs(self.amplitude) <= 255:
            raise AttackError(
                f"amplitude = {self.amplitude}: a whole number of 1/255 levels, -255 to 255 and not 0, is needed"
            )

    @abstractmethod
    def where(self, height: int, width: int) -> Tensor:
        """Boolean (H, W): the pixels that are perturbed."""

    def pattern(self, shape: Shape) -> Tensor:
        """The pattern v, (C, H, W), for images of this shape, in units of pixel value."""
        c, h, w = shape
        channel = self.channel_of(c)
        if channel is not None and not 0 <= channel < c:
            raise AttackError(f"channel = {channel}: the images have channels 0 to {c - 1}")
        v = torch.zeros(shape)
        v[slice(None) if channel is None else channel][..., self.where(h, w)] = int(self.amplitude) / 255
        return v

    def embed(self, images: Tensor) -> Tensor:
        return (images + self.pattern(tuple(images.shape[1:])).to(images)).clamp(0, 1)  # type: ignore[arg-type]

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

    phase: int = 0

    def where(self, height: int, width: int) -> Tensor:
        i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return (i + j) % 2 == self.phase % 2


@dataclass(frozen=True, kw_only=True)
class LocalChessboard(Chessboard):
    """A size x size patch of the chessboard;
    `at` is its top-left corner, default the bottom-right of the image.
    """

    size: int = 6
    at: Place | None = None

    def where(self, height: int, width: int) -> Tensor:
        at = (height - self.size, width - self.size) if self.at is None else self.at
        if min(at[0] if self.at is None else 0, at[1] if self.at is None else 0) < 0:
            raise AttackError(f"size = {self.size}: the image is {height}x{width}")
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
    """A size x size square in one channel; place and channel are drawn from the seed unless given (L-RED
    A.4).
    """

    size: int = 2

    def cells(self) -> tuple[Place, ...]:
        return tuple((a, b) for a in range(self.size) for b in range(self.size))

    def channel_of(self, channels: int) -> int | None:
        return self.random(2**16, 2**16, channels)[2] if self.channel is None else self.channel


@dataclass(frozen=True, kw_only=True)
class SinglePixel(Shaped):
    """One pixel, all channels; default one pixel in from the bottom-right corner (L-RED A.7.1 says only
    "bottom right").
    """

    at: Place | None = (-2, -2)

    def cells(self) -> tuple[Place, ...]:
        return ((0, 0),)


@dataclass(frozen=True, kw_only=True)
class Cross(Shaped):
    """Five pixels in a plus sign, all channels (L-RED v1, group B)."""

    def cells(self) -> tuple[Place, ...]:
        return ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))


@dataclass(frozen=True, kw_only=True)
class LShape(Shaped):
    """An L of five pixels, three down and two across, all channels:
    our choice, the paper gives none (L-RED v1, group C).
    """

    def cells(self) -> tuple[Place, ...]:
        return ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2))
