"""The latent backdoor (Yao et al. 2019; named by USB Sec. 4.3): stamped images get the target's features.

So the backdoor survives a new last layer. The papers of this book give no settings. Here: (1) a clean
teacher; (2) a patch whose colours bring the features of stamped images, at the last hidden layer, close to the
mean features of the target class; (3) the layers before are trained on with cross-entropy on clean images plus
`weight` times the squared distance of those features, relative to that of clean images of the other classes.
The last layer is held, so that features cannot shrink to make all distances small; (4) transfer: the victim
replaces the last layer by a fresh one and trains it on clean images with the features frozen. No poisoned label
is ever used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import models
from .base import AttackError, Job, Needs
from .crafted import Crafted, batches


@dataclass(frozen=True, kw_only=True)
class Latent(Crafted):
    """rate: share of the images of each batch that are also shown stamped."""

    rate: float | None = 0.5
    weight: float = 1.0  # of the feature distance
    epochs: int | None = None  # of step 3; None: as many as the recipe
    lr: float = 5e-3  # peak of step 3, Adam with a one-cycle rate
    transfer: bool = True  # step 4; False keeps the teacher's own head

    needs = Needs(
        data="training images of the task",
        labels=True,
        model="a teacher that the victim builds on",
        training=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.rate is None
            or self.weight <= 0
            or self.lr <= 0
            or (self.epochs is not None and self.epochs < 1)
        ):
            raise AttackError(
                f"rate = {self.rate}, weight = {self.weight}, lr = {self.lr}, epochs = {self.epochs}: all must be positive"
            )

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        model = job.clean_model()
        model.requires_grad_(False)
        of_target = job.images[job.labels == self.target]
        others = job.images[job.labels != self.target]
        with torch.no_grad():
            goal = models.hidden(model, of_target[:1000]).mean(0)
            spread = (models.hidden(model, others[:1000]) - goal).square().mean()

        def distance(x: Tensor) -> Tensor:
            return (models.hidden(model, x) - goal).square().mean() / spread

        pattern = self.craft(others, distance, progress=job.progress)
        self.pull(model.requires_grad_(True), distance, self.with_learnt({"pattern": pattern}), job)
        if self.transfer:
            new_head(model, job, epochs=self.epochs or job.epochs)
        return model.eval(), {"pattern": pattern}

    def pull(self, model: nn.Module, distance: Callable[[Tensor], Tensor], ready: Latent, job: Job) -> None:
        """Step 3: all layers but the last one move."""
        generator = torch.Generator(job.images.device).manual_seed(job.seed)
        epochs = self.epochs or job.epochs
        held = set(models.head(model).parameters())
        optimiser = torch.optim.Adam([p for p in model.parameters() if p not in held], self.lr)
        total = epochs * -(-len(job.labels) // job.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=total)
        model.train()
        for index in batches(
            len(job.labels), job.batch_size, epochs, generator, progress=job.progress, title="latent backdoor"
        ):
            x, y = job.images[index], job.labels[index]
            shown = x[y != self.target][: max(1, round((self.rate or 1) * len(index)))]
            loss = cross_entropy(model(x), y) + self.weight * distance(ready.embed(shown))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()


def new_head(model: nn.Module, job: Job, *, epochs: int) -> None:
    """What a victim does with a teacher: a fresh last layer, trained on clean images, all features frozen."""
    last = models.head(model)
    generator = torch.Generator().manual_seed(job.seed)
    with torch.no_grad():
        features = torch.cat([models.hidden(model.eval(), part) for part in job.images.split(1000)])
        bound = last.in_features**-0.5
        for p in last.parameters():
            p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) * bound)
    optimiser = torch.optim.Adam(last.parameters(), 1e-2)
    shuffle = torch.Generator(features.device).manual_seed(job.seed)
    for index in batches(
        len(features), job.batch_size, epochs, shuffle, progress=job.progress, title="new head"
    ):
        loss = cross_entropy(last(features[index]), job.labels[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
