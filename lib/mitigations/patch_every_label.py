"""Patch every label: unlearn the reversed triggers of all classes, one after the other.

For models with so many infected labels that no outlier test can be relied on.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019),
Sec. VII-C. The paper does not say whether its triggers share one epoch or get one each. Here it is one each:
shared among K triggers, the stamped images are too few for any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ..data import Labelled
from .base import Repair, Trigger
from .unlearning import Unlearning


@dataclass(frozen=True, kw_only=True)
class PatchEveryLabel(Repair):
    """Unlearning for each trigger in turn, with its own draw of the fine-tuning set.

    >>> PatchEveryLabel().fit(model, triggers_of(scan), *trusted)
    """

    unlearning: Unlearning = field(default_factory=Unlearning)

    def repaired(
        self, model: nn.Module, triggers: Sequence[Trigger], data: Labelled, seed: int, progress: bool
    ) -> nn.Module:
        """The trigger at position i is unlearned with seed + i."""
        for i, trigger in enumerate(triggers):
            model = self.unlearning.fit(model, [trigger], *data, seed=seed + i, progress=progress)
        return model
