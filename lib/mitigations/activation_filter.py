"""Filter: reject inputs that excite the neurons of the reversed trigger.

Source: Neural Cleanse (Wang et al. 2019, Sec. VI-A and Table III).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .base import Embed
from .layers import LAST_HIDDEN, activation_gap, activations, find, top
from .scores import InputScore


@dataclass(frozen=True, kw_only=True)
class ActivationFilter:
    """Score of an input: mean activation of the `share` of neurons of `layer` with the largest gap.

    The paper leaves the rounding open (here up, at least one) and the number of images for the ranking (its
    Table III uses 1,000).
    """

    share: float = 0.01
    layer: str = LAST_HIDDEN

    def fit(self, model: nn.Module, embed: Embed, clean: Tensor) -> InputScore:
        """Rank the neurons with the trigger `embed` on clean images (N, C, H, W).

        The threshold comes from the same images without the trigger.
        """
        site = find(model, self.layer, clean)
        neurons = top(activation_gap(model, embed, clean, site), self.share)

        def score(images: Tensor) -> Tensor:
            return activations(model, images, site)[:, neurons].mean(1)

        return InputScore(score=score, clean_scores=score(clean))
