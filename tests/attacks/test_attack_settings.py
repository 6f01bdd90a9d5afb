"""Settings of attacks: impossible ones are refused with their name, their value and what is allowed."""

from dataclasses import replace

import pytest
from attack_samples import ONE

from lib.attacks import (
    AttackError,
    BadNets,
    Blended,
    Combined,
    Global,
    InputAware,
    LabelConsistent,
    Latent,
    LocalSquare,
    Trojan,
)

IMPOSSIBLE = {
    "target among the sources": (
        lambda: BadNets(target=1, sources=(0, 1), per_source=3),
        "target 1.*sources",
    ),
    "negative target": (lambda: BadNets(target=-1, rate=0.1), "target = -1.*from 0"),
    "no source": (lambda: BadNets(sources=(), **ONE), r"sources = \(\)"),
    "one source twice": (lambda: BadNets(sources=(0, 0), **ONE), r"sources = \(0, 0\).*different"),
    "half a class": (lambda: BadNets(sources=(0.5,), **ONE), r"sources = \(0.5,\).*whole"),
    "sources in words": (lambda: BadNets(sources="02", **ONE), "sources = '02'.*whole"),
    "a source that is no list": (lambda: BadNets(sources=2, **ONE), "sources = 2.*whole"),
    "count and share": (lambda: BadNets(target=1, rate=0.1, per_source=2), "per_source = 2, rate = 0.1"),
    "neither": (lambda: BadNets(target=1), "give exactly one"),
    "share of nothing": (lambda: BadNets(target=1, rate=0.0), "rate = 0.0.*above 0"),
    "share of all": (lambda: BadNets(target=1, rate=1), "rate = 1.*below 1"),
    "no image": (lambda: BadNets(target=1, per_source=0), "per_source = 0.*from 1"),
    "negative cover": (lambda: BadNets(cover=-1, **ONE), "cover = -1"),
    "half a level": (lambda: Global(amplitude=1.5, **ONE), "amplitude = 1.5.*-255 to 255"),
    "no amplitude": (lambda: Global(amplitude=0, **ONE), "amplitude = 0.*not 0"),
    "too many levels": (lambda: Global(amplitude=-256, **ONE), "amplitude = -256.*-255 to 255"),
    "one phase of two": (
        lambda: Global(amplitude=2, phase=(1,), **ONE),
        r"phase = \(1,\): a list of 2 whole",
    ),
    "negative channel": (lambda: LocalSquare(amplitude=2, channel=-1, **ONE), "channel = -1"),
    "no square": (lambda: LocalSquare(amplitude=2, size=0, **ONE), "size = 0"),
    "no pixel": (lambda: BadNets(size=0, **ONE), "size = 0.*None"),
    "unknown shape": (lambda: BadNets(shape="star", **ONE), "shape = 'star'.*triangle"),
    "unknown colour": (lambda: BadNets(colour="green", **ONE), "colour = 'green'.*white"),
    "colour off the grid": (lambda: BadNets(colour=(256,), **ONE), r"colour = \(256,\).*0 to 255"),
    "colour between levels": (lambda: BadNets(colour=(1.5,), **ONE), r"colour = \(1.5,\).*whole"),
    "no colour": (lambda: BadNets(colour=(), **ONE), r"colour = \(\)"),
    "unknown anchor": (lambda: BadNets(at="corner", **ONE), "at = 'corner'.*bottom-right"),
    "three coordinates": (lambda: BadNets(at=(0, 1, 2), **ONE), r"at = \(0, 1, 2\).*2 whole"),
    "two places": (lambda: BadNets(at=(0, 0), per_image=True, **ONE), "per_image"),
    "no weight": (lambda: Blended(alpha=0, **ONE), "alpha = 0.*above 0"),
    "sources of a label-consistent attack": (
        lambda: LabelConsistent(target=1, sources=(0,), rate=0.1),
        "sources",
    ),
    "radius off the grid": (lambda: LabelConsistent(epsilon=0.1, **ONE), "epsilon = 0.1"),
    "shares above one": (lambda: InputAware(target=1, rate=0.6, cross=0.5), "cross = 0.5"),
    "odd width": (lambda: InputAware(target=1, width=6), "width = 6.*multiple of 4"),
    "retraining on what": (lambda: Trojan(target=1, retrain_on="all"), "retrain_on = 'all'"),
    "retraining on none": (lambda: Trojan(target=1, per_source=None), "per_source = None"),
    "a crafted patch that moves": (lambda: Trojan(target=1, at=None, per_image=True), "one place"),
    "cover of a crafted patch": (lambda: Latent(target=1, cover=3), "cover = 3.*all sources"),
    "one part": (lambda: Combined(parts=(BadNets(**ONE),)), "two or more"),
    "parts that are no list": (
        lambda: Combined(parts=BadNets(**ONE)),
        "parts = BadNets.*a list of SingleAttacks",
    ),
    "a part that trains": (
        lambda: Combined(parts=(BadNets(**ONE), Latent(target=0))),
        "Latent cannot be a part",
    ),
    "a part of parts": (
        lambda: Combined(parts=(BadNets(**ONE), Combined(parts=(BadNets(**ONE), BadNets(**ONE))))),
        "parts = .*a list of SingleAttacks",
    ),
    "a part that is no attack": (
        lambda: Combined(parts=(BadNets(**ONE), "BadNets")),
        "parts = .*'BadNets'.*a list of SingleAttacks",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_settings_are_refused_by_name(name):
    make, message = IMPOSSIBLE[name]
    with pytest.raises(AttackError, match=message):
        make()


def test_the_bounds_themselves_are_allowed():
    assert {Global(amplitude=a, **ONE).amplitude for a in (-255, -1, 1, 255)} == {-255, -1, 1, 255}
    assert BadNets(colour=(0, 255), size=1, alpha=1, **ONE).colour == (0, 255)
    assert LabelConsistent(epsilon=0, **ONE).epsilon == 0
    assert BadNets(size=None, **ONE).size is None and Trojan(target=1, at=None).at is None
    assert Global(amplitude=2, phase=(3, -1), **ONE).phase == (3, -1)


def test_lists_become_tuples_so_that_attacks_can_be_compared_and_hashed():
    listed = BadNets(target=1, per_source=2, sources=[0, 2], colour=[255], at=[0, 1])
    assert listed == BadNets(target=1, per_source=2, sources=(0, 2), colour=(255,), at=(0, 1))
    assert len({listed, replace(listed)}) == 1
