"""Several attacks in one training set: parts that keep out of each other's way, and one description."""

import json

import pytest
import torch
from attack_samples import ONE, image_set
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import attacks, train, zoo
from lib.attacks import BadNets, Combined, Global


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), remove=st.booleans())
def test_parts_never_share_an_image(seed, remove):
    x, y = image_set(90)
    parts = (
        BadNets(target=0, per_source=7, at="top-left", colour="white", remove_originals=remove),
        Global(target=1, sources=(2,), per_source=5, cover=4, amplitude=30, remove_originals=remove),
    )
    attack = Combined(parts=parts)
    p = attack.poison(x, y, torch.Generator().manual_seed(seed))
    used = p.source[p.poisoned | p.cover]
    assert len(set(used.tolist())) == len(used) == 14 + 5 + 4
    assert torch.bincount(p.labels[p.poisoned], minlength=3).tolist() == [14, 5, 0]
    assert len(p.labels) == (90 if remove else 90 + 23)
    rows = torch.nonzero(p.poisoned & (p.labels == 1)).flatten()
    assert torch.equal(p.images[rows], parts[1].embed(x[p.source[rows]]))
    untouched = ~(p.poisoned | p.cover)
    assert torch.equal(p.images[untouched], x[p.source[untouched]])


def test_two_parts_of_one_kind_are_told_apart_in_the_description():
    patch, additive = BadNets(**ONE), Global(amplitude=9, **ONE)
    told = attacks.describe(Combined(parts=(patch, additive)))
    assert [part["name"] for part in told["parts"]] == ["BadNets", "Global"]
    assert set(told) == {"name", "seed", "parts"}
    assert json.loads(json.dumps(told)) == told


def test_a_single_attack_is_its_only_part_and_a_composition_has_no_trigger_of_its_own():
    patch, additive = BadNets(**ONE), Global(amplitude=9, **ONE)
    assert patch.parts == (patch,)
    both = Combined(parts=[patch, additive])
    assert both.parts == (patch, additive)
    assert not any(hasattr(both, name) for name in ("target", "sources", "rate", "embed"))


def test_nine_triggers_stand_apart_and_share_a_label():
    attack = attacks.nine_triggers(target=4, rate=0.01, size=4)
    masks = torch.stack([p.trigger((3, 32, 32))[0] for p in attack.parts])
    assert masks.sum(0).max() == 1 and masks.sum() == 9 * 16
    assert {p.target for p in attack.parts} == {4}


def test_several_labels_have_colours_and_places_of_their_own():
    attack = attacks.several_labels(targets=(4, 0, 2), rate=0.01)
    assert [p.target for p in attack.parts] == [4, 0, 2]
    triggers = [p.trigger((3, 32, 32)) for p in attack.parts]
    assert torch.stack([mask for mask, _ in triggers]).sum(0).max() == 1
    colours = {tuple(pattern[:, mask > 0].flatten().tolist()) for mask, pattern in triggers}
    assert len(colours) == 3


@pytest.mark.long
def test_a_composition_is_as_strong_as_its_weakest_part(tmp_path):
    spec = zoo.Spec(n_train=120, recipe=train.Recipe(epochs=1, batch_size=32, lr=1e-3))
    found, other = (
        zoo.get(spec, attack=attacks.several_labels(targets=targets, rate=0.1), zoo=tmp_path)
        for targets in ((0, 3), (0, 4))
    )
    assert len(found.metrics["asr_parts"]) == 2
    assert found.metrics["asr"] == min(found.metrics["asr_parts"])
    assert other.path != found.path
