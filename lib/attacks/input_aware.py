"""The input-aware dynamic attack: every image gets a trigger of its own.

After Nguyen and Tran 2020, named by USB Sec. 4.3 (Xu et al. 2023). Two generators read the image: one
paints a pattern p(x), one a mask m(x); the stamped image is x + m (p - x). The mask generator is trained
first, for masks that are sparse and differ from image to image, and then frozen. Pattern generator and
classifier are trained together: in each batch a share `rate` carries its own trigger and is labelled
`target`, a share `cross` carries the trigger of another image and keeps its label, and a diversity loss
keeps the triggers of different images apart. Choices where this book's papers say nothing: a small
convolutional encoder-decoder, Adam with a one-cycle rate, the classifier starting from a clean one, no
augmentation, 8-bit rounding at test time only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from ..settings import Allowed, allowed, number
from .badnets import stamp
from .base import AttackError, Job, Needs, SingleAttack, is_whole
from .crafted import batches

CHANNELS = Allowed(lambda value: is_whole(value, least=4) and value % 4 == 0, "a multiple of 4 from 4")


class TriggerGenerator(nn.Module):
    """A small encoder-decoder: images (N, C, H, W), 4x4 or more -> (N, out, H, W) in [0, 1]."""

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(4, o), nn.ReLU())

        self.down = nn.Sequential(
            block(channels, width), nn.MaxPool2d(2), block(width, 2 * width), nn.MaxPool2d(2)
        )
        self.middle = block(2 * width, 2 * width)
        self.up = nn.Sequential(block(2 * width, width), nn.Conv2d(width, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.middle(self.down(x - 0.5))
        wide = interpolate(inside, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(4 * self.up(wide))


@dataclass(frozen=True, kw_only=True)
class InputAware(SingleAttack):
    """A trigger that two networks, trained together with the classifier, paint for each image.

    rate: share of each batch stamped with its own trigger and labelled `target`.
    """

    rate: float = number(0.25, above=0, below=1)
    # share of each batch stamped with another image's trigger, true labels
    cross: float = number(0.25, above=0, below=1)
    density: float = number(0.2, above=0, below=1)  # the mean of a mask above which it is penalised
    diversity: float = number(0.3, least=0)  # weight of the diversity loss
    width: int = allowed(8, CHANNELS)  # channels of the generators
    mask_epochs: int = number(5, least=0)
    epochs: int | None = number(None, least=1)  # of the joint training; None: three times the recipe's
    lr: float = number(5e-3, above=0)

    needs = Needs(
        data="all training images", labels=True, model="the trained model is the attacker's", training=True
    )
    learns = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_sources("InputAware is for all sources")
        if self.rate + self.cross >= 1:
            raise AttackError(
                f"rate = {self.rate}, cross = {self.cross}: two shares with a sum below 1 are needed"
            )

    def triggers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patterns (N, C, H, W) and masks (N, 1, H, W) in [0, 1] for these images.

        Raises AttackError before training.
        """
        pattern, mask = self._generators(images.shape[1], images.device)
        with torch.no_grad():
            parts = [(pattern(x), mask(x)) for x in images.split(1000)]
        return torch.cat([p for p, _ in parts]), torch.cat([m for _, m in parts])

    def embed(self, images: Tensor) -> Tensor:
        return self.cross_embed(images, images)

    def cross_embed(self, images: Tensor, others: Tensor) -> Tensor:
        """`images` with the triggers made for `others`, both (N, C, H, W): what should not work."""
        pattern, mask = self.triggers(others)
        return stamp(images, mask, pattern)

    def train(self, job: Job) -> tuple[nn.Sequential, dict[str, Tensor]]:
        self.source_classes(job.n_classes)  # before anything is trained
        device, channels = job.images.device, job.images.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            pattern = TriggerGenerator(channels, channels, self.width)
            mask = TriggerGenerator(channels, 1, self.width)
        pattern.to(device), mask.to(device)
        generator = torch.Generator(device).manual_seed(job.seed)
        self._train_mask(mask, job, generator)
        model = job.clean_model()
        self._train_jointly(model, pattern, mask, job, generator)
        return model.eval(), _prefixed("pattern.", pattern) | _prefixed("mask.", mask)

    def _train_mask(self, mask: nn.Module, job: Job, generator: torch.Generator) -> None:
        optimiser = torch.optim.Adam(mask.parameters(), self.lr)
        n, size = len(job.images), job.batch_size
        for index in batches(n, size, self.mask_epochs, generator, progress=job.progress, title="masks"):
            x = job.images[index]
            m = mask(x)
            excess = (m.mean((1, 2, 3)) - self.density).clamp_min(0).mean()
            loss = _diversity(x, m) + 100 * excess
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        mask.requires_grad_(False).eval()

    def _train_jointly(
        self, model: nn.Module, pattern: nn.Module, mask: nn.Module, job: Job, generator: torch.Generator
    ) -> None:
        epochs = self.epochs or 3 * job.epochs
        n, size = len(job.images), job.batch_size
        optimiser = torch.optim.Adam([*model.parameters(), *pattern.parameters()], self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=epochs * -(-n // size))
        model.train()
        for index in batches(n, size, epochs, generator, progress=job.progress, title="input-aware"):
            x, y = job.images[index], job.labels[index].clone()
            own, other = (max(1, round(share * len(x))) for share in (self.rate, self.cross))
            p, m = pattern(x[: own + other]), mask(x[: own + other])
            shifted = torch.cat([torch.arange(own), own + (torch.arange(other) + 1) % other]).to(x.device)
            if other == 1:  # a lone image takes the trigger of the first one instead
                shifted[own] = 0
            used, masks = p[shifted], m[shifted]
            head = x[: own + other] * (1 - masks) + used * masks
            y[:own] = self.target
            loss = cross_entropy(model(torch.cat([head, x[own + other :]])), y)
            loss = loss + self.diversity * _diversity(x[: own + other], p)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()

    def _generators(self, channels: int, device: torch.device) -> tuple[nn.Module, nn.Module]:
        learnt = self.require_learnt()
        found = []
        for prefix, out in (("pattern.", channels), ("mask.", 1)):
            net = TriggerGenerator(channels, out, self.width)
            own = {k.removeprefix(prefix): v for k, v in learnt.items() if k.startswith(prefix)}
            net.load_state_dict(own)
            found.append(net.to(device).eval())
        return found[0], found[1]


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + k: v.detach().cpu() for k, v in module.state_dict().items()}


def _diversity(images: Tensor, made: Tensor) -> Tensor:
    """Mean of |x - x'| / |g(x) - g(x')| over neighbours: large when all get the same trigger."""
    apart = (images - images.roll(1, 0)).flatten(1).norm(dim=1)
    return (apart / ((made - made.roll(1, 0)).flatten(1).norm(dim=1) + 1e-2)).mean()
