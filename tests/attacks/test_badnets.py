"""Patches: nothing changes outside the mask, and places are where they are said to be."""

import pytest
import torch
from attack_samples import ONE, image_set, on_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.attacks import BadNets


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
    assert on_grid(stamped) and on_grid(colours)
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
    ("at", "corner"),
    [("top-left", (0, 0)), ("bottom-right", (6, 5)), ("centre", (3, 2)), ([-3, 1], (6, 1))],
)
def test_places(at, corner):
    assert BadNets(size=3, at=at, **ONE).corner(9, 8) == corner


def test_colours_are_levels():
    grey, colour = BadNets(size=2, colour=[51], **ONE), BadNets(size=2, colour=(255, 51, 0), **ONE)
    assert grey.patch((3, 8, 8))[1].unique().tolist() == [pytest.approx(0.2)]
    assert colour.patch((3, 8, 8))[1][:, 0, 0].tolist() == pytest.approx([1, 0.2, 0])
