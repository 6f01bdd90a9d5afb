"""What every network of the register must do: images to logits, drawn from its seed alone, errors that name it."""

from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import nn

from lib import models, train
from lib.models import LAST_HIDDEN, NETWORKS, network

pytestmark = pytest.mark.long

SMALLEST = {
    "vgg16": 32,
    "densenet": 4,
    "nc-gtsrb": 8,
    "vgg9": 16,
    "lenet5": 12,
    "nc-mnist": 16,
    "usb-basic": 16,
}
K, MEAN, STD = 7, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
each = pytest.mark.parametrize("name", NETWORKS)


def shape_of(name: str) -> tuple[int, int, int]:
    """The smallest images that it takes."""
    return (3, *2 * [SMALLEST.get(name, 1)])


def images(name: str, n: int = 3) -> torch.Tensor:
    return torch.rand(n, *shape_of(name), generator=torch.Generator().manual_seed(0))


@cache
def built(name: str) -> torch.nn.Sequential:
    return network(name, n_classes=K, shape=shape_of(name), seed=1, mean=MEAN, std=STD).eval()


def test_the_table_is_of_the_register():
    assert set(SMALLEST) <= set(NETWORKS)


@each
def test_images_to_logits(name):
    x = images(name)
    with torch.no_grad():
        z = built(name)(x)
        assert z.shape == (3, K) and z.isfinite().all() and z.std() > 0
        assert torch.equal(built(name)(x), z), "in evaluation mode the same images give the same logits"
        torch.testing.assert_close(built(name)(x[:1]), z[:1], rtol=1e-3, atol=1e-4)


@each
def test_a_network_is_drawn_from_its_seed_alone(name):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    how = dict(n_classes=K, shape=shape_of(name), mean=MEAN, std=STD)
    same, other = network(name, seed=1, **how), network(name, seed=2, **how)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in same.modules())
    weights, again, anew = (m.state_dict() for m in (built(name), same, other))
    assert list(weights) == list(again) and all(torch.equal(v, again[k]) for k, v in weights.items())
    drawn = [k for k, v in weights.items() if v.ndim > 1 and not k.startswith("0.")]
    assert drawn and not any(torch.equal(weights[k], anew[k]) for k in drawn)
    # a fresh network has seen no image
    assert all(v == 0 for k, v in weights.items() if k.endswith("num_batches_tracked"))
    assert all((v == 0).all() for k, v in weights.items() if k.endswith("running_mean"))


@each
def test_normalisation_is_inside(name):
    x, (m, s) = images(name), (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    half = network(name, n_classes=K, shape=shape_of(name), seed=1).eval()
    with torch.no_grad():
        torch.testing.assert_close(built(name)(x), built(name)[1]((x - m) / s))
        torch.testing.assert_close(half(x), built(name)[1]((x - 0.5) / 0.5))


@each
def test_the_head_turns_what_is_hidden_into_logits(name):
    model, x = built(name), images(name)
    site = models.find(model, LAST_HIDDEN, x)
    with torch.no_grad():
        hidden, z = models.hidden(model, x, site), model(x)
    assert hidden.shape == (3, site.width)
    torch.testing.assert_close(models.head(model, site)(hidden), z)
    torch.testing.assert_close(models.activations(model, x, site), hidden)
    blank = models.silence(model, site, range(site.width))
    torch.testing.assert_close(blank(x), models.head(model, site)(0 * hidden))


@each
def test_weights_go_through_a_state_dict(name):
    other = network(name, n_classes=K, shape=shape_of(name), seed=2)
    other.load_state_dict(built(name).state_dict())
    x = images(name)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), built(name)(x))


@each
def test_what_it_cannot_take_is_refused_with_its_name_and_the_shape(name):
    for shape in ((0, 8, 8), (8, 8), (1, 8.5, 8), (1, -8, 8)):
        with pytest.raises(ValueError, match=r"shape = .*8.*: \(C, H, W\), whole numbers from 1"):
            network(name, n_classes=K, shape=shape)
    for bad in (0, 1, 2.5, "two"):
        with pytest.raises(ValueError, match=f"n_classes = {bad!r}.*two or more classes"):
            network(name, n_classes=bad, shape=shape_of(name))
    for bad in ({"mean": [0.5]}, {"std": [1, 1, 0]}, {"std": []}):
        with pytest.raises(ValueError, match=r"one for each of 3 channels, std above 0"):
            network(name, n_classes=K, shape=shape_of(name), **bad)
    if name in SMALLEST:
        side = SMALLEST[name] - 1
        with pytest.raises(
            ValueError, match=rf"network '{name}' cannot take images of shape \(3, {side}, {side}\)"
        ):
            network(name, n_classes=K, shape=(3, side, side))


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"no network 'resnet19': allowed are small, .*densenet"):
        network("resnet19", n_classes=2, shape=(1, 8, 8))


def test_weights_are_channels_last_while_they_are_used_and_as_they_were_afterwards():
    """A file of weights is written from tensors in the usual order."""

    class Watched(nn.Sequential):
        seen: ClassVar[list[bool]] = []

        def forward(self, x):
            self.seen.append(self[0].weight.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    model = Watched(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    x, y = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    before = model[0].weight.detach().clone()
    models.logits(model, x)
    with models.frozen(model):
        model(x)
    assert (
        model.seen == [True, True]
        and model[0].weight.is_contiguous()
        and torch.equal(model[0].weight, before)
    )
    train.fit(model, x, y, train.Recipe(epochs=1, batch_size=4, lr=0.1), seed=0)
    assert all(model.seen) and len(model.seen) == 4
    assert model[0].weight.is_contiguous() and not torch.equal(model[0].weight, before), (
        "what was learnt is kept"
    )
    own = Watched(nn.Conv2d(3, 8, 3)).to(memory_format=torch.channels_last)
    models.logits(own, x)
    assert not own[0].weight.is_contiguous(), "who has them so already keeps them so"
