"""What can be asked of a network: logits, labels, log-posteriors, gradients, and the ledger of what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 400  # images per call on a CPU: what more of them need does not fit the caches, and each takes longer


@dataclass
class Cost:
    """A ledger of one scan.

    One image through the network counts 1 in `forward`, its gradient 1 in `backward`, an answer of a black box
    1 in `queries`.
    """

    forward: int = 0
    backward: int = 0
    queries: int = 0
    seconds: float = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Add the time spent inside to `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


@contextmanager
def channels_last(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its convolutions' weights in channels-last order, their faster path; afterwards in the usual one.

    Whoever trains or asks a network does it inside, and whoever saves one need not know of it.
    """
    weights = [p for p in model.parameters() if p.dim() == 4 and p.is_contiguous()]
    for p in weights:
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    try:
        yield model
    finally:
        for p in weights:
            p.data = p.data.contiguous()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; afterwards each of its modules is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with channels_last(model):
            yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode with no parameter asking for a gradient; as it was afterwards."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for p in asked:
        p.requires_grad_(False)
    try:
        with evaluating(model):
            yield model
    finally:
        for p in asked:
            p.requires_grad_(True)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, *, batch_size: int = BATCH) -> Tensor:
    """Logits (N, K) in evaluation mode, in batches, without gradients."""
    with evaluating(model):
        return torch.cat([model(part) for part in images.split(batch_size)])


def predict(model: nn.Module, images: Tensor, *, batch_size: int = BATCH) -> Tensor:
    """Predicted labels (N,) of images (N, C, H, W)."""
    return logits(model, images, batch_size=batch_size).argmax(1)


def log_posterior(model: nn.Module, images: Tensor, k: int) -> Tensor:
    """Log-posteriors (N, k) of images (N, C, H, W); gradients flow through.

    Raises ValueError if the model gives anything but (N, k) finite logits, such as probabilities.
    """
    found = model(images)
    if found.ndim != 2 or found.shape[1] != k:
        shape = tuple(found.shape)
        raise ValueError(
            f"the model gave shape {shape} for {len(images)} images of {k} classes: (N, K) is needed"
        )
    if not torch.isfinite(found).all():
        raise ValueError("the model gave logits that are not finite")
    if are_probabilities(found):
        raise ValueError(PROBABILITIES)
    return torch.log_softmax(found, 1)


PROBABILITIES = (
    "the model gives probabilities, not logits: a second softmax would flatten them unnoticed; leave out the one "
    "that it ends with, or take its logarithm"
)


def are_probabilities(answers: Tensor) -> bool:
    """Do answers (N, K), N > 1, all lie in [0, 1] and sum to 1? Of logits that is chance, and tells nothing for N = 1."""
    if len(answers) < 2 or answers.min() < 0:
        return False
    return bool((answers.detach().sum(1) - 1).abs().max() < 1e-3)


def check_images(images: Tensor, labels: Tensor | None = None) -> None:
    """Raise ValueError unless images are (N, C, H, W) with N >= 1, and labels (N,) when given."""
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}: (N, C, H, W) with N >= 1 is needed")
    if labels is not None and labels.shape != images.shape[:1]:
        have = f"labels have shape {tuple(labels.shape)} for {len(images)} images"
        raise ValueError(f"{have}: one label per image is needed")
