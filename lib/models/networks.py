"""Architectures by name, with the normalisation of their images inside.

Patterns live in [0, 1] pixel space, so a network takes images in [0, 1] and normalises them itself. The
small networks follow the tables of the papers (paddings that a table does not give are "none" for NC-MNIST
and USB-Basic, "same" for NC-GTSRB and VGG-9); the large ones are torchvision's, with a stem for 32x32
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..settings import are_numbers
from .ask import evaluating

Shape = tuple[int, int, int]


class Normalise(nn.Module):
    """(x - mean) / std per channel, for images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _conv(i: int, o: int, k: int, *, same: bool = True) -> list[nn.Module]:
    return [nn.Conv2d(i, o, k, padding=k // 2 if same else 0), nn.ReLU()]


def _head(features: nn.Sequential, shape: Shape, hidden: Sequence[int], n_classes: int) -> nn.Sequential:
    """Features, then dense layers; the flattened size is found by running one blank image."""
    with torch.no_grad(), evaluating(features):
        width = features(torch.zeros(1, *shape)).numel()
    layers: list[nn.Module] = [*features, nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def _small(k: int, s: Shape) -> nn.Module:
    """The smoke profile's network: two strided convolutions, one hidden layer of 64.

    About 30 microseconds an image-gradient on one core. Strides, not pooling: max-pooling early hides a lattice
    of one pixel in four, and costs three times as much.
    """
    body = [
        nn.Conv2d(s[0], 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
    ]
    return _head(nn.Sequential(*body), s, [64], k)


def _lenet5(k: int, s: Shape) -> nn.Module:
    body = [*_conv(s[0], 6, 5), nn.MaxPool2d(2), *_conv(6, 16, 5, same=False), nn.MaxPool2d(2)]
    return _head(nn.Sequential(*body), s, [120, 84], k)


def _nc_mnist(k: int, s: Shape) -> nn.Module:
    """[NC] Table VII."""
    body = [*_conv(s[0], 16, 5, same=False), nn.MaxPool2d(2), *_conv(16, 32, 5, same=False), nn.MaxPool2d(2)]
    return _head(nn.Sequential(*body), s, [512], k)


def _usb_basic(k: int, s: Shape) -> nn.Module:
    """[USB] A.7: as NC-MNIST with average pooling."""
    body = [*_conv(s[0], 16, 5, same=False), nn.AvgPool2d(2), *_conv(16, 32, 5, same=False), nn.AvgPool2d(2)]
    return _head(nn.Sequential(*body), s, [512], k)


def _nc_gtsrb(k: int, s: Shape) -> nn.Module:
    """[NC] Table VIII: also [LR]'s GTSRB network."""
    body: list[nn.Module] = []
    for i, o in ((s[0], 32), (32, 64), (64, 128)):
        body += [*_conv(i, o, 3), *_conv(o, o, 3), nn.MaxPool2d(2)]
    return _head(nn.Sequential(*body), s, [512], k)


def _vgg9(k: int, s: Shape) -> nn.Module:
    """[LR] A.7.2: VGG-11 less its last two convolutions, with 16, 32, 64, 64, 128, 128 filters.

    Pooling follows VGG-11 (after convolutions 1, 2, 4, 6); batch normalisation and two dense layers of 512 are
    our reading.
    """
    body: list[nn.Module] = []
    filters, pools = (s[0], 16, 32, 64, 64, 128, 128), (True, True, False, True, False, True)
    for i, o, pool in zip(filters, filters[1:], pools, strict=False):
        body += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()] + [nn.MaxPool2d(2)] * pool
    return _head(nn.Sequential(*body), s, [512, 512], k)


def _resnet(name: str) -> Callable[[int, Shape], nn.Module]:
    def fresh(k: int, s: Shape) -> nn.Module:
        import torchvision.models as zoo

        net = getattr(zoo, name)(num_classes=k)
        # the usual stem for 32x32 images
        net.conv1 = nn.Conv2d(s[0], 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
        return net

    return fresh


def _vgg16(k: int, s: Shape) -> nn.Module:
    import torchvision.models as zoo

    net = zoo.vgg16_bn(num_classes=k)
    net.features[0] = nn.Conv2d(s[0], 64, 3, padding=1)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, k))
    return net


def _mobilenet(k: int, s: Shape) -> nn.Module:
    import torchvision.models as zoo

    net = zoo.mobilenet_v2(num_classes=k)
    net.features[0][0] = nn.Conv2d(s[0], 32, 3, padding=1, bias=False)
    return net


def _densenet(k: int, s: Shape) -> nn.Module:
    import torchvision.models as zoo

    net = zoo.DenseNet(growth_rate=12, block_config=(16, 16, 16), num_init_features=24, num_classes=k)
    net.features.conv0 = nn.Conv2d(s[0], 24, 3, padding=1, bias=False)
    net.features.pool0 = nn.Identity()
    return net


def _efficientnet(k: int, s: Shape) -> nn.Module:
    import torchvision.models as zoo

    net = zoo.efficientnet_b0(num_classes=k)
    net.features[0][0] = nn.Conv2d(s[0], 32, 3, padding=1, bias=False)
    return net


NETWORKS: dict[str, Callable[[int, Shape], nn.Module]] = {
    "small": _small,
    "lenet5": _lenet5,
    "nc-mnist": _nc_mnist,
    "usb-basic": _usb_basic,
    "nc-gtsrb": _nc_gtsrb,
    "vgg9": _vgg9,
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "vgg16": _vgg16,
    "mobilenetv2": _mobilenet,
    "densenet": _densenet,
    "efficientnet-b0": _efficientnet,
}


@contextmanager
def _in_double() -> Iterator[None]:
    """New tensors are of double precision: weights drawn so, and rounded, are the same on every processor."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def network(
    name: str,
    *,
    n_classes: int,
    shape: Shape,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """A fresh network by name: images (N, *shape) in [0, 1] -> logits (N, n_classes).

        network("small", n_classes=10, shape=(1, 16, 16))

    It is Sequential(Normalise, the architecture).
    seed: draws the weights, without touching the global generator's state.
    mean, std: of the images, per channel; default 0.5.
    Raises ValueError for an unknown name, for images that the network cannot take, and for other numbers than these.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}: allowed are {', '.join(NETWORKS)}")
    sizes = are_numbers(shape, 3, least=1) and are_numbers([n_classes], 1, least=2)
    if not sizes or any(size % 1 for size in (*shape, n_classes)):
        have = f"shape = {shape!r}, n_classes = {n_classes!r}"
        raise ValueError(f"{have}: (C, H, W), whole numbers from 1, and two or more classes are needed")
    half = [0.5] * shape[0]
    centre, spread = (list(half if given is None else given) for given in (mean, std))
    if not (are_numbers(centre, shape[0]) and are_numbers(spread, shape[0], above=0)):
        raise ValueError(
            f"mean = {mean}, std = {std}: one for each of {shape[0]} channels, std above 0, are needed"
        )
    try:
        with torch.random.fork_rng(devices=[]), _in_double():
            torch.manual_seed(seed)
            architecture = NETWORKS[name](n_classes, shape).float()
        made = nn.Sequential(Normalise(centre, spread), architecture)
        with torch.no_grad(), evaluating(made):
            made(torch.zeros(1, *shape))
    except RuntimeError as e:
        raise ValueError(f"network {name!r} cannot take images of shape {tuple(shape)}: {e}") from e
    return made
