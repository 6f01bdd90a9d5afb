"""Rounds of detection and patching, with a detector that knows what there is to find."""

from __future__ import annotations

import pytest
import torch
from backdoors import KINDS, TARGET, THOROUGH, Oracle, Planted, both, images_of, judged, trigger_of

from lib.mitigations import DetectAndPatch, Unlearning

pytestmark = pytest.mark.long


def test_rounds_find_one_trigger_after_the_other() -> None:
    """The rule is MAD or a quarter, because MAD cannot flag with three classes that tie.

    The third scan flags nothing and ends it.
    """
    model, data = both(), images_of(300)
    loop = DetectAndPatch(
        detector=Oracle(), rule="mad-or-quarter", unlearning=THOROUGH, max_rounds=5, n_clean=10
    )
    rounds = loop.rounds(model, *data, seed=0)
    assert [r.patched for r in rounds] == [(TARGET,), (TARGET,), ()]
    assert [r.scan.mask is None for r in rounds[:2]] == [False, True], "the patch first, then the lattice"
    for kind in KINDS:
        trigger = trigger_of(kind)
        assert judged(model, trigger).asr.value == 1 and judged(rounds[-1].model, trigger).asr.value < 0.1
    once = DetectAndPatch(detector=Oracle(), unlearning=THOROUGH, max_rounds=1, n_clean=5)
    assert len(once.rounds(model, *data)) == 1


def test_triggers_that_are_known_go_first() -> None:
    """With the patch known, one round has the lattice left to find: as much as by hand."""
    model, data, patch = both(), images_of(300), trigger_of("patch")
    loop = DetectAndPatch(
        detector=Oracle(), rule="mad-or-quarter", unlearning=THOROUGH, max_rounds=1, n_clean=10
    )
    found = loop.fit(model, [patch], *data, seed=0)
    for kind in KINDS:
        assert judged(found, trigger_of(kind)).asr.value < 0.1
    first = THOROUGH.fit(model, [patch], *data, seed=0)
    by_hand = loop.rounds(first, *data, seed=1)
    assert by_hand[0].scan.mask is None and torch.equal(by_hand[-1].model(data.images), found(data.images))


def test_rounds_patch_a_suspected_label_whatever_the_rule_says() -> None:
    loop = DetectAndPatch(
        detector=Oracle(), suspected=(1,), max_rounds=2, n_clean=5, unlearning=Unlearning(sample=0.2)
    )
    model, data = Planted("patch"), images_of(90)
    rounds = loop.rounds(model, *data, seed=3)
    assert len(rounds) == 2 and all(1 in r.patched for r in rounds)
    fitted = loop.fit(model, [], *data, seed=3)
    assert torch.equal(fitted(data.images), rounds[-1].model(data.images)), "fit gives the last round's model"


def test_impossible_settings_are_named() -> None:
    for bad in ({"rule": "guess"}, {"max_rounds": 0}, {"n_clean": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DetectAndPatch(detector=Oracle(), **bad)


def test_a_round_that_patches_nothing_keeps_the_model() -> None:
    """On a model without a backdoor no trigger of the oracle works, so nothing is flagged."""
    clean = Planted("patch")
    with torch.no_grad():
        clean.head.weight[TARGET, -1] = 0.0
    loop, data = DetectAndPatch(detector=Oracle(), rule="mad-or-quarter", n_clean=5), images_of(60)
    (only,) = loop.rounds(clean, *data)
    assert only.patched == () and only.model is clean
    fitted = loop.fit(clean, [], *data)
    assert fitted is not clean and torch.equal(fitted(data.images), clean(data.images))
