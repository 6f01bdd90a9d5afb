"""Pruning of networks in which one neuron carries the backdoor."""

from __future__ import annotations

import pytest
import torch
from backdoors import KINDS, TARGET, K, Planted, both, images_of, judged, trigger_of

from lib import mitigations
from lib.mitigations import Pruning, Trigger


def test_pruning_removes_the_backdoor_and_nothing_else(backdoored: tuple[Planted, Trigger]) -> None:
    model, trigger = backdoored
    found = Pruning().prune(model, [trigger], *images_of(30))
    assert found.count == 1 and found.tried == (0, 1) and found.responds == (1.0, 0.0)
    assert found.share == pytest.approx(1 / (K + 5))
    after = judged(found.model, trigger)
    assert after.asr.value == after.reversed_asr.value == 0
    assert after.accuracy.value == after.true_label.value == 1
    x = images_of(20, 4).images
    torch.testing.assert_close(found.model(x), model(x))
    assert torch.equal(Pruning().fit(model, [trigger], *images_of(30))(x), found.model(x))


def test_pruning_stops_at_once_without_a_backdoor() -> None:
    """The trigger of the other kind does nothing to this model: nothing is silenced."""
    found = Pruning().prune(Planted("lattice"), [trigger_of("patch")], *images_of(30))
    assert found.count == 0 and found.responds == (0.0,)


def test_pruning_goes_on_until_no_trigger_works() -> None:
    """Each trigger has a neuron of its own, and these two come first."""
    model, triggers = both(), [trigger_of(kind) for kind in KINDS]
    found = Pruning().prune(model, triggers, *images_of(30))
    assert set(found.order[:2].tolist()) == {K + 3, K + 4}
    assert found.tried == (0, 1, 2) and found.responds == (1.0, 1.0, 0.0)
    for trigger in triggers:
        assert judged(found.model, trigger).asr.value == 0
    one = Pruning().prune(model, triggers[:1], *images_of(30))
    assert one.count == 1 and judged(one.model, triggers[1]).asr.value == 1


def test_the_pruning_curve_ends_with_nothing_left(backdoored: tuple[Planted, Trigger]) -> None:
    model, trigger = backdoored
    x = images_of(30).images
    stages = list(mitigations.curve(model, [trigger], x, step=0.1))
    shares = [share for share, _ in stages]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
    torch.testing.assert_close(stages[0][1](x), model(x))
    torch.testing.assert_close(stages[-1][1](x), model.head.bias.expand(30, -1))


def test_pruning_refuses_images_of_the_target_alone() -> None:
    with pytest.raises(ValueError, match="target class 2"):
        Pruning().fit(Planted("patch"), [Trigger(lambda x: x, TARGET)], *images_of(30).of(TARGET))


def test_pruning_refuses_impossible_settings() -> None:
    for bad in ({"step": 0.0}, {"stop": 1.5}, {"max_share": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Pruning(**bad)
