"""Filter: reject inputs that excite the neurons of the reversed trigger.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019),
Sec. VI-A and Table III. The paper leaves open how its 1 % of the neurons is rounded (here up, at least one)
and how many images rank them (its Table III uses 1,000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import LAST_HIDDEN, activations, find
from ..settings import Settings, number
from .activation_gap import activation_gap, top
from .base import InputScore, Trigger, check_triggers


@dataclass(frozen=True, kw_only=True)
class ActivationFilter(Settings):
    """Score of an input: mean activation of the neurons that the trigger excites most."""

    share: float = number(0.01, above=0, most=1)  # of the layer's neurons, those with the largest gap
    layer: str = LAST_HIDDEN

    def fit(self, model: nn.Module, triggers: Sequence[Trigger], images: Tensor) -> InputScore:
        """Rank the neurons with each trigger; the score is the largest over the triggers.

        triggers: the reversed ones, at least one.
        images: the defender's clean ones, (N, C, H, W), which rank the neurons and set the threshold.
        """
        check_triggers(triggers)
        site = find(model, self.layer, images)
        excited = [top(activation_gap(model, trigger, images, site), self.share) for trigger in triggers]

        def score(inputs: Tensor) -> Tensor:
            active = activations(model, inputs, site)
            return torch.stack([active[:, neurons].mean(1) for neurons in excited]).amax(0)

        return InputScore(score=score, clean_scores=score(images))
