"""A score for single inputs, larger = more suspect, with a threshold that clean images alone decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..metrics import threshold_at


@dataclass(frozen=True, kw_only=True)
class InputScore:
    """A fitted score. score: images (N, C, H, W) -> (N,). clean_scores:
    the scores of the clean images it was fitted on.
    """

    score: Callable[[Tensor], Tensor]
    clean_scores: Tensor

    def threshold(self, fpr: float = 0.05) -> float:
        """The smallest threshold that rejects at most a share `fpr` of the clean images."""
        return threshold_at(self.clean_scores, fpr)

    def rejects(self, images: Tensor, *, fpr: float = 0.05) -> Tensor:
        """(N,) boolean: is the score above the threshold?"""
        return self.score(images) > self.threshold(fpr)
