"""Outcomes, and every repair and score on one classifier, beside their controls."""

from __future__ import annotations

import math

import pytest
import torch
from backdoors import TARGET, THOROUGH, Planted, images_of, judged
from torch import nn

from lib import mitigations
from lib.mitigations import Strip, Trigger


def test_the_planted_backdoor_works(backdoored: tuple[Planted, Trigger]) -> None:
    found = judged(*backdoored)
    assert found.asr.value == found.reversed_asr.value == found.accuracy.value == 1
    assert found.true_label.value == 0
    assert found.asr.total == 40, "images of the target class must be left out"


def test_without_a_recovered_trigger_its_column_is_empty(backdoored: tuple[Planted, Trigger]) -> None:
    model, trigger = backdoored
    found = mitigations.assess(model, images_of(60), trigger, sources=[0])
    assert found.reversed_asr is None and math.isnan(found.row()["reversed ASR"])
    assert found.asr.total == 20, "images of one source class"
    assert found.row()["original ASR"] == 1


def test_a_trigger_towards_another_class_is_refused(backdoored: tuple[Planted, Trigger]) -> None:
    model, trigger = backdoored
    other, data = Trigger(trigger.embed, 0), images_of(60)
    with pytest.raises(ValueError, match="leads to class 0, the attacker's to 2"):
        mitigations.assess(model, data, trigger, reversed_trigger=other)
    with pytest.raises(ValueError, match="leads to class 0, the attacker's to 2"):
        mitigations.repairs(model, other, trigger, trusted=data, held=data, test=data)
    with pytest.raises(ValueError, match="leads to class 0, the attacker's to 2"):
        mitigations.input_scores(model, other, trigger, held=data, test=data)


@pytest.mark.long
def test_all_repairs_and_scores_on_one_classifier(backdoored: tuple[Planted, Trigger]) -> None:
    """Nothing but the two controls may depend on the attacker's trigger.

    With a useless one, the rest fits the same.
    """
    model, trigger = backdoored
    # the planted classifier behind a convolution that does nothing
    model = nn.Sequential(nn.Conv2d(1, 1, 1), model)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    useless, held, test = Trigger(lambda x: x, TARGET), images_of(60, 1), images_of(60, 2)
    known = {"trusted": images_of(300), "held": held, "test": test, "unlearning": THOROUGH, "seed": 1}
    found = mitigations.repairs(model, trigger, trigger, **known)
    assert found["before"].asr.value == 1 and found["unlearned, clean only"].asr.value > 0.9
    for name in ("unlearned, reversed", "unlearned, original", "pruned, last hidden"):
        assert found[name].asr.value < 0.1 and found[name].accuracy.value > 0.95
    blind = mitigations.repairs(model, trigger, useless, **known)
    for name in ("unlearned, reversed", "pruned, last hidden", "pruned, last conv"):
        assert blind[name].accuracy == found[name].accuracy
        assert blind[name].reversed_asr == found[name].reversed_asr

    few = {"held": held, "test": test, "strip": Strip(overlays=20)}
    scores = mitigations.input_scores(model, trigger, trigger, **few)
    assert scores["activation filter"].auc_all == 1 and scores["activation filter"].fnr.value == 0
    assert scores["S(x)"].auc == 1 and scores["S(x)"].fpr.total == 60
    with_useless = mitigations.input_scores(model, trigger, useless, **few)
    for name, score in scores.items():
        assert score.fpr == with_useless[name].fpr, "thresholds come from clean images alone"
        assert with_useless[name].auc == pytest.approx(0.5)
