"""Patches whose colours are optimised against a model, for the Trojan and the latent attack.

A Crafted attack is a BadNets patch with a learnt pattern. `colour` names the start of the optimisation. Its
`embed` works once `with_learnt` has given it the pattern; until then it raises AttackError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..settings import allowed, number
from .badnets import COLOUR, SPOT, BadNets
from .base import AttackError, Shape, shape_of


@dataclass(frozen=True, kw_only=True)
class Crafted(BadNets):
    """A patch that is optimised; subclasses say for what, and how the model is then changed."""

    size: int | None = number(4, least=1)
    colour: str | tuple[int, ...] = allowed("noise", COLOUR)
    at: tuple[int, int] | str | None = allowed("bottom-right", SPOT)
    steps: int = number(150, least=1)  # of Adam on the patch

    learns = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_image:
            raise AttackError("per_image = True: a crafted patch has one place")
        self.refuse_sources(f"{type(self).__name__} is for all sources")

    def patch(self, shape: Shape) -> tuple[Tensor, Tensor]:
        inside, colours = super().patch(shape)
        learnt = self.require_learnt()["pattern"]
        if learnt.shape != colours.shape:
            raise AttackError(
                f"the learnt patch is {tuple(learnt.shape)}, these images need {tuple(colours.shape)}"
            )
        return inside, learnt

    def craft(
        self, images: Tensor, loss: Callable[[Tensor], Tensor], *, lr: float = 0.1, progress: bool = False
    ) -> Tensor:
        """The pattern (C, h, w) on the 8-bit grid that lowers the loss of stamped images.

        images: (N, C, H, W), of which 64 are drawn for each step.
        loss: of stamped images, one number.
        """
        shape = shape_of(images)
        inside, start = super().patch(shape)
        h, w = inside.shape
        i, j = self.corner(shape[1], shape[2])
        mask = (self.alpha * inside).to(images)
        free = torch.logit(start.to(images).clamp(0.05, 0.95)).requires_grad_()
        optimiser = torch.optim.Adam([free], lr)
        generator = torch.Generator(images.device).manual_seed(self.seed)
        for _ in tqdm(range(self.steps), desc="trigger", unit="step", disable=not progress, leave=False):
            x = images[torch.randint(len(images), (64,), generator=generator, device=images.device)].clone()
            box = x[:, :, i : i + h, j : j + w]
            x[:, :, i : i + h, j : j + w] = box * (1 - mask) + free.sigmoid() * mask
            optimiser.zero_grad(set_to_none=True)
            loss(x).backward()
            optimiser.step()
        return (free.detach().sigmoid() * 255).round().cpu() / 255


def batches(
    n: int, size: int, epochs: int, generator: torch.Generator, *, progress: bool, title: str
) -> Iterator[Tensor]:
    """Indices of one shuffled batch after the other, `epochs` times over all n images.

    A last batch of one image is left out, because a batch normalisation cannot train on it.
    """
    for _ in tqdm(range(epochs), desc=title, unit="epoch", disable=not progress, leave=False):
        for index in torch.randperm(n, generator=generator, device=generator.device).split(size):
            if len(index) > 1:
                yield index
