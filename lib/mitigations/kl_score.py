"""Rejection of inputs, by how little the reversed trigger would change them: the score S(x).

S(x) = KL(f(x) || f(A(x))), A putting the reversed trigger on x. Stamping a clean input changes the
prediction, so S is large; an input that already carries the trigger hardly changes, so S is small. S is small
as well for clean inputs of the target class: the score cannot tell them from triggered ones, and evaluations
say whether they count.

Source: B3D, "Black-box Detection of Backdoor Attacks with Limited Information and Data" (Dong et al. 2021),
Sec. 5, Eq. (8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import check_images, logits
from ..settings import Settings
from .base import InputScore, Trigger, check_triggers


def kl_score(model: nn.Module, trigger: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """S(x) in nats: images (N, C, H, W) -> (N,), >= 0; small is suspicious.

    It is computed from log-posteriors, so it needs no smoothing. The mask is used as it was found (soft), for
    the paper leaves that open.
    trigger: a Trigger, or any function that stamps images.
    """
    plain, stamped = (torch.log_softmax(logits(model, x).double(), 1) for x in (images, trigger(images)))
    return (plain.exp() * (plain - stamped)).sum(1).clamp_min(0)


@dataclass(frozen=True, kw_only=True)
class KLScore(Settings):
    """Score of an input: -S(x), larger = more suspect.

    It changes nothing in the model and needs no layer: posteriors are enough.
    """

    def fit(self, model: nn.Module, triggers: Sequence[Trigger], images: Tensor) -> InputScore:
        """The score with each trigger; of several, the largest.

        triggers: the reversed ones, at least one.
        images: the defender's clean ones, (N, C, H, W), which set the threshold.
        """
        check_triggers(triggers)
        check_images(images)

        def score(inputs: Tensor) -> Tensor:
            return torch.stack([-kl_score(model, trigger, inputs) for trigger in triggers]).amax(0)

        return InputScore(score=score, clean_scores=score(images))
