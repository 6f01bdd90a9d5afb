"""Patch every label: unlearn the reversed triggers of all classes, one after the other.

For models with so many infected labels that no outlier test can be relied on. Source: Neural Cleanse (Wang
et al. 2019, Sec. VII-C).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from ..detectors.scan import Scan
from .base import recovered
from .unlearning import Unlearning


@dataclass(frozen=True, kw_only=True)
class PatchEveryLabel:
    """Unlearning for each class in turn, with its own draw of the fine-tuning set.

    The paper does not say whether its triggers share one epoch or get one each. One each is used here: shared
    among K triggers, the stamped images are too few for any of them.
    """

    unlearning: Unlearning = field(default_factory=Unlearning)

    def fit(
        self,
        model: nn.Module,
        scan: Scan,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> nn.Module:
        """A fine-tuned copy of `model`. images (N, C, H, W), labels (N,): clean data the defender trusts."""
        for t in range(scan.n_classes):
            embed = recovered(scan, t)
            model = self.unlearning.fit(model, embed, images, labels, seed=seed + t, progress=progress)
        return model
