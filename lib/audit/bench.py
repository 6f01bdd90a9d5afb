"""How fast this machine is: what a scan's seconds come from, and what share of it each detector reaches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import data, models
from ..detectors import named
from ..models import frozen

# for `scans`: the shapes that the networks are made for, and the detectors, two additive, two of masks, one of queries
SHAPES = {
    "small": (1, 16, 16),
    "lenet5": (1, 28, 28),
    "vgg9": (3, 32, 32),
    "nc-gtsrb": (3, 32, 32),
    "resnet18": (3, 32, 32),
}
DETECTORS = ("l-red", "u-red", "neural-cleanse", "usb", "b3d")
BATCHES = (90, 360, 720)


@dataclass(frozen=True)
class Pace:
    """How fast a detector goes through a network.

    gradients, answers: image-gradients, and images that were asked for their answer alone, a second.
    share: of the floor, the least time in which those passes could be made: nothing but the passes, in the best of
        BATCHES, on every core as fast as on one alone.
    """

    network: str
    detector: str
    threads: int
    gradients: float
    answers: float
    share: float


def throughput(network: str, dataset: str, *, n: int, seconds: float, device: str) -> tuple[float, int]:
    """Image-gradients per second of a K-class all-to-one step on a fresh network, and images per step.

    n: clean images per class; a step has K (K - 1) n images.
    seconds: how long to measure.
    Raises ValueError for more images than the smallest class of the test set has.
    """
    images = data.load(dataset).to(device)
    k = images.n_classes
    most = int(torch.bincount(images.test_labels, minlength=k).min())
    if not 1 <= n <= most:
        raise ValueError(
            f"n = {n}: 1 to {most} images per class are needed, which every class of {dataset} has"
        )
    model = models.network(network, n_classes=k, shape=images.shape).to(device)
    batch = k * (k - 1) * n
    x = images.test_images[torch.arange(batch) % len(images.test_images)]
    return _rate(model, x, seconds), batch


def scans(*, seconds: float, threads: int) -> Iterator[Pace]:
    """The pace of each of DETECTORS on each of SHAPES: fresh networks of ten classes, eight images of noise a class.

    seconds: how long each is measured; a search that takes longer is stopped.
    threads: of PyTorch, meanwhile.
    """
    before = torch.get_num_threads()
    try:
        for network, shape in SHAPES.items():
            model = models.network(network, n_classes=10, shape=shape)
            clean = torch.rand(10, 8, *shape, generator=torch.Generator().manual_seed(0))
            noise = clean.flatten(0, 1).repeat(-(-max(BATCHES) // 80), 1, 1, 1)
            torch.set_num_threads(1)
            there_and_back, there = (
                threads * max(_rate(model, noise[:b], seconds, backwards=back) for b in BATCHES)
                for back in (True, False)
            )
            torch.set_num_threads(threads)
            for name in DETECTORS:
                end = time.perf_counter() + seconds
                cost = named(name).scan(model, clean, stop=lambda: time.perf_counter() >= end).cost  # noqa: B023
                answers = cost.forward - cost.backward + cost.queries
                least = cost.backward / there_and_back + answers / there
                paces = cost.backward / cost.seconds, answers / cost.seconds
                yield Pace(network, name, threads, *paces, least / cost.seconds)
    finally:
        torch.set_num_threads(before)


def _rate(model: nn.Module, images: Tensor, seconds: float, *, backwards: bool = True) -> float:
    """Images a second through the model, and with `backwards` back to the image."""

    def step() -> None:
        x = images.detach().requires_grad_(backwards)
        value = model(x).logsumexp(1).sum()
        if backwards:
            torch.autograd.grad(value, x)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    with frozen(model), torch.set_grad_enabled(backwards):
        step()  # warm-up: first calls allocate and choose kernels
        return _timed(step, seconds) * len(images)


def _timed(step: Callable[[], None], seconds: float) -> float:
    """Steps a second."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        done += 1
    return done / (time.perf_counter() - start)
