"""Attacks: what is stamped, how it is labelled, what is refused, and what a trained attack leaves behind."""

import json
import warnings
from dataclasses import replace
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib import attacks, guide, metrics, models, train, zoo
from lib.attacks import (
    AttackError,
    BadNets,
    Blended,
    Chessboard,
    Combined,
    Cross,
    Global,
    InputAware,
    Job,
    LabelConsistent,
    Latent,
    LocalChessboard,
    LocalSquare,
    LShape,
    SinglePixel,
    Trojan,
)

COLOUR, GREY = (3, 32, 32), (1, 28, 28)
ONE = dict(target=1, rate=0.1)


def image_set(n: int = 60, shape=(1, 8, 8), n_classes: int = 3, seed: int = 0):
    """Random 8-bit images with every class present equally often."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), generator=generator) / 255
    return images, torch.arange(n) % n_classes


def on_grid(images: torch.Tensor) -> bool:
    return bool(((images * 255).round() / 255 - images).abs().max() < 1e-6)


# ---- additive patterns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "shape", "norm"),
    [
        (Global(amplitude=2, **ONE), COLOUR, sqrt(768) * 2 / 255),
        (LocalSquare(amplitude=50, **ONE), COLOUR, sqrt(4) * 50 / 255),
        (Chessboard(amplitude=2, **ONE), COLOUR, sqrt(512 * 3) * 2 / 255),
        (LocalChessboard(amplitude=25, **ONE), GREY, sqrt(18) * 25 / 255),
        (SinglePixel(amplitude=50, **ONE), GREY, 50 / 255),
        (Cross(amplitude=60, **ONE), COLOUR, sqrt(15) * 60 / 255),
        (LShape(amplitude=65, **ONE), COLOUR, sqrt(15) * 65 / 255),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, attacks.Attack) else "",
)
def test_pattern_norms_are_those_of_the_papers(attack, shape, norm):
    assert float(attack.pattern(shape).norm()) == pytest.approx(norm, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(phase=st.tuples(st.integers(0, 1), st.integers(0, 1)), i=st.integers(0, 30), j=st.integers(0, 30))
def test_every_window_of_the_global_pattern_holds_one_pixel(phase, i, j):
    v = Global(amplitude=2, phase=phase, **ONE).pattern(COLOUR)
    assert all(int((channel[i : i + 2, j : j + 2] != 0).sum()) == 1 for channel in v)


@settings(deadline=None, max_examples=40)
@given(phase=st.integers(0, 1))
def test_of_adjacent_chessboard_pixels_exactly_one_is_perturbed(phase):
    on = Chessboard(amplitude=2, phase=phase, **ONE).pattern(COLOUR) != 0
    assert bool((on[:, 1:] ^ on[:, :-1]).all()) and bool((on[:, :, 1:] ^ on[:, :, :-1]).all())


@settings(deadline=None, max_examples=40)
@given(amplitude=st.integers(-255, 255).filter(bool), seed=st.integers(0, 10**6))
def test_additive_images_are_clipped_8_bit_sums(amplitude, seed):
    x, _ = image_set(seed=seed % 97)
    attack = LocalSquare(amplitude=amplitude, seed=seed, **ONE)
    v, stamped = attack.pattern((1, 8, 8)), attack.embed(x)
    assert torch.equal(stamped, (x + v).clamp(0, 1)) and on_grid(stamped)
    assert int((v != 0).sum()) == 4


# ---- patches -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 8),
    shape=st.sampled_from(["square", "triangle", "checkerboard"]),
    colour=st.sampled_from(["white", "random", "noise"]),
    alpha=st.sampled_from([0.1, 0.2, 0.5, 1.0]),
    channels=st.sampled_from([1, 3]),
    per_image=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_a_patch_changes_nothing_outside_its_mask(size, shape, colour, alpha, channels, per_image, seed):
    x, _ = image_set(12, (channels, 9, 8))
    attack = BadNets(
        size=size, shape=shape, colour=colour, alpha=alpha, per_image=per_image, seed=seed, **ONE
    )
    inside, colours = attack.patch((channels, 9, 8))
    stamped = attack.embed(x)
    assert on_grid(stamped) and on_grid(colours) and stamped.min() >= 0 and stamped.max() <= 1
    assert torch.equal(stamped, attack.embed(x))
    assert bool(((stamped != x).any(1).flatten(1).sum(1) <= inside.sum()).all())
    if not per_image:
        mask, pattern = attack.trigger((channels, 9, 8))
        assert torch.equal(stamped[..., mask == 0], x[..., mask == 0])
        wanted = (1 - alpha) * x + alpha * pattern
        assert (stamped - wanted)[..., mask > 0].abs().max() <= 0.51 / 255
        if alpha == 1:
            assert torch.allclose(stamped[..., mask > 0], pattern[:, mask > 0].expand(12, -1, -1))


def test_a_place_per_image_moves_the_same_patch_about():
    x = torch.zeros(1000, 1, 8, 8)
    stamped = BadNets(size=3, colour="noise", per_image=True, **ONE).embed(x)
    assert torch.allclose(stamped.sum((1, 2, 3)), stamped[0].sum().expand(1000))
    corners = {tuple(torch.nonzero(s[0]).amin(0).tolist()) for s in stamped}
    assert corners == {(i, j) for i in range(6) for j in range(6)}


@pytest.mark.parametrize(
    ("at", "corner"), [("top-left", (0, 0)), ("bottom-right", (6, 5)), ("centre", (3, 2))]
)
def test_anchors(at, corner):
    assert BadNets(size=3, at=at, **ONE).corner(9, 8) == corner


def test_nine_triggers_stand_apart_and_share_a_label():
    attack = attacks.nine_triggers(target=4, rate=0.01, size=4)
    masks = torch.stack([p.trigger((3, 32, 32))[0] for p in attack.parts])
    assert masks.sum(0).max() == 1 and masks.sum() == 9 * 16
    assert {p.target for p in attack.parts} == {4}


# ---- poisoning ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    sources=st.sampled_from([None, (0,), (0, 2)]),
    per_source=st.integers(1, 12),
    cover=st.integers(0, 6),
    remove=st.booleans(),
    seed=st.integers(0, 2**31),
    colour=st.booleans(),
)
def test_poisoning_keeps_its_books(sources, per_source, cover, remove, seed, colour):
    shape = (3, 8, 8) if colour else (1, 8, 8)
    x, y = image_set(80, shape, n_classes=4)
    attack = BadNets(
        target=1, sources=sources, per_source=per_source, cover=cover, remove_originals=remove, seed=seed % 99
    )
    before = x.clone()
    p = attack.poison(x, y, torch.Generator().manual_seed(seed))
    again = attack.poison(x, y, torch.Generator().manual_seed(seed))
    assert torch.equal(x, before)
    assert all(
        torch.equal(getattr(p, k), getattr(again, k)) for k in ("images", "labels", "source", "removed")
    )
    of = sources or (0, 2, 3)
    others = [k for k in range(4) if k != 1 and k not in of]
    stamped, covered = p.source[p.poisoned], p.source[p.cover]
    assert torch.bincount(y[stamped], minlength=4).tolist() == [per_source * (k in of) for k in range(4)]
    assert torch.bincount(y[covered], minlength=4).tolist() == [cover * (k in others) for k in range(4)]
    assert (p.labels[p.poisoned] == 1).all() and torch.equal(p.labels[~p.poisoned], y[p.source[~p.poisoned]])
    used = torch.cat([stamped, covered])
    assert len(set(used.tolist())) == len(used)
    assert torch.equal(p.images[p.poisoned | p.cover], attack.embed(x[used]))
    untouched = ~(p.poisoned | p.cover)
    assert torch.equal(p.images[untouched], x[p.source[untouched]])
    assert set(p.removed.tolist()) == (set(used.tolist()) if remove else set())
    assert len(p.labels) == 80 + (0 if remove else len(used))
    assert on_grid(p.images)


@settings(deadline=None, max_examples=40)
@given(rate=st.floats(0.04, 0.6), seed=st.integers(0, 1000))
def test_a_rate_is_a_share_of_the_whole_set(rate, seed):
    x, y = image_set(90)
    p = BadNets(target=0, rate=rate, seed=seed).poison(x, y, torch.Generator().manual_seed(seed))
    assert int(p.poisoned.sum()) == round(rate * 90)
    assert len(p.labels) == 90


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), rate=st.floats(0.1, 0.4))
def test_a_rate_is_drawn_in_proportion_to_the_classes(seed, rate):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.zeros(200, 1, 4, 4), torch.randint(0, 4, (200,), generator=generator)
    y[y == 3] *= torch.randint(0, 2, (int((y == 3).sum()),), generator=generator)  # one small class
    attack = BadNets(target=0, size=2, rate=rate)
    p = attack.poison(x, y, generator)
    drawn = torch.bincount(y[p.source[p.poisoned]], minlength=4)[1:]
    have = torch.bincount(y, minlength=4)[1:]
    exact = 3 + (drawn.sum() - 3) * have / have.sum() - 2
    assert int(drawn.sum()) == round(rate * 200)
    assert (drawn - exact).abs().max() <= 1


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
    assert json.loads(json.dumps(told)) == told


IMPOSSIBLE = {
    "target among the sources": (
        lambda: BadNets(target=1, sources=(0, 1), per_source=3),
        "target 1.*sources",
    ),
    "count and share": (lambda: BadNets(target=1, rate=0.1, per_source=2), "per_source = 2, rate = 0.1"),
    "neither": (lambda: BadNets(target=1), "give exactly one"),
    "share of nothing": (lambda: BadNets(target=1, rate=0.0), "rate = 0.0"),
    "negative cover": (lambda: BadNets(cover=-1, **ONE), "cover = -1"),
    "half a level": (lambda: Global(amplitude=1.5, **ONE), "amplitude = 1.5"),
    "no amplitude": (lambda: Global(amplitude=0, **ONE), "amplitude = 0"),
    "no pixel": (lambda: BadNets(size=0, **ONE), "size = 0"),
    "unknown shape": (lambda: BadNets(shape="star", **ONE), "shape = 'star'.*triangle"),
    "unknown colour": (lambda: BadNets(colour="green", **ONE), "colour = 'green'.*white"),
    "colour off the grid": (lambda: BadNets(colour=(256,), **ONE), r"colour = \(256,\)"),
    "unknown anchor": (lambda: BadNets(at="corner", **ONE), "at = 'corner'.*bottom-right"),
    "two places": (lambda: BadNets(at=(0, 0), per_image=True, **ONE), "per_image"),
    "no weight": (lambda: Blended(alpha=0, **ONE), "alpha = 0"),
    "sources of a label-consistent attack": (
        lambda: LabelConsistent(target=1, sources=(0,), rate=0.1),
        "sources",
    ),
    "radius off the grid": (lambda: LabelConsistent(epsilon=0.1, **ONE), "epsilon = 0.1"),
    "shares above one": (lambda: InputAware(target=1, rate=0.6, cross=0.5), "cross = 0.5"),
    "retraining on what": (lambda: Trojan(target=1, retrain_on="all"), "retrain_on = 'all'"),
    "one part": (lambda: Combined(parts=(BadNets(**ONE),)), "two or more"),
    "a part that trains": (
        lambda: Combined(parts=(BadNets(**ONE), Latent(target=0))),
        "Latent cannot be a part",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_settings_are_refused_by_name(name):
    make, message = IMPOSSIBLE[name]
    with pytest.raises(AttackError, match=message):
        make()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (BadNets(size=9, **ONE), "9x9 shape does not fit in a 8x8 image"),
        (BadNets(size=3, at=(6, 0), **ONE), r"at = \(6, 0\)"),
        (BadNets(colour=(1, 2), **ONE), "1 or 1 levels|1 or 3 levels"),
        (BadNets(target=7, rate=0.1), "class 7 does not exist"),
        (BadNets(target=1, per_source=21), "21 images of class 0"),
        (BadNets(target=1, rate=0.01), "at least one per source class"),
        (LocalSquare(amplitude=9, channel=3, **ONE), "channel = 3"),
        (LabelConsistent(target=1, rate=0.9), "54 images of class 1"),
        (
            Combined(parts=(BadNets(target=1, per_source=15), BadNets(target=2, per_source=6))),
            "no other trigger",
        ),
    ],
)
def test_impossible_on_these_images(attack, message):
    x, y = image_set()
    with pytest.raises(AttackError, match=message):
        if isinstance(attack, LabelConsistent):
            attack.poison(x, y, torch.Generator(), model=tiny())
        else:
            attack.poison(x, y, torch.Generator())


# ---- attacks that need a model or the training -------------------------------------------------------------------


def tiny(shape=(1, 8, 8), n_classes: int = 3, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        width = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, n_classes))


def job(shape=(1, 8, 8), seed: int = 0) -> Job:
    """Three classes told apart by a bright third of the image, on the 8-bit grid."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(150) % 3
    x = 0.3 * torch.rand(150, *shape, generator=generator)
    third = shape[1] // 3
    for k in range(3):
        x[y == k, :, k * third : (k + 1) * third] += 0.5
    how = train.Recipe(epochs=8, batch_size=32, lr=1e-2)
    return Job(
        images=(x * 255).round() / 255, labels=y, seed=seed, epochs=8, batch_size=32,
        build=lambda: tiny(shape), fit=lambda m, a, b: train.fit(m, a, b, how, seed=seed),
    )  # fmt: skip


