"""Rejection without changing the model, by the KL score S(x) of B3D (Dong et al. 2021, Sec. 5, Eq. 8).

S(x) = KL(f(x) || f(A(x))), A putting the reversed trigger on x. Stamping a clean input changes the
prediction, so S is large; an input that already carries the trigger hardly changes, so S is small. S is small
as well for clean inputs of the target class: the score cannot tell them from triggered ones, and evaluations
say whether they count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import logits
from .base import Embed, check_images
from .scores import InputScore


def kl_score(model: nn.Module, embed: Embed, images: Tensor) -> Tensor:
    """S(x) of Eq. (8) in nats: images (N, C, H, W) -> (N,), >= 0; small is suspicious.

    Computed from log-posteriors, so it needs no smoothing;
    the mask is used as it was found (soft), which the paper leaves open.
    """
    plain, stamped = (torch.log_softmax(logits(model, x).double(), 1) for x in (images, embed(images)))
    return (plain.exp() * (plain - stamped)).sum(1).clamp_min(0)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Score of an input: -S(x), larger = more suspect. Changes nothing in the model and needs no layer:
    posteriors are enough.
    """

    def fit(self, model: nn.Module, embed: Embed, clean: Tensor) -> InputScore:
        """The score with the trigger `embed`; its threshold comes from clean images (N, C, H, W)."""
        check_images(clean)

        def score(images: Tensor) -> Tensor:
            return -kl_score(model, embed, images)

        return InputScore(score=score, clean_scores=score(clean))
