"""The neurons of a trigger, on networks that have one such neuron."""

from __future__ import annotations

import pytest
import torch
from backdoors import TARGET, K, Planted, images_of, judged

from lib import mitigations, models
from lib.mitigations import Trigger


def test_the_planted_neuron_comes_first(backdoored: tuple[Planted, Trigger]) -> None:
    model, trigger = backdoored
    gap = mitigations.activation_gap(model, trigger, images_of(30).images, models.LAST_HIDDEN)
    assert mitigations.top(gap, 0.01).tolist() == [K + 4]
    assert len(mitigations.top(gap)) == K + 5 and len(mitigations.top(gap, 0.2)) == 2
    with pytest.raises(ValueError, match="share = 0"):
        mitigations.top(gap, 0)


def test_the_planted_neuron_alone_carries_the_backdoor(backdoored: tuple[Planted, Trigger]) -> None:
    """With all other neurons at zero, stamped images still go to the target (Neural Cleanse V-C)."""
    model, trigger = backdoored
    site = models.find(model, models.LAST_HIDDEN, images_of(30).images)
    alone = models.silence(model, site, range(K + 4))
    assert judged(alone, trigger).asr.value == 1


def test_a_neuron_that_the_trigger_silences_has_a_negative_gap():
    """A trigger that blanks the image excites nothing."""
    blank = Trigger(torch.zeros_like, TARGET)
    gap = mitigations.activation_gap(Planted("patch"), blank, images_of(30).images, models.LAST_HIDDEN)
    assert (gap <= 0).all() and gap.min() < 0