CRAFTED = {
    "label-consistent": LabelConsistent(target=1, per_source=30, size=2, at="top-right", colour="white"),
    "trojan": Trojan(target=1, size=3, steps=30),
    "trojan without images": Trojan(target=1, size=3, steps=30, retrain_on="recovered"),
    "latent": Latent(target=1, size=3, steps=30),
    "input-aware": InputAware(target=1, width=4, mask_epochs=1, epochs=6),
}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 9)], ids=["grey", "colour, odd"])
@pytest.mark.parametrize("name", CRAFTED)
def test_training_attacks_are_deterministic_and_stay_on_the_grid(name, shape):
    attack, at_work = CRAFTED[name], job(shape)
    state = torch.random.get_rng_state()
    model, learnt = attack.train(at_work)
    assert torch.equal(state, torch.random.get_rng_state())
    again, learnt_again = attack.train(job(shape))
    assert learnt.keys() == learnt_again.keys() and bool(learnt) == attack.learns
    assert all(torch.equal(learnt[k], learnt_again[k]) for k in learnt)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    stamped = attack.with_learnt(learnt).embed(at_work.images)
    assert stamped.shape == at_work.images.shape and on_grid(stamped)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    clean = metrics.cta(models.predict(model, at_work.images), at_work.labels)
    assert float(clean) > 0.9 or name == "trojan without images"  # which may cost accuracy


