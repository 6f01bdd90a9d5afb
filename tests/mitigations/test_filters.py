"""Scores for single inputs: thresholds, the activation filter and the KL score."""

from __future__ import annotations

import pytest
import torch
from backdoors import TARGET, Planted, images_of
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import metrics, mitigations
from lib.mitigations import ActivationFilter, KLScore, Trigger


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.floats(0, 0.99))
def test_threshold_keeps_the_false_positive_rate(scores: list[float], fpr: float) -> None:
    clean = torch.tensor(scores)
    t = metrics.threshold_at(clean, fpr)
    assert (clean > t).float().mean() <= fpr + 1e-6
    lower = clean[clean < t]
    if len(lower):
        assert (clean > lower.max()).float().mean() > fpr - 1e-6, "a smaller threshold would have done"


def test_threshold_refuses_what_it_cannot_order() -> None:
    for scores, fpr in ((torch.empty(0), 0.05), (torch.tensor([1.0, torch.nan]), 0.05), (torch.ones(3), 1.0)):
        with pytest.raises(ValueError, match="clean scores"):
            metrics.threshold_at(scores, fpr)


def test_filter_and_kl_score_tell_stamped_from_clean(backdoored: tuple[Planted, Trigger]) -> None:
    model, trigger = backdoored
    clean, others = images_of(60), images_of(60, 1).away(TARGET).images
    for method, held in ((ActivationFilter(), clean), (KLScore(), clean.away(TARGET))):
        score = method.fit(model, [trigger], held.images)
        assert metrics.auc(score.score(trigger(others)), score.score(others)) == 1
        assert score.rejects(trigger(others)).all()
        assert score.threshold(0.05) == metrics.threshold_at(score.clean_scores, 0.05)


def test_kl_score_algebra(backdoored: tuple[Planted, Trigger]) -> None:
    model, trigger = backdoored
    x, y = images_of(30)
    s = mitigations.kl_score(model, trigger, x)
    p, q = (torch.softmax(model(z).double(), 1) for z in (x, trigger(x)))
    assert (s >= 0).all() and torch.isfinite(s).all()
    hand = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(s[torch.isfinite(hand)], hand[torch.isfinite(hand)], rtol=1e-4, atol=1e-6)
    assert (mitigations.kl_score(model, lambda z: z, x) == 0).all()
    assert s[y == TARGET].max() < s[y != TARGET].min(), "clean images of the target class look triggered to S"
    if trigger(trigger(x)).equal(trigger(x)):  # replacement is idempotent: S of a stamped image is exactly 0
        assert (mitigations.kl_score(model, trigger, trigger(x)) == 0).all()


def test_a_share_of_neurons_is_above_0_and_up_to_1() -> None:
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match="share"):
            ActivationFilter(share=bad)
