"""STRIP: scores by hand, and a planted trigger that survives blending."""

import planted
import pytest
import torch
from torch import nn

from lib import metrics
from lib.detectors.strip import Strip

CLEAN = planted.images(12).flatten(0, 1)
TEST = planted.images(10, seed=1).flatten(0, 1)


def test_the_entropy_of_a_model_that_cannot_decide_is_log2_of_the_classes():
    def model(images):
        return torch.full((len(images), 4), 0.25)

    torch.testing.assert_close(Strip(overlays=5).entropy(model, TEST[:3], CLEAN), torch.full((3,), 2.0))


def test_a_certain_model_has_no_entropy():
    def model(images):
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(images), 3)

    assert (Strip(overlays=5).entropy(model, TEST[:3], CLEAN) == 0).all()


def test_stamped_images_score_higher():
    strip = Strip(overlays=30, alpha=1.0)
    model = planted.model()
    others = TEST[torch.arange(len(TEST)) // 10 != 1]
    stamped, clean = (strip.score(model, x, CLEAN) for x in (planted.stamped(others), others))
    assert metrics.auc(stamped, clean) > 0.95


def test_a_score_depends_neither_on_its_neighbours_nor_on_the_batch_size():
    model = planted.model()
    whole = Strip(overlays=10).score(model, TEST, CLEAN)
    alone = torch.cat([Strip(overlays=10, batch_size=1).score(model, x[None], CLEAN) for x in TEST[:4]])
    torch.testing.assert_close(whole[:4], alone)


def test_no_image_no_score():
    assert Strip(overlays=2).score(planted.model(), TEST[:0], CLEAN).shape == (0,)


def test_the_model_comes_back_as_it_was():
    model = nn.Sequential(nn.Dropout(0.9), planted.model()).train()
    a, b = (Strip(overlays=3).score(model, TEST[:2], CLEAN) for _ in range(2))
    assert model.training and torch.equal(a, b)


@pytest.mark.parametrize("bad", [{"overlays": 0}, {"alpha": 0.0}, {"alpha": 1.5}, {"batch_size": 0}])
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Strip(**bad)


def test_too_few_clean_images_are_named():
    with pytest.raises(ValueError, match="100 or more"):
        Strip().score(planted.model(), TEST, CLEAN[:20])
