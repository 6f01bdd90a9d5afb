"""Neuron pruning: silence the neurons of the reversed trigger until it no longer works.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019),
Sec. VI-B and Figs. 9, 21, 22. The paper prunes until the model no longer responds to the reversed trigger and
gives no number: here that is a share `stop` of the clean images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Labelled
from ..models import LAST_HIDDEN, Site, check_images, find, predict, silence
from ..settings import share
from .activation_gap import activation_gap, top
from .base import Repair, Trigger, check_triggers


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The pruned copy, what was silenced, and how the stop was decided.

    order: (U,) all neurons of the layer, largest activation gap first.
    tried: how many of `order` were silenced, step by step; in `model`, the last of these numbers.
    responds: at each of them, the share of the clean images that the reversed trigger still sent to its
        target; of several triggers, the largest.
    """

    model: nn.Module
    site: Site
    order: Tensor
    tried: tuple[int, ...]
    responds: tuple[float, ...]

    @property
    def count(self) -> int:
        """So many neurons are silenced, the first of `order`."""
        return self.tried[-1]

    @property
    def share(self) -> float:
        """Silenced share of the layer's neurons."""
        return self.count / len(self.order)


@dataclass(frozen=True, kw_only=True)
class Pruning(Repair):
    """Prune a layer in order of activation gap, a few neurons at a time.

    step: share of its neurons at a time, at least one.
    stop: the model no longer responds when no trigger sends more than this share of the clean images that are
        not of its target there.
    max_share: give up there: the last step is returned, and `Pruned.responds` tells.
    """

    layer: str = LAST_HIDDEN
    step: float = share(0.02)
    stop: float = share(0.05)
    max_share: float = share(0.9)

    def repaired(
        self, model: nn.Module, triggers: Sequence[Trigger], data: Labelled, seed: int, progress: bool
    ) -> nn.Module:
        """Nothing is drawn; `prune` tells more."""
        return self.prune(model, triggers, *data, progress=progress).model

    def prune(
        self,
        model: nn.Module,
        triggers: Sequence[Trigger],
        images: Tensor,
        labels: Tensor,
        *,
        progress: bool = False,
    ) -> Pruned:
        """Prune a copy of `model` until none of the reversed triggers works, and say how it went.

        images, labels: the defender's clean ones, (N, C, H, W) and (N,).

        Raises ValueError when all of them are of one trigger's target.
        """
        check_triggers(triggers)
        check_images(images, labels)
        for trigger in triggers:
            if (labels == trigger.target).all():
                target, have = trigger.target, f"all {len(images)} images"
                raise ValueError(f"{have} are of the target class {target}: others are needed")
        site, order = ranking(model, triggers, images, self.layer)
        stamped = [(trigger(images[labels != trigger.target]), trigger.target) for trigger in triggers]
        counts = [c for c in steps(len(order), self.step) if c <= max(1, self.max_share * len(order))]
        responds: list[float] = []
        for count in tqdm(counts, desc="pruning", unit="step", disable=not progress, leave=False):
            pruned = silence(model, site, order[:count])
            shares = [float((predict(pruned, x) == target).float().mean()) for x, target in stamped]
            responds.append(max(shares))
            if responds[-1] <= self.stop:
                break
        tried = tuple(counts[: len(responds)])
        return Pruned(model=pruned, site=site, order=order, tried=tried, responds=tuple(responds))


def ranking(model: nn.Module, triggers: Sequence[Trigger], images: Tensor, layer: str) -> tuple[Site, Tensor]:
    """The layer's site, and its neurons (U,) by activation gap, largest first.

    Ties are in order of index. A neuron's gap is the largest that any of the triggers gives it.
    """
    site = find(model, layer, images)
    gaps = [activation_gap(model, trigger, images, site) for trigger in triggers]
    return site, top(torch.stack(gaps).amax(0))


def steps(width: int, step: float) -> list[int]:
    """Numbers of neurons: 0, then every max(1, round(step * width)), up to all."""
    stride = max(1, round(step * width))
    return sorted({*range(0, width, stride), width})


def curve(
    model: nn.Module,
    triggers: Sequence[Trigger],
    images: Tensor,
    layer: str = LAST_HIDDEN,
    *,
    step: float = 0.05,
) -> Iterator[tuple[float, nn.Module]]:
    """Every stage of pruning a layer to the end, as (silenced share, pruned copy).

    images: the defender's clean ones, (N, C, H, W).
    step: share of the layer's neurons from one stage to the next, at least one neuron.
    """
    check_triggers(triggers)
    site, order = ranking(model, triggers, images, layer)
    for count in steps(len(order), step):
        yield count / len(order), silence(model, site, order[:count])
