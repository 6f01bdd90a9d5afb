"""Poisoning: which images are stamped, how they are labelled, what becomes of the originals."""

import pytest
import torch
from attack_samples import ONE, image_set, on_grid, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib.attacks import AttackError, BadNets, Combined, LabelConsistent, LocalSquare


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
    off = drawn - exact
    assert (
        off.max() - off.min() <= 1 + 1e-5
    )  # largest remainders: no image moved would bring the counts nearer


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


def test_pgd_ends_in_the_corner_of_its_ball_on_a_linear_model():
    """The slope's sign never changes there, and 2.5 radii of steps cross the ball from any start."""
    x, y = image_set(20, n_classes=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    attack = LabelConsistent(target=1, per_source=1, size=2, epsilon=20)
    uphill = (model[1].weight[1 - y] - model[1].weight[y]).detach().sign().view_as(x)
    corner = (x + 20 / 255 * uphill).clamp(0, 1)
    assert torch.allclose(attack.manipulate(model, x, y), corner, atol=1e-6)
