"""The gallery: what holds for every attack, whatever it does."""

import json
import warnings
from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from attack_samples import image_set, job, on_grid

from lib import attacks
from lib.attacks import AttackError, SingleAttack
from lib.settings import in_words

SHAPE = (1, 16, 16)
NAMES = list(attacks.gallery(SHAPE))
DATA_ONLY = [
    name for name, a in attacks.gallery(SHAPE).items() if a.needs.model == "nothing" and not a.needs.training
]
each = pytest.mark.parametrize("name", NAMES)


def quick(name: str, **settings) -> attacks.Attack:
    """The gallery's attack of this name for the three classes of `job`, with few steps where it trains."""
    attack = attacks.gallery(SHAPE, n_classes=3, **settings)[name]
    few = {"steps": 5, "epochs": 2, "mask_epochs": 1}
    known = {f.name for f in fields(attack)}
    return replace(attack, **{k: v for k, v in few.items() if k in known})


@cache
def trained(name: str) -> tuple[attacks.Attack, dict[str, torch.Tensor]]:
    """The attack, ready to embed, and the weights of its classifier."""
    attack = quick(name)
    model, learnt = attack.train(job(SHAPE, epochs=2))
    assert bool(learnt) == attack.learns
    return attack.with_learnt(learnt), model.state_dict()


@each
def test_every_trigger_gives_8_bit_images_of_the_same_shape(name):
    images = job(SHAPE).images
    before = images.clone()
    for part in trained(name)[0].parts:
        stamped = part.embed(images)
        assert stamped.shape == images.shape and stamped.dtype == images.dtype and on_grid(stamped)
        assert torch.equal(images, before) and not torch.equal(stamped, images)
        assert torch.equal(stamped, part.embed(images))


@each
def test_a_seed_settles_everything(name):
    first, weights = trained(name)
    state = torch.random.get_rng_state()
    model, learnt = quick(name).train(job(SHAPE, epochs=2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(first.learnt[k], learnt[k]) for k in learnt)
    assert quick(name) == quick(name) != quick(name, seed=1)


@each
def test_every_attack_is_described_in_json(name):
    attack = attacks.gallery(SHAPE)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = attacks.describe(attack)
        assert json.loads(json.dumps(told)) == told
    assert told["name"] == type(attack).__name__ and set(told) == {"name", *(f.name for f in fields(attack))}


def test_no_two_attacks_are_described_alike():
    assert len({json.dumps(attacks.describe(a)) for a in attacks.gallery(SHAPE).values()}) == len(NAMES)
    assert attacks.describe(None) is None


@each
def test_every_declared_setting_refuses_what_is_of_another_kind(name):
    attack = attacks.gallery(SHAPE)[name]
    declared = [f.name for f in fields(attack) if in_words(f)]
    assert "seed" in declared
    for setting in declared:
        for value in ("nothing of the kind", float("nan"), True, ["a list"]):
            with pytest.raises(AttackError, match=f"{setting} = "):
                replace(attack, **{setting: value})


@each
def test_a_label_that_the_task_does_not_have_is_refused_before_anything_is_trained(name):
    attack = attacks.gallery(SHAPE, target=9)[name]

    def fit(model, images, labels):
        raise AssertionError("something was trained")

    with pytest.raises(AttackError, match="class 9 does not exist: allowed are 0 to 2"):
        attack.train(replace(job(SHAPE), fit=fit))


@each
def test_every_attack_consists_of_single_attacks(name):
    attack = attacks.gallery(SHAPE)[name]
    assert attack.parts and all(isinstance(part, SingleAttack) for part in attack.parts)
    assert (attack.parts == (attack,)) == isinstance(attack, SingleAttack)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", DATA_ONLY)
def test_every_attack_fits_every_kind_of_image(name, shape):
    x, y = image_set(600, shape, n_classes=10)
    p = attacks.gallery(shape)[name].poison(x, y, torch.Generator().manual_seed(0))
    assert on_grid(p.images) and bool(p.poisoned.any())


def test_small_images_are_refused():
    with pytest.raises(AttackError, match=r"shape = \(1, 8, 8\).*16x16"):
        attacks.gallery((1, 8, 8))


def test_the_table_of_needs_has_a_row_per_attack():
    table = attacks.needs_table(attacks.gallery(SHAPE))
    assert list(table.index) == NAMES
    assert table.loc["BadNets, triangle"].tolist() == ["some training images", "yes", "nothing", "no"]
    assert table.loc["latent", "controls training"] == "yes"
