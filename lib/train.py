"""One training loop, recipes by name.

The data lives on the device as one tensor; a batch is an index, an augmentation is indexing too. What a
paper leaves open (optimiser, schedule) is named in the recipe.

    >>> digits = data.load("digits")
    >>> fit(network, *digits.train, recipe("smoke"), seed=0)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from .models.ask import channels_last
from .settings import Settings, choice, number


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """How a classifier is trained."""

    epochs: int = number(least=1)
    batch_size: int = number(least=1)
    lr: float = number(above=0)
    optimiser: str = choice("adam", ("adam", "sgd"))  # sgd with Nesterov momentum 0.9
    weight_decay: float = number(0.0, least=0)
    schedule: str = choice("one-cycle", ("one-cycle", "cosine", "constant"))
    augment: bool = False  # random crop with padding 4 and horizontal flip
    bf16: bool = False  # bfloat16 autocast; used on CUDA alone
    exact: bool = False  # the same weights on every machine: see `_on_a_grid`


RECIPES: dict[str, Recipe] = {
    "smoke": Recipe(epochs=30, batch_size=128, lr=2e-2, exact=True),
    "laptop": Recipe(epochs=10, batch_size=128, lr=2e-3),
    "lred-mnist": Recipe(epochs=60, batch_size=256, lr=1e-2, schedule="cosine"),
    "lred-gtsrb": Recipe(epochs=100, batch_size=64, lr=1e-3, schedule="constant"),
    "lred-cifar": Recipe(epochs=100, batch_size=32, lr=1e-3, augment=True, bf16=True, schedule="cosine"),
    "lred-cifar100": Recipe(epochs=120, batch_size=32, lr=1e-3, augment=True, bf16=True, schedule="cosine"),
    "fast-cifar": Recipe(
        epochs=20, batch_size=512, lr=0.2, optimiser="sgd", weight_decay=5e-4, augment=True, bf16=True
    ),
    "nc-mnist": Recipe(epochs=5, batch_size=32, lr=1e-3, schedule="constant"),
    "nc-gtsrb": Recipe(epochs=10, batch_size=32, lr=1e-3, schedule="constant"),
    "usb-mnist": Recipe(epochs=40, batch_size=128, lr=1e-3, schedule="constant"),
}


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises ValueError, naming the allowed ones, for any other."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}: allowed are {', '.join(RECIPES)}")
    return RECIPES[name]


GRID = 2.0**-20  # the weights of exact training are multiples of this; single precision holds them up to 16
GRAIN = 2**15  # numbers up to which PyTorch does not share element-wise work among threads


@contextmanager
def few_threads(images: Tensor, batch_size: int) -> Iterator[None]:
    """One CPU thread while a batch of images (N, C, H, W) has no more than GRAIN values.

    More threads would not be faster, and would add in another order: the classifier would depend on the
    machine's cores.
    """
    before = torch.get_num_threads()
    if images[:1].numel() * batch_size <= GRAIN:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, how: Recipe, *, seed: int, progress: bool = False
) -> nn.Module:
    """Train `model` in place.

    images, labels: (N, C, H, W) and (N,), on the device where it is to be trained.
    how: the recipe.
    seed: the order of batches, the augmentation and what the network drops are drawn from it.

    Returns the model, in evaluation mode.  Raises RuntimeError if the loss stops being finite.
    """
    model.to(images.device).train()
    if how.exact:
        model.double()
    with channels_last(model):
        _fit(model, images, labels, how, seed, progress)
    if how.exact:
        model.float()
    return model.eval()


@torch.no_grad()
def _on_a_grid(tensors: Iterable[Tensor], step: float = GRID) -> None:
    """Round tensors, in place, to multiples of `step`.

    Another processor adds in another order, which moves a double-precision sum by some 1e-16. Left alone, training
    doubles that at every few steps, up to another classifier. Rounding to steps of 1e-6 before each pass wipes it out
    each time, unless it falls on the edge between two of them: once in some 1e10 roundings, and more often, we
    think, where a gradient is so small that Adam, dividing by its size, enlarges what rounding left of it.
    """
    for t in tensors:
        t.copy_((t / step).round_() * step)


def _fit(model: nn.Module, images: Tensor, labels: Tensor, how: Recipe, seed: int, progress: bool) -> None:
    device = images.device
    fast = how.bf16 and not how.exact and device.type == "cuda"
    generator = torch.Generator(device).manual_seed(seed)
    optimiser, scheduler = _optimiser(model, how, -(-len(labels) // how.batch_size))
    with (
        few_threads(images, how.batch_size),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        tqdm(range(how.epochs), desc="training", unit="epoch", disable=not progress, leave=False) as bar,
    ):
        torch.manual_seed(seed)  # dropout knows no other generator
        for _ in bar:
            total = torch.zeros((), device=device, dtype=torch.double)
            order = torch.randperm(len(labels), generator=generator, device=device)
            for index in order.split(how.batch_size):
                batch = _augment(images[index], generator) if how.augment else images[index]
                if how.exact:
                    _on_a_grid(model.parameters())
                    batch = batch.double()
                with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                    loss = cross_entropy(model(batch), labels[index])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                scheduler.step()
                total += loss.detach() * len(index)
            mean = float(total) / len(labels)
            if mean != mean or mean == float("inf"):
                raise RuntimeError(f"the training loss became {mean}: lower lr (now {how.lr})")
            bar.set_postfix(loss=f"{mean:.4f}")
    if how.exact:
        _on_a_grid(model.parameters())
        # Running means may be nothing but noise around 0, and variances small: a finer grid. Training reads neither.
        _on_a_grid((b for b in model.buffers() if b.is_floating_point()), GRID**2)
    optimiser.zero_grad(set_to_none=True)  # nobody has a use for the last gradients, which lie channels-last


def _optimiser(
    model: nn.Module, how: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser: torch.optim.Optimizer
    if how.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            parameters, how.lr, momentum=0.9, nesterov=True, weight_decay=how.weight_decay
        )
    else:
        optimiser = torch.optim.Adam(parameters, how.lr, weight_decay=how.weight_decay)
    total = steps * how.epochs
    if how.schedule == "one-cycle":
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, how.lr, total_steps=total)
    if how.schedule == "cosine":
        return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    return optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


def _augment(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """A random crop after reflection padding and a random flip for each image, by one gather."""
    n, _, h, w = images.shape
    device = images.device
    padded = pad(images, [padding] * 4, mode="reflect")
    top, left, flip = (
        torch.randint(high, (n, 1), generator=generator, device=device)
        for high in (2 * padding + 1, 2 * padding + 1, 2)
    )
    rows = top + torch.arange(h, device=device)
    cols = torch.arange(w, device=device).expand(n, w)
    cols = left + torch.where(flip.bool(), w - 1 - cols, cols)
    each = torch.arange(n, device=device)[:, None, None]
    return padded[each, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
