"""Finding layers, reading their neurons and silencing them."""

from __future__ import annotations

import copy

import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib import models
from lib.models import LAST_CONV, LAST_HIDDEN

pytestmark = pytest.mark.long

WIDTH = planted.K + 1  # hidden units of a planted model: one a class, one for the trigger
IMAGES = planted.images(2).flatten(0, 1)


@pytest.mark.parametrize("name", ["small", "nc-mnist", "vgg9", "resnet18", "mobilenetv2", "densenet"])
def test_last_hidden_is_what_the_head_sees(name: str) -> None:
    model = models.network(name, n_classes=4, shape=(3, 32, 32)).eval()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    site = models.find(model, LAST_HIDDEN, x)
    h = models.activations(model, x, site)
    assert site.width == head.in_features and h.shape == (3, head.in_features)
    torch.testing.assert_close(head(h), model(x), rtol=1e-4, atol=1e-5)
    conv = models.find(model, LAST_CONV, x)
    assert conv.width == [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


def test_last_conv_is_read_after_its_activation() -> None:
    model = models.network("nc-mnist", n_classes=4, shape=(1, 28, 28))
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    h = models.activations(model, x, LAST_CONV)
    assert (h >= 0).all()
    torch.testing.assert_close(h, model[1][:5](model[0](x)).mean((2, 3)))


def test_layers_that_cannot_be_used_are_named() -> None:
    model = planted.model()
    with pytest.raises(ValueError, match=r"no layer 'nope'.*0, 1, 2, 3"):
        models.find(model, "nope", IMAGES)
    with pytest.raises(ValueError, match="no last conv layer"):
        models.find(model, LAST_CONV, IMAGES)
    with pytest.raises(ValueError, match="no last hidden layer"):
        models.find(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), LAST_HIDDEN, IMAGES)
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Flatten(), relu, nn.Linear(64, 9), relu, nn.Linear(9, 3))
    with pytest.raises(ValueError, match="'1' runs 2 times"):
        models.activations(twice, IMAGES, "1")
    with pytest.raises(ValueError, match="neurons 0 to 4"):
        models.silence(model, models.Site("2", False, WIDTH), [WIDTH])


def test_batches_do_not_change_activations() -> None:
    model = planted.model()
    whole = models.activations(model, IMAGES, LAST_HIDDEN)
    torch.testing.assert_close(models.activations(model, IMAGES, LAST_HIDDEN, batch_size=2), whole)


@settings(deadline=None)
@given(st.sets(st.integers(0, WIDTH - 1)))
def test_silencing_is_zeroing_the_weights(neurons: set[int]) -> None:
    """At a ReLU layer, a silenced neuron is one whose incoming weights and bias are zero.

    The model given is left alone.
    """
    model, x = planted.model(), planted.stamped(IMAGES)
    before = copy.deepcopy(model.state_dict())
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand[1].weight[list(neurons)] = 0
        by_hand[1].bias[list(neurons)] = 0
    for layer in (LAST_HIDDEN, "2", "1"):
        changed = models.silence(model, models.find(model, layer, x), sorted(neurons))
        torch.testing.assert_close(changed(x), by_hand(x))
        again = models.silence(changed, models.find(changed, LAST_HIDDEN, x), sorted(neurons))
        torch.testing.assert_close(again(x), by_hand(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_silencing_a_channel_of_a_convolution() -> None:
    model = models.network("small", n_classes=3, shape=(1, planted.SIDE, planted.SIDE))
    site = models.find(model, LAST_CONV, IMAGES)
    h = models.activations(models.silence(model, site, [0, 5]), IMAGES, site.name)
    assert (h[:, [0, 5]] == 0).all() and (h[:, 1:5] != 0).any()
