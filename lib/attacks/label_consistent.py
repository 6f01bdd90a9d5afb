"""The label-consistent attack: every poisoned image keeps its own, right label.

After Turner et al. 2019, as B3D F.1 (Dong et al. 2021) uses it. Only images of the target class are
stamped. First their content is made hard to learn by an adversarial manipulation against a clean model, so
that the network has to lean on the trigger. B3D does not say which: here it is untargeted projected
gradient ascent on the cross-entropy (PGD), in the max-norm, with a random start, rounded to 8 bits. The
trigger at test time is the plain patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..settings import number
from .badnets import BadNets
from .base import AttackError, Job, Needs, PoisonedSet


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(BadNets):
    """A patch on images of the target class alone, with their right labels.

    rate: stamped share of the whole training set (B3D: 0.08); or per_source: the number of stamped images.
    """

    epsilon: int = number(32, least=0, most=255)  # radius of the manipulation in levels of 1/255, per pixel
    steps: int = number(20, least=1)  # of PGD, each 2.5 epsilon / steps long

    needs = Needs(
        data="images of the target class",
        labels=False,
        model="a clean model of the same task (another may do)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_sources("only images of the target are stamped here")

    def choose(
        self, labels: Tensor, generator: torch.Generator, free: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.source_classes(int(labels.max()) + 1)
        count = self.per_source or round((self.rate or 0) * len(labels))
        if count < 1:
            raise AttackError(f"rate = {self.rate} of {len(labels)} images is no image")
        return self.draw(labels, self.target, count, generator, free), torch.empty(0, dtype=torch.long)

    def poison(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, model: nn.Module | None = None
    ) -> PoisonedSet:
        """As Attack.poison, with the images manipulated against a clean model before they are stamped.

        model: that clean model. Raises AttackError without one.
        """
        if model is None:
            raise AttackError("LabelConsistent needs a clean model: pass model=, or train through the zoo")
        stamped, cover = self.choose(labels, generator)
        changed = images.clone()
        changed[stamped] = self.manipulate(model, images[stamped], labels[stamped])
        return self.assemble(changed, labels, stamped, cover)

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        self.source_classes(job.n_classes)  # before anything is trained
        poisoned = self.poison(job.images, job.labels, job.generator, model=job.clean_model())
        return job.trained(poisoned.images, poisoned.labels), {}

    def manipulate(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, H, W) within epsilon of these, with a high loss under their labels (N,).

        They lie on the 8-bit grid.
        """
        if not self.epsilon:
            return images
        radius = self.epsilon / 255
        generator = torch.Generator().manual_seed(self.seed)
        start = (2 * torch.rand(images.shape, generator=generator).to(images) - 1) * radius
        found = (images + start).clamp(0, 1)
        for _ in range(self.steps):
            found.requires_grad_()
            (slope,) = torch.autograd.grad(cross_entropy(model(found), labels, reduction="sum"), found)
            found = found.detach() + 2.5 * radius / self.steps * slope.sign()
            found = images + (found - images).clamp(-radius, radius)
            found = found.clamp(0, 1)
        return (found * 255).round() / 255
