"""Unlearning: fine-tune on images that carry the reversed trigger with their true labels.

Source: Neural Cleanse (Wang et al. 2019, Sec. VI-C, Table IV).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import train
from .base import Embed, check_images


@dataclass(frozen=True)
class PatchSet:
    """The fine-tuning set: images (n, C, H, W), their true labels (n,), and which were stamped (n,)."""

    images: Tensor
    labels: Tensor
    stamped: Tensor


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """One epoch over a `sample` of clean training data; a share `stamped` of it carries the trigger.

    The paper gives sample 0.1 (all of the data for its small PubFig set), stamped 0.2 and one epoch, not the
    optimiser: Adam with the batch size and rate of the paper's training, both held constant.
    """

    sample: float = 0.1
    stamped: float = 0.2
    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("sample", "stamped"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: a share in (0, 1] is needed")
        self._recipe()

    def _recipe(self) -> train.Recipe:
        return train.Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, schedule="constant")

    def patch_set(
        self, images: Tensor, labels: Tensor, embeds: Sequence[Embed], *, seed: int = 0
    ) -> PatchSet:
        """Draw the fine-tuning set. Several triggers share the stamped images equally; none stamps none.

        The draw depends on the seed alone, so the same images are stamped whatever the trigger is: controls
        differ in nothing else.
        """
        check_images(images, labels)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(labels.device)
        chosen = order[: max(1, round(self.sample * len(images)))]
        count = max(1, round(self.stamped * len(chosen))) if embeds and self.stamped else 0
        mixed, stamped = images[chosen].clone(), torch.arange(len(chosen), device=labels.device) < count
        for i, embed in enumerate(embeds):
            mixed[i : count : len(embeds)] = embed(mixed[i : count : len(embeds)])
        return PatchSet(mixed, labels[chosen], stamped)

    def fit(
        self,
        model: nn.Module,
        embed: Embed | Sequence[Embed] | None,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> nn.Module:
        """A fine-tuned copy of `model`, in evaluation mode.

        images (N, C, H, W), labels (N,): clean data that the defender trusts.

        embed: the reversed trigger, several of them, or None for the control with clean images only.
        """
        embeds = () if embed is None else (embed,) if callable(embed) else tuple(embed)
        data = self.patch_set(images, labels, embeds, seed=seed)
        return train.fit(
            copy.deepcopy(model), data.images, data.labels, self._recipe(), seed=seed, progress=progress
        )
