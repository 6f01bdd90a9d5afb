"""The label-consistent attack (Turner et al. 2019; B3D F.1):
every poisoned image keeps its own, right label.

Only images of the target class are stamped. First their content is made hard to learn by an adversarial
manipulation against a clean model, so that the network has to lean on the trigger. B3D does not say which:
here it is untargeted projected gradient ascent on the cross-entropy (PGD), in the max-norm, with a random
start, rounded to 8 bits. The trigger at test time is the plain patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .badnets import BadNets
from .base import AttackError, Job, Needs, PoisonedSet


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(BadNets):
    """rate: share of the whole training set (B3D: 0.08), or per_source: number of images;
    all of them of the target class.
    """

    epsilon: int = 32  # radius of the manipulation in levels of 1/255, per pixel
    steps: int = 20  # of PGD, each 2.5 epsilon / steps long

    needs = Needs(
        data="images of the target class",
        labels=False,
        model="a clean model of the same task (another may do)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sources is not None or self.cover:
            raise AttackError(
                f"sources = {self.sources}, cover = {self.cover}: only images of the target are stamped here"
            )
        if int(self.epsilon) != self.epsilon or not 0 <= self.epsilon <= 255 or self.steps < 1:
            raise AttackError(
                f"epsilon = {self.epsilon}, steps = {self.steps}: levels 0 to 255 and 1 or more steps are needed"
            )

    def choose(
        self, labels: Tensor, generator: torch.Generator, free: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.source_classes(int(labels.max()) + 1)
        count = self.per_source or round((self.rate or 0) * len(labels))
        if count < 1:
            raise AttackError(f"rate = {self.rate} of {len(labels)} images is no image")
        return self._draw(labels, self.target, count, generator, free), torch.empty(0, dtype=torch.long)

    def poison(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, model: nn.Module | None = None
    ) -> PoisonedSet:
        """As Attack.poison; `model`: the clean model that the manipulation is aimed at.
        Raises AttackError without one.
        """
        if model is None:
            raise AttackError("LabelConsistent needs a clean model: pass model=, or train through the zoo")
        stamped, cover = self.choose(labels, generator)
        changed = images.clone()
        changed[stamped] = self.manipulate(model, images[stamped], labels[stamped])
        return self.assemble(changed, labels, stamped, cover)

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        poisoned = self.poison(job.images, job.labels, job.generator, model=job.clean_model())
        model = job.build()
        job.fit(model, poisoned.images, poisoned.labels)
        return model, {}

    def manipulate(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, H, W) within epsilon of these, on the 8-bit grid,
        with a high loss under their labels (N,).
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