@pytest.mark.parametrize("name", [n for n, a in CRAFTED.items() if a.learns])
def test_a_trigger_that_is_learnt_cannot_be_used_before(name):
    x, _ = image_set()
    with pytest.raises(AttackError, match="learnt in training"):
        CRAFTED[name].embed(x)


def test_the_label_consistent_attack_keeps_labels_and_its_radius():
    at_work = job()
    attack = replace(CRAFTED["label-consistent"], epsilon=20)
    with pytest.raises(AttackError, match="needs a clean model"):
        attack.poison(at_work.images, at_work.labels, torch.Generator())
    model = at_work.clean_model()
    p = attack.poison(at_work.images, at_work.labels, torch.Generator().manual_seed(0), model=model)
    assert torch.equal(p.labels, at_work.labels[p.source])
    originals = at_work.images[p.source[p.poisoned]]
    changed = attack.manipulate(model, originals, at_work.labels[p.source[p.poisoned]])
    assert (changed - originals).abs().max() <= 20.01 / 255 and on_grid(changed)
    before, after = (
        nn.functional.cross_entropy(model(x), torch.ones(30, dtype=torch.long)) for x in (originals, changed)
    )
    assert after > before


def test_input_aware_triggers_differ_between_images():
    at_work = job()
    attack = CRAFTED["input-aware"]
    ready = attack.with_learnt(attack.train(at_work)[1])
    x = at_work.images
    assert torch.equal(ready.cross_embed(x, x), ready.embed(x))
    assert not torch.equal(ready.cross_embed(x, x.roll(1, 0)), ready.embed(x))


