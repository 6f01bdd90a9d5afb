"""How fast this machine is: what a scan's seconds come from."""

from __future__ import annotations

import time

import torch

from .. import data, models


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
    model = models.network(network, n_classes=k, shape=images.shape).to(device).eval().requires_grad_(False)
    batch = k * (k - 1) * n
    x = images.test_images[torch.arange(batch) % len(images.test_images)].requires_grad_(True)

    def step() -> None:
        torch.autograd.grad(model(x).logsumexp(1).sum(), x)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    step()  # warm-up: first calls allocate and choose kernels
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        done += batch
    return done / (time.perf_counter() - start), batch
