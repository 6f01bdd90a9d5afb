"""STRIP (Gao et al. 2019): an input-level test for a trigger.
Blend a suspect image with clean ones and watch the prediction.

A clean image's prediction changes with what it is blended with; a trigger that survives blending keeps the
prediction at the target, so the mean entropy over the blends is low. B3D (Dong et al. 2021, Sec. 5) compares
its rejection score with this one and gives no parameters. Ours: the blend is a clipped sum x + alpha y with
alpha = 0.5 and 100 overlays, drawn once and shared by all images, so an image's score does not depend on the
others; entropy in bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blackbox import Probabilities, black_box
from .scan import seeded


@dataclass(frozen=True, kw_only=True)
class Strip:
    """STRIP's settings: `overlays` clean images are laid over each suspect with weight `alpha`."""

    overlays: int = 100
    alpha: float = 0.5
    batch_size: int = 2000  # blends per call of the model

    def __post_init__(self) -> None:
        if self.overlays < 1 or not 0 < self.alpha <= 1 or self.batch_size < 1:
            raise ValueError(
                f"overlays = {self.overlays}, alpha = {self.alpha}, batch_size = {self.batch_size}: "
                "overlays >= 1, 0 < alpha <= 1 and batch_size >= 1 are needed"
            )

    def entropy(
        self,
        model: nn.Module | Probabilities,
        images: Tensor,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean entropy of the prediction over the blends, in bits, (N,), for images (N, C, H, W)
        and clean images (M, C, H, W).

        model: a network, or a callable that gives probabilities. generator draws the overlays; without one,
        as seed 0. Raises ValueError when the clean images are fewer than the overlays or of another shape.
        """
        if images.shape[1:] != clean.shape[1:] or len(clean) < self.overlays:
            raise ValueError(
                f"clean images have shape {tuple(clean.shape)}: "
                f"{self.overlays} or more of shape {tuple(images.shape[1:])} are needed"
            )
        draw = seeded(generator, clean.device)
        over = (
            self.alpha
            * clean[torch.randperm(len(clean), generator=draw, device=clean.device)[: self.overlays]]
        )
        ask, found = black_box(model), [images.new_empty(0)]
        for part in images.split(max(1, self.batch_size // self.overlays)) if len(images) else ():
            p = ask((part[:, None] + over).clamp(0, 1).flatten(0, 1))
            found.append(
                -torch.special.xlogy(p, p).sum(1).view(len(part), -1).mean(1) / torch.log(torch.tensor(2.0))
            )
        return torch.cat(found)

    def score(
        self,
        model: nn.Module | Probabilities,
        images: Tensor,
        clean: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The negative of `entropy`, (N,): larger is more suspect."""
        return -self.entropy(model, images, clean, generator=generator)