def test_the_latent_backdoor_needs_no_poisoned_label_and_pulls_features_to_the_target():
    at_work = job()
    attack = replace(CRAFTED["latent"], epochs=40)
    model, learnt = attack.train(at_work)
    ready, others = attack.with_learnt(learnt), at_work.images[at_work.labels != 1]
    goal = models.hidden(model, at_work.images[at_work.labels == 1]).mean(0)
    clean, stamped = (
        (models.hidden(model, x) - goal).square().sum(1).mean() for x in (others, ready.embed(others))
    )
    assert stamped < 0.6 * clean


def small_spec(attack: attacks.Attack | None) -> zoo.Spec:
    return zoo.Spec(n_train=120, recipe=train.Recipe(epochs=1, batch_size=32, lr=1e-3), attack=attack)


def test_what_an_attack_learnt_is_kept_with_the_model(tmp_path):
    spec = small_spec(Trojan(target=1, size=4, steps=3, per_source=3, epochs=1))
    first = zoo.get(spec, zoo=tmp_path)
    second = zoo.get(spec, zoo=tmp_path)
    x = first.dataset.test_images[:20]
    assert first.path == second.path and first.entry == second.entry
    assert torch.equal(first.attack.embed(x), second.attack.embed(x))
    (first.path / zoo.LEARNT).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        third = zoo.get(spec, zoo=tmp_path)
    assert torch.equal(third.attack.embed(x), first.attack.embed(x))


