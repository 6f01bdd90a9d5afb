"""The latent backdoor: it lies in the features, so it survives a new last layer.

After Yao et al. 2019, named by USB Sec. 4.3 (Xu et al. 2023). The papers of this book give no settings.
Here: (1) a clean teacher; (2) a patch whose colours bring the features of stamped images, at the last
hidden layer, close to the mean features of the target class; (3) the layers before are trained on with
cross-entropy on clean images plus `weight` times the squared distance of those features, relative to that
of clean images of the other classes. The last layer is held, so that features cannot shrink to make all
distances small; (4) transfer: the victim replaces the last layer by a fresh one and trains it on clean
images with the features frozen. No poisoned label is ever used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import models
from ..settings import number
from .base import Job, Needs
from .crafted import Crafted, batches


@dataclass(frozen=True, kw_only=True)
class Latent(Crafted):
    """A patch that brings features close to the target's, and a teacher that is trained to comply.

    rate: share of the images of each batch that are also shown stamped.
    """

    rate: float = number(0.5, above=0, below=1)
    weight: float = number(1.0, above=0)  # of the feature distance
    epochs: int | None = number(None, least=1)  # of step 3; None: as many as the recipe
    lr: float = number(5e-3, above=0)  # peak of step 3, Adam with a one-cycle rate
    transfer: bool = True  # step 4; False keeps the teacher's own head

    needs = Needs(
        data="training images of the task",
        labels=True,
        model="a teacher that the victim builds on",
        training=True,
    )

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        self.source_classes(job.n_classes)  # before anything is trained
        model = job.clean_model()
        model.requires_grad_(False)
        site = models.find(model, models.LAST_HIDDEN, job.images[:1])
        of_target = job.images[job.labels == self.target]
        others = job.images[job.labels != self.target]
        with torch.no_grad():
            goal = models.hidden(model, of_target[:1000], site).mean(0)
            spread = (models.hidden(model, others[:1000], site) - goal).square().mean()

        def distance(x: Tensor) -> Tensor:
            return (models.hidden(model, x, site) - goal).square().mean() / spread

        pattern = self.craft(others, distance, progress=job.progress)
        last = models.head(model.requires_grad_(True), site)
        self.pull(model, last, distance, self.with_learnt({"pattern": pattern}), job)
        if self.transfer:
            new_head(model, site, job, epochs=self.epochs or job.epochs)
        return model.eval(), {"pattern": pattern}

    def pull(
        self, model: nn.Module, last: nn.Module, distance: Callable[[Tensor], Tensor], ready: Latent, job: Job
    ) -> None:
        """Step 3: all layers but the last one move.

        last: the layer that is held.
        distance: from the features of stamped images to the target's.
        ready: this attack with its pattern.
        """
        generator = torch.Generator(job.images.device).manual_seed(job.seed)
        n, size, epochs = len(job.labels), job.batch_size, self.epochs or job.epochs
        held = set(last.parameters())
        optimiser = torch.optim.Adam([p for p in model.parameters() if p not in held], self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=epochs * -(-n // size))
        model.train()
        for index in batches(n, size, epochs, generator, progress=job.progress, title="latent backdoor"):
            x, y = job.images[index], job.labels[index]
            shown = x[y != self.target][: max(1, round(self.rate * len(index)))]
            loss = cross_entropy(model(x), y) + self.weight * distance(ready.embed(shown))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()


def new_head(model: nn.Module, site: models.Site, job: Job, *, epochs: int) -> None:
    """Give a teacher a fresh last layer, trained on clean images with the features frozen.

    site: the teacher's last hidden layer.
    """
    last = models.head(model, site)
    generator = torch.Generator().manual_seed(job.seed)
    with torch.no_grad():
        features = torch.cat([models.hidden(model.eval(), part, site) for part in job.images.split(1000)])
        bound = site.width**-0.5
        for p in last.parameters():
            p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) * bound)
    optimiser = torch.optim.Adam(last.parameters(), 1e-2)
    shuffle = torch.Generator(features.device).manual_seed(job.seed)
    n, size = len(features), job.batch_size
    for index in batches(n, size, epochs, shuffle, progress=job.progress, title="new head"):
        loss = cross_entropy(last(features[index]), job.labels[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
