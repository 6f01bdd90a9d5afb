"""Small image sets, networks and attacks that the tests of attacks share."""

import torch
from torch import nn

from lib import train
from lib.attacks import InputAware, Job, LabelConsistent, Latent, Trojan

ONE = dict(target=1, rate=0.1)
CRAFTED = {
    "label-consistent": LabelConsistent(target=1, per_source=30, size=2, at="top-right", colour="white"),
    "trojan": Trojan(target=1, size=3, steps=30),
    "trojan without images": Trojan(target=1, size=3, steps=30, retrain_on="recovered"),
    "latent": Latent(target=1, size=3, steps=30),
    "input-aware": InputAware(target=1, width=4, mask_epochs=1, epochs=6),
}


def image_set(n: int = 60, shape=(1, 8, 8), n_classes: int = 3, seed: int = 0):
    """Random 8-bit images with every class present equally often."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), generator=generator) / 255
    return images, torch.arange(n) % n_classes


def on_grid(images: torch.Tensor) -> bool:
    """Are these 8-bit images?"""
    whole = (images * 255).round() / 255
    return bool((whole - images).abs().max() < 1e-6 and images.min() >= 0 and images.max() <= 1)


def tiny(shape=(1, 8, 8), n_classes: int = 3, seed: int = 0) -> nn.Sequential:
    """A network with one hidden layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        width = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, n_classes))


def job(shape=(1, 8, 8), seed: int = 0, *, epochs: int = 8, device: str = "cpu") -> Job:
    """Three classes told apart by a bright third of the image, on the 8-bit grid."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(150) % 3
    x = 0.3 * torch.rand(150, *shape, generator=generator)
    third = shape[1] // 3
    for k in range(3):
        x[y == k, :, k * third : (k + 1) * third] += 0.5
    how = train.Recipe(epochs=epochs, batch_size=32, lr=1e-2)
    return Job(
        images=((x * 255).round() / 255).to(device),
        labels=y.to(device),
        build=lambda: tiny(shape).to(device),
        fit=lambda model, images, labels: train.fit(model, images, labels, how, seed=seed),
        epochs=epochs,
        batch_size=32,
        seed=seed,
    )
