"""Neuron pruning: silence the neurons of the reversed trigger until it no longer works.

Source: Neural Cleanse (Wang et al. 2019, Sec. VI-B and Figs. 9, 21, 22).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..models import predict
from .base import Embed, check_images
from .layers import LAST_HIDDEN, Site, activation_gap, find, silence, top


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The pruned copy, what was silenced, and how the stop was decided.

    order: (U,) all neurons of the layer, largest activation gap first. count: the first so many of `order`
    are silenced. responds: (steps,) share of the clean images that the reversed trigger still sent to the
    target, at each number of neurons in `tried`.
    """

    model: nn.Module
    site: Site
    order: Tensor
    count: int
    tried: tuple[int, ...]
    responds: tuple[float, ...]

    @property
    def share(self) -> float:
        """Silenced share of the layer's neurons."""
        return self.count / len(self.order)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Prune `layer` in order of activation gap, in steps of `step` of its neurons (at least one).

    stop: the model "no longer responds" when the reversed trigger sends at most this share of the clean
    images that are not of the target class to the target; the paper gives no number. max_share: give up there
    (the last step is returned; `responds` tells).
    """

    layer: str = LAST_HIDDEN
    step: float = 0.02
    stop: float = 0.05
    max_share: float = 0.9

    def __post_init__(self) -> None:
        for name in ("step", "stop", "max_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: a share in (0, 1] is needed")

    def fit(self, model: nn.Module, embed: Embed, images: Tensor, labels: Tensor, *, target: int) -> Pruned:
        """Prune a copy of `model` with the reversed trigger `embed` of class `target`.

        images (N, C, H, W), labels (N,): the defender's clean ones; ValueError when all are of the target.
        """
        check_images(images, labels)
        site, order = ranking(model, embed, images, self.layer)
        other = embed(images[labels != target])
        if not len(other):
            raise ValueError(f"all {len(images)} images are of the target class {target}: others are needed")
        counts = [c for c in steps(len(order), self.step) if c <= max(1, self.max_share * len(order))]
        responds: list[float] = []
        for count in counts:
            pruned = silence(model, site, order[:count])
            responds.append(float((predict(pruned, other) == target).float().mean()))
            if responds[-1] <= self.stop:
                break
        tried = tuple(counts[: len(responds)])
        return Pruned(
            model=pruned, site=site, order=order, count=tried[-1], tried=tried, responds=tuple(responds)
        )


def ranking(model: nn.Module, embed: Embed, images: Tensor, layer: str) -> tuple[Site, Tensor]:
    """The layer's site and its neurons (U,) by activation gap, largest first; ties in order of index."""
    site = find(model, layer, images)
    return site, top(activation_gap(model, embed, images, site))


def steps(width: int, step: float) -> list[int]:
    """Numbers of neurons: 0, then every max(1, round(step * width)), up to all."""
    stride = max(1, round(step * width))
    return sorted({*range(0, width, stride), width})


def curve(
    model: nn.Module, embed: Embed, images: Tensor, layer: str = LAST_HIDDEN, *, step: float = 0.05
) -> Iterator[tuple[float, nn.Module]]:
    """Every stage of pruning a layer to the end, as (silenced share, pruned copy).

    images: the defender's clean ones, (N, C, H, W).
    """
    site, order = ranking(model, embed, images, layer)
    for count in steps(len(order), step):
        yield count / len(order), silence(model, site, order[:count])
