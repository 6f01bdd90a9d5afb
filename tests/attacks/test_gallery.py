"""What holds for every attack, whatever it does: all of the gallery, all groups, and so every class that there is."""

import inspect
import json
import warnings
from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from attack_samples import image_set, job, on_grid

from lib import attacks, zoo
from lib.attacks import Attack, AttackError, BadNets, SingleAttack
from lib.attacks.groups import GROUPS

SHAPE = (1, 16, 16)
NAMES = list(attacks.gallery(SHAPE))
DATA_ONLY = [
    name for name, a in attacks.gallery(SHAPE).items() if a.needs.model == "nothing" and not a.needs.training
]
EVERY = attacks.gallery(SHAPE) | {
    f"{name} of {dataset}": attack for dataset, groups in GROUPS.items() for name, attack in groups.items()
}
OF_DATA = [name for name, a in EVERY.items() if a.needs.model == "nothing" and not a.needs.training]
each = pytest.mark.parametrize("name", NAMES)
every = pytest.mark.parametrize("name", EVERY)


def test_every_class_of_attacks_is_in_the_gallery():
    """So what is parametrised over it, here and elsewhere, is about all of them."""
    kinds = {k for k in vars(attacks).values() if inspect.isclass(k) and issubclass(k, Attack)}
    assert {k for k in kinds if not inspect.isabstract(k)} == {
        type(a) for a in attacks.gallery(SHAPE).values()
    }


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
@pytest.mark.long
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


def rebuilt(told):
    """The attack of a description that went through JSON."""
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items() if k != "name"}
    if "parts" in settings:
        settings["parts"] = tuple(map(rebuilt, settings["parts"]))
    return getattr(attacks, told["name"])(**settings)


@every
def test_a_description_is_json_and_enough_to_rebuild_an_attack(name):
    attack = EVERY[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = attacks.describe(attack)
        text = json.dumps(told, allow_nan=False)
    assert told["name"] == type(attack).__name__ and set(told) == {"name", *(f.name for f in fields(attack))}
    assert rebuilt(json.loads(text)) == attack and attacks.describe(rebuilt(json.loads(text))) == told


@each
def test_what_is_learnt_is_no_setting(name):
    attack, (ready, _) = quick(name), trained(name)
    assert ready == attack and attacks.describe(ready) == attacks.describe(attack)
    given = {"pattern": torch.zeros(1)}
    found = attack.with_learnt(given)
    assert not attack.learnt, "an attack that has learnt something is another object"
    assert found.learnt == given if attack.learns else found is attack


def test_no_two_attacks_are_described_alike():
    assert len({json.dumps(attacks.describe(a)) for a in attacks.gallery(SHAPE).values()}) == len(NAMES)
    assert attacks.describe(None) is None


@each
def test_what_a_setting_cannot_be_is_refused_by_name(name):
    attack = attacks.gallery(SHAPE)[name]
    for f in fields(attack):
        bad = ["nothing of the kind", float("nan"), float("inf"), float("-inf"), ["a list"], (0.5, 1, 2), {}]
        bad += [] if "bool" in str(f.type) else [True]
        bad += [] if "None" in str(f.type) or f.default is None else [None]
        for value in bad:
            with pytest.raises(AttackError, match=f.name):
                replace(attack, **{f.name: value})


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


@pytest.mark.parametrize("name", OF_DATA)
def test_a_poisoned_set_is_the_clean_one_but_for_what_was_promised(name):
    attack, shape = EVERY[name], (3, 16, 16)
    if isinstance(attack, SingleAttack):
        attack = replace(attack, per_source=2, rate=None, cover=min(attack.cover, 3))
    n_classes = max(10, *(k + 1 for part in attack.parts for k in (part.target, *(part.sources or ()))))
    x, y = image_set(80 * n_classes, shape, n_classes=n_classes)
    before = x.clone(), y.clone()
    p, same, other = (attack.poison(x, y, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert all(torch.equal(getattr(p, f.name), getattr(same, f.name)) for f in fields(p))
    assert not torch.equal(p.source, other.source)
    stamped = p.poisoned | p.cover
    assert torch.equal(p.images[~stamped], x[p.source[~stamped]])
    assert torch.equal(p.labels[~p.poisoned], y[p.source[~p.poisoned]])
    assert {part.target for part in attack.parts} == set(p.labels[p.poisoned].tolist())
    gone = set(range(len(y))) - set(p.source[~stamped].tolist())
    assert gone == set(p.removed.tolist()) == set(p.source[stamped].tolist())
    assert len(p.images) == len(p.labels) == len(y)
    for part in attack.parts:
        asked, own = p.source[p.poisoned & (p.labels == part.target)], part.source_classes(n_classes)
        counts = torch.bincount(y[asked], minlength=n_classes)
        assert set(torch.nonzero(counts).flatten().tolist()) == set(own)
        if len(attack.parts) == 1:
            others = [k for k in range(n_classes) if k != part.target and k not in own]
            assert counts[list(own)].tolist() == [2] * len(own)
            covered = torch.bincount(y[p.source[p.cover]], minlength=n_classes).tolist()
            assert covered == [part.cover * (k in others) for k in range(n_classes)]
            assert torch.equal(p.images[stamped], part.embed(x[p.source[stamped]]))


def test_sources_are_a_set():
    """In another order they are the same attack: the same draws, the same name in the zoo."""
    one, other = (BadNets(target=9, per_source=5, sources=sources) for sources in ((8, 0, 6), [0, 6, 8]))
    assert one == other and attacks.describe(one) == attacks.describe(other) and one.sources == (0, 6, 8)
    x, y = image_set(200, n_classes=10)
    drawn = [attack.poison(x, y, torch.Generator().manual_seed(0)).source for attack in (one, other)]
    assert torch.equal(*drawn)
    spec = zoo.Spec(n_train=100)
    keys = {zoo.key(replace(spec, attack=attack), spec.load_data()) for attack in (one, other)}
    assert len(keys) == 1


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
