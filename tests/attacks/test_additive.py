"""Additive patterns: the norms of the papers, the lattices' defining properties, clipping to 8 bits."""

from math import sqrt

import pytest
import torch
from attack_samples import ONE, image_set, on_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.attacks import (
    Attack,
    AttackError,
    Chessboard,
    Cross,
    Global,
    LocalChessboard,
    LocalSquare,
    LShape,
    SinglePixel,
)

COLOUR, GREY = (3, 32, 32), (1, 28, 28)


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
    ids=lambda value: type(value).__name__ if isinstance(value, Attack) else "",
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


def test_a_local_chessboard_lies_in_the_corner_unless_told():
    corner = torch.nonzero(LocalChessboard(amplitude=9, size=2, **ONE).pattern((1, 8, 8))[0]).tolist()
    moved = LocalChessboard(amplitude=9, size=2, at=[0, 1], **ONE)
    assert corner == [[6, 6], [7, 7]] and moved.at == (0, 1)
    assert torch.nonzero(moved.pattern((1, 8, 8))[0]).tolist() == [[0, 2], [1, 1]]
    with pytest.raises(AttackError, match="9x9 shape does not fit"):
        LocalChessboard(amplitude=9, size=9, **ONE).pattern((1, 8, 8))