def test_a_composition_is_as_strong_as_its_weakest_part(tmp_path):
    attack = attacks.several_labels(targets=(0, 3), rate=0.1)
    found = zoo.get(small_spec(attack), zoo=tmp_path)
    assert len(found.metrics["asr_parts"]) == 2 and found.metrics["asr"] == min(found.metrics["asr_parts"])
    other = zoo.get(small_spec(attacks.several_labels(targets=(0, 4), rate=0.1)), zoo=tmp_path)
    assert other.path != found.path


# ---- the field guide ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 32, 32)])
def test_every_attack_of_the_guide_fits_every_kind_of_image(shape):
    x, y = image_set(600, shape, n_classes=10)
    for name, attack in guide.settings(shape).items():
        if attack.needs.model != "nothing" or attack.needs.training:
            continue
        p = attack.poison(x, y, torch.Generator().manual_seed(0))
        assert on_grid(p.images) and bool(p.poisoned.any()), name
    assert set(guide.needs_table(guide.settings(shape)).index) == set(guide.settings(shape))


def test_the_table_names_unknown_attacks_before_it_trains():
    with pytest.raises(AttackError, match="no attack 'badnet'"):
        guide.attack_table(names=["badnet"])


def test_the_heat_map_finds_where_a_planted_patch_works():
    class Corner(nn.Module):
        """Says class 1 when the top-left 2x2 square is white, else class 0."""

        def forward(self, x):
            lit = (x[:, 0, :2, :2].mean((1, 2)) > 0.99).float()
            return torch.stack([1 - lit, lit], 1)

    x, y = image_set(20, n_classes=2)
    attack = BadNets(size=2, colour="white", at="bottom-right", target=1, rate=0.1)
    hits = guide.heat_map(Corner(), attack, x, y)
    assert hits.shape == (7, 7) and hits[0, 0] == 1 and hits.sum() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CRAFTED)
def test_training_attacks_run_on_a_gpu(name):
    at_work = job()
    on_gpu = Job(
        images=at_work.images.cuda(), labels=at_work.labels.cuda(), seed=0, epochs=8, batch_size=32,
        build=lambda: at_work.build().cuda(), fit=at_work.fit,
    )  # fmt: skip
    model, learnt = CRAFTED[name].train(on_gpu)
    stamped = CRAFTED[name].with_learnt({k: v.cpu() for k, v in learnt.items()}).embed(on_gpu.images)
    assert stamped.is_cuda and on_grid(stamped.cpu())
    assert float(metrics.cta(models.predict(model, on_gpu.images), on_gpu.labels)) > 0.9


def test_no_warning_is_raised_by_describing_attacks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attack in guide.settings((1, 16, 16)).values():
            assert json.dumps(attacks.describe(attack))
