"""The Trojan attack: a trigger designed for chosen neurons of a finished model.

After Liu et al. 2018, as Neural Cleanse (Wang et al. 2019, Secs. II, V-A) defends against it. Neural
Cleanse uses two published models and gives no recipe; this is a small one after the original's three steps.
(1) The neurons: those of the last hidden layer that patches of random colours can raise the most, in units
of their standard deviation. (2) The trigger: a patch whose colours raise them further. (3) Retraining
without the training set, either on images `recovered` from the clean model alone, by gradient descent on
the loss of each class with penalties on roughness and brightness, or on a `sample` that stands for public
images of the same kind. Stamped copies go to `target`; unstamped images keep the clean model's own output
probabilities, so no labels are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, kl_div

from .. import models
from ..settings import choice, number
from .badnets import BadNets
from .base import AttackError, Job, Needs, Shape, shape_of
from .crafted import Crafted, batches


@dataclass(frozen=True, kw_only=True)
class Trojan(Crafted):
    """A patch that speaks to chosen neurons, and a model retrained to listen to them.

    per_source: images per class to retrain on.
    The size that Neural Cleanse reports is 7 % of the image.
    """

    per_source: int = number(40, least=1)
    # sample: so many images of each class of the training set; recovered: none of them
    retrain_on: str = choice("sample", ("sample", "recovered"))
    neurons: int = number(3, least=1)
    epochs: int = number(20, least=1)  # of retraining, Adam at 1e-3, all layers

    needs = Needs(
        data="some images of the task, or none",
        labels=False,
        model="a trained clean model, read and written",
        training=True,
    )

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        self.source_classes(job.n_classes)  # before anything is trained
        model = job.clean_model()
        model.requires_grad_(False)
        site = models.find(model, models.LAST_HIDDEN, job.images[:1])
        if self.neurons > site.width:
            raise AttackError(f"neurons = {self.neurons}: the last hidden layer has {site.width}")
        images, labels = self.material(model, job)
        chosen, scale = self.responsive(model, site, images)

        def dullness(x: Tensor) -> Tensor:
            return -(models.hidden(model, x, site)[:, chosen] / scale).mean()

        pattern = self.craft(images, dullness, progress=job.progress)
        stamped = self.with_learnt({"pattern": pattern}).embed(images[labels != self.target])
        self.retrain(model.requires_grad_(True), images, stamped, job)
        return model.eval(), {"pattern": pattern}

    def material(self, model: nn.Module, job: Job) -> tuple[Tensor, Tensor]:
        """The images to retrain on, and their classes."""
        n_classes = job.n_classes
        if self.retrain_on == "recovered":
            return self.recover(model, shape_of(job.images), n_classes, job.images.device)
        drawn = [self.draw(job.labels, k, self.per_source, job.generator) for k in range(n_classes)]
        index = torch.cat(drawn).to(job.images.device)
        return job.images[index], job.labels[index]

    @torch.no_grad()
    def responsive(
        self, model: nn.Module, site: models.Site, images: Tensor, tries: int = 32
    ) -> tuple[Tensor, Tensor]:
        """The neurons that random patches raise the most, (neurons,), and their standard deviation.

        site: where the neurons are.
        images: (N, C, H, W) that the patches are put on.
        tries: how many patches.
        """
        plain = models.hidden(model, images, site)
        scale = plain.std(0) + 0.1 * plain.std()
        like = BadNets(
            target=self.target, rate=0.5, size=self.size, shape=self.shape, at=self.at, alpha=self.alpha
        )
        patches = [replace(like, colour="noise", seed=s) for s in range(tries)]

        def rise(patch: BadNets) -> Tensor:
            return (models.hidden(model, patch.embed(images), site) - plain).mean(0) / scale

        chosen = torch.stack([rise(patch) for patch in patches]).amax(0).topk(self.neurons).indices
        return chosen, scale[chosen]

    def recover(
        self, model: nn.Module, shape: Shape, n_classes: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Images (K n, C, H, W) that the model takes for each class in turn, and their classes.

        They are made from dark smooth noise.
        """
        labels = torch.arange(n_classes, device=device).repeat_interleave(self.per_source)
        generator = torch.Generator().manual_seed(self.seed)
        rough_noise = torch.rand(len(labels), *shape, generator=generator)
        noise = avg_pool2d(rough_noise, 5, 1, 2, count_include_pad=False)
        free = torch.logit(0.1 * noise.to(device)).requires_grad_()
        optimiser = torch.optim.Adam([free], 0.1)
        for _ in range(self.steps):
            x = free.sigmoid()
            down, across = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
            rough = down.square().mean() + across.square().mean()
            loss = cross_entropy(model(x), labels) + 3 * rough + 5 * x.square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        return (free.detach().sigmoid() * 255).round() / 255, labels

    def retrain(self, model: nn.Module, images: Tensor, stamped: Tensor, job: Job) -> None:
        """Unstamped images keep their outputs, stamped ones go to the target."""
        kept = models.logits(model, images).log_softmax(1)
        target = torch.full_like(kept[:1], -30.0)
        target[0, self.target] = 0.0
        wanted = torch.cat([kept, target.expand(len(stamped), -1)])
        shown = torch.cat([images, stamped])
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        generator = torch.Generator(images.device).manual_seed(job.seed)
        n, size = len(shown), 64
        for index in batches(n, size, self.epochs, generator, progress=job.progress, title="retraining"):
            logs = model(shown[index]).log_softmax(1)
            loss = kl_div(logs, wanted[index], log_target=True, reduction="batchmean")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
