"""Unlearning of one trigger, of several at once, and of every label's in turn."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from backdoors import KINDS, SIDE, TARGET, THOROUGH, Planted, images_of, judged, scan_of, trigger_of
from torch import Tensor

from lib.mitigations import PatchEveryLabel, Trigger, Unlearning, triggers_of

pytestmark = pytest.mark.long


def test_patch_set_keeps_true_labels(backdoored: tuple[Planted, Trigger]) -> None:
    _, trigger = backdoored
    x, y = images_of(100)
    tell = x.flatten(1).sum(1)
    made = Unlearning(sample=0.5, stamped=0.2).patch_set([trigger], x, y, seed=3)
    assert len(made.labels) == 50 and made.stamped.sum() == 10
    plain = Unlearning(sample=0.5, stamped=0.2).patch_set([], x, y, seed=3)
    assert not plain.stamped.any() and torch.equal(plain.labels, made.labels)
    assert torch.equal(plain.images[~made.stamped], made.images[~made.stamped])
    assert torch.equal(trigger(plain.images[made.stamped]), made.images[made.stamped])
    for image, label in zip(plain.images, plain.labels, strict=True):
        assert y[(tell - image.sum()).abs().argmin()] == label


def test_several_triggers_share_the_stamped_images() -> None:
    def painted(z: Tensor, v: float) -> Tensor:
        return torch.full_like(z, v)

    triggers = [Trigger(partial(painted, v=i / 10), TARGET) for i in range(3)]
    made = Unlearning(sample=1.0, stamped=0.5).patch_set(triggers, *images_of(90))
    values = made.images[made.stamped][:, 0, 0, 0]
    assert [int((values == torch.tensor(i / 10)).sum()) for i in range(3)] == [15, 15, 15]


def test_unlearning_takes_the_backdoor_out_and_clean_images_do_not(
    backdoored: tuple[Planted, Trigger],
) -> None:
    model, trigger = backdoored
    data = images_of(300)
    patched, control = (THOROUGH.fit(model, triggers, *data, seed=1) for triggers in ([trigger], []))
    after = judged(patched, trigger)
    assert after.asr.value < 0.1 and after.accuracy.value > 0.95 and after.true_label.value > 0.9
    assert judged(control, trigger).asr.value > 0.9
    again = THOROUGH.fit(model, [trigger], *data, seed=1)
    x = data.images[:9]
    assert torch.equal(again(x), patched(x)), "the same seed must give the same model"


def test_unlearning_refuses_impossible_settings() -> None:
    for bad in ({"sample": 0.0}, {"stamped": 1.5}, {"epochs": 0}, {"lr": -1.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Unlearning(**bad)
    with pytest.raises(ValueError, match="one label per image"):
        Unlearning().fit(
            Planted("patch"), [], torch.zeros(4, 1, SIDE, SIDE), torch.zeros(3, dtype=torch.long)
        )


# --- every label


@pytest.mark.parametrize("kind", KINDS)
def test_patching_every_label_needs_no_verdict(kind: str) -> None:
    model, every = Planted(kind), triggers_of(scan_of(kind))
    how = PatchEveryLabel(unlearning=Unlearning(sample=1.0, stamped=0.6, epochs=30, lr=2e-2))
    after = judged(how.fit(model, every, *images_of(300)), every[TARGET])
    assert after.asr.value < 0.1 and after.accuracy.value > 0.95


def test_each_label_is_unlearned_with_a_seed_of_its_own() -> None:
    model, every, data = Planted("patch"), triggers_of(scan_of("patch")), images_of(60)
    how, by_hand = Unlearning(sample=0.5), Planted("patch")
    for i, trigger in enumerate(every):
        by_hand = how.fit(by_hand, [trigger], *data, seed=7 + i)
    x = data.images[:9]
    assert torch.equal(PatchEveryLabel(unlearning=how).fit(model, every, *data, seed=7)(x), by_hand(x))


def test_unlearnings_rate_is_constant():
    """Adam's first step moves a parameter by the rate, whatever the gradient; one batch is one step."""
    model = Planted("patch")
    how = Unlearning(sample=1.0, stamped=0.5, batch_size=300, lr=1e-3)
    after = how.fit(model, [trigger_of("patch")], *images_of(300))
    moved = max(float((a - b).abs().max()) for a, b in zip(model.parameters(), after.parameters()))
    assert abs(moved - 1e-3) < 1e-5
