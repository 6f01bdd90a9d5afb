"""STRIP: blend a suspect image with clean ones and watch the prediction.

A clean image's prediction changes with what it is blended with; a trigger that survives blending keeps the
prediction at the target, so the mean entropy over the blends is low.

Source: "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks" (Gao et al. 2019). B3D (Dong et al.
2021, Sec. 5) compares its rejection score with this one and gives no parameters. Ours: the blend is a clipped
sum x + alpha y with alpha = 0.5 and 100 overlays, drawn once and shared by all images, so an image's score
does not depend on the others; entropy in bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import Probabilities, black_box, check_images
from ..settings import Settings, number, share
from .base import InputScore, Trigger, check_triggers


@dataclass(frozen=True, kw_only=True)
class Strip(Settings):
    """STRIP's settings: `overlays` clean images, drawn by `seed`, are laid over each suspect with weight `alpha`."""

    overlays: int = number(100, least=1)
    alpha: float = share(0.5)
    seed: int = number(0, least=0)
    batch_size: int = number(2000, least=1)  # blends per call of the model

    def fit(
        self, model: nn.Module | Probabilities, triggers: Sequence[Trigger], images: Tensor
    ) -> InputScore:
        """Score of an input: the negative of its entropy, larger = more suspect; it needs no trigger.

        model: a network, or a callable that gives probabilities.
        triggers: not used; () will do.
        images: clean ones (M, C, H, W), the overlays among them; they set the threshold.
        """
        check_triggers(triggers, needed=False)
        check_images(images)

        def score(inputs: Tensor) -> Tensor:
            return -self.entropy(model, inputs, images)

        return InputScore(score=score, clean_scores=score(images))

    def entropy(
        self,
        model: nn.Module | Probabilities,
        images: Tensor,
        clean: Tensor,
    ) -> Tensor:
        """Mean entropy of the prediction over the blends, in bits, (N,).

        model: a network, or a callable that gives probabilities.
        images: the suspects, (N, C, H, W).
        clean: clean images (M, C, H, W).

        Raises ValueError when the clean images are fewer than the overlays or of another shape.
        """
        if images.shape[1:] != clean.shape[1:] or len(clean) < self.overlays:
            raise ValueError(
                f"clean images have shape {tuple(clean.shape)}: "
                f"{self.overlays} or more of shape {tuple(images.shape[1:])} are needed"
            )
        draw = torch.Generator(clean.device).manual_seed(self.seed)
        drawn = torch.randperm(len(clean), generator=draw, device=clean.device)[: self.overlays]
        over = self.alpha * clean[drawn]
        ask, found = black_box(model), [images.new_empty(0)]
        for part in images.split(max(1, self.batch_size // self.overlays)) if len(images) else ():
            p = ask((part[:, None] + over).clamp(0, 1).flatten(0, 1))
            nats = -torch.special.xlogy(p, p).sum(1).view(len(part), -1).mean(1)
            found.append(nats / torch.log(torch.tensor(2.0)))
        return torch.cat(found)
