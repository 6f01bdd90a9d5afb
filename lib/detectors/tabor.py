"""TABOR-style regularised Neural Cleanse.

Not TABOR itself (Guo et al. 2020): none of the papers this book follows states its regularisers, so the terms
below are those of an implementation that one of them used, with weights of our own choice, each of which 0
switches off. Verdicts use the norms and rules of Neural Cleanse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from ..settings import number
from .masks import Extra, Step
from .neural_cleanse import NeuralCleanse


@dataclass(frozen=True, kw_only=True)
class TaborStyle(NeuralCleanse):
    """Neural Cleanse with up to six more terms; o = (1 - m) u is the pattern outside the mask.

    elastic: weight of |m|_2^2, beside the |m|_1 of Neural Cleanse, against overly large masks.
    outside: weight of |o|_1 + |o|_2^2.
    scattered: weight of the squared differences of neighbouring entries of m.
    scattered_outside: weight of the same of o.
    blocking: weight of the cross-entropy of the true label with the masked pixels black; above 0 it doubles the
        image-gradients.
    overlaying: weight of the cross-entropy of the target for the trigger alone, m u.
    The first four are sums over pixels and move with the dynamic cost of the mask; the last two are fixed.
    """

    elastic: float = number(0.5, least=0)
    outside: float = number(0.02, least=0)
    scattered: float = number(0.1, least=0)
    scattered_outside: float = number(0.01, least=0)
    blocking: float = number(0.0, least=0)
    overlaying: float = number(0.01, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "pooled" and self.blocking:
            raise ValueError(f"blocking = {self.blocking}: mode 'pooled' forgets whose class an image is of")

    def extra(self) -> Extra:
        return self.terms

    def terms(self, step: Step) -> Tensor:
        """The weighted terms, one sum per problem (A,)."""
        m, u = step.mask[:, None], step.pattern
        o = (1 - m) * u
        total = self.elastic * _sum(m**2) + self.outside * _sum(o.abs() + o**2)
        total = step.cost * (total + self.scattered * roughness(m) + self.scattered_outside * roughness(o))
        if self.blocking:
            blocked = (step.images * (1 - m[:, None, None])).flatten(0, 2)
            labels = step.labels[..., None].expand(step.images.shape[:3]).flatten()
            loss = nll_loss(step.log_posterior(blocked), labels, reduction="none")
            total = total + self.blocking * loss.view(len(m), -1).mean(1)
        if self.overlaying:
            alone = nll_loss(step.log_posterior(m * u), step.target, reduction="none")
            total = total + self.overlaying * alone
        return total


def roughness(x: Tensor) -> Tensor:
    """Sum of squared differences of neighbouring pixels: (A, C, H, W) -> (A,)."""
    return _sum(x.diff(dim=2) ** 2) + _sum(x.diff(dim=3) ** 2)


def _sum(x: Tensor) -> Tensor:
    return torch.sum(x, dim=(1, 2, 3))


PRESETS: dict[str, TaborStyle] = {
    "tabor-all-terms": TaborStyle(blocking=0.01),
}
