"""Networks: images to logits, drawn from their seed alone, and errors that name the thing."""

import pytest
import torch

from lib import data, models

digits = data.load("digits")


@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_network_maps_images_to_logits(name):
    shape = (1, 28, 28) if name in ("lenet5", "nc-mnist", "usb-basic") else (3, 32, 32)
    net = models.network(name, n_classes=7, shape=shape).eval()
    x = torch.rand(2, *shape)
    assert net(x).shape == (2, 7) and torch.isfinite(net(x)).all()


def test_networks_are_drawn_from_their_seed_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    a, b, c = (models.network("small", n_classes=10, shape=(1, 16, 16), seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    x = digits.test_images[:3]
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x))


def test_normalisation_is_inside():
    net = models.network("small", n_classes=10, shape=(1, 16, 16), mean=[0.5], std=[0.25])
    x = digits.test_images[:2]
    assert torch.allclose(net(x), net[1]((x - 0.5) / 0.25), atol=1e-6)


def test_impossible_networks_are_named():
    with pytest.raises(ValueError, match="allowed are small"):
        models.network("resnet19", n_classes=2, shape=(1, 8, 8))
    with pytest.raises(ValueError, match="too small"):
        models.network("nc-mnist", n_classes=2, shape=(1, 4, 4))
