"""Unlearning: fine-tune on images that carry the reversed trigger with their true labels.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019),
Sec. VI-C, Table IV. The paper gives the share of the data (a tenth, all of it for its small PubFig set), the
share of stamped images and one epoch, not the optimiser: here it is Adam with the batch size and rate of the
paper's training, both held constant.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import train
from ..data import Labelled
from ..models import check_images
from ..settings import number, share
from .base import Repair, Trigger, check_triggers


@dataclass(frozen=True)
class PatchSet:
    """The fine-tuning set.

    images: (n, C, H, W), some of them stamped.
    labels: (n,), the true ones.
    stamped: (n,) bool, which were stamped.
    """

    images: Tensor
    labels: Tensor
    stamped: Tensor


@dataclass(frozen=True, kw_only=True)
class Unlearning(Repair):
    """Fine-tuning for an epoch on clean data, of which a part is stamped.

    sample: share of the data that it is tuned on.
    stamped: share of these that carry the trigger.
    """

    sample: float = share(0.1)
    stamped: float = share(0.2)
    epochs: int = number(1, least=1)
    batch_size: int = number(32, least=1)
    lr: float = number(1e-3, above=0)

    takes_none = True

    def repaired(
        self, model: nn.Module, triggers: Sequence[Trigger], data: Labelled, seed: int, progress: bool
    ) -> nn.Module:
        """No triggers at all is the control with clean images only; `seed` draws the set and its batches."""
        made = self.patch_set(triggers, *data, seed=seed)
        how = train.Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, schedule="constant")
        model = copy.deepcopy(model)
        if not any(p.requires_grad for p in model.parameters()):
            model.requires_grad_(True)  # it came frozen as a whole
        return train.fit(model, made.images, made.labels, how, seed=seed, progress=progress)

    def patch_set(
        self, triggers: Sequence[Trigger], images: Tensor, labels: Tensor, *, seed: int = 0
    ) -> PatchSet:
        """Draw the fine-tuning set.

        The draw depends on the seed alone, so the same images are stamped whatever the trigger is: controls
        differ in nothing else.
        triggers: they share the stamped images equally; () stamps none.
        images, labels: as in `fit`.
        """
        check_triggers(triggers, needed=False)
        check_images(images, labels)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(labels.device)
        chosen = order[: max(1, round(self.sample * len(images)))]
        count = max(1, round(self.stamped * len(chosen))) if triggers else 0
        mixed, stamped = images[chosen].clone(), torch.arange(len(chosen), device=labels.device) < count
        for i, trigger in enumerate(triggers):
            turn = slice(i, count, len(triggers))
            mixed[turn] = trigger(mixed[turn])
        return PatchSet(mixed, labels[chosen], stamped)
