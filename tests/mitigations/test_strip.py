"""STRIP: scores by hand, and a planted trigger that survives blending."""

import planted
import pytest
import torch
from torch import nn

from lib import metrics
from lib.mitigations import Strip

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


def test_the_score_is_the_negative_entropy_over_the_clean_images():
    strip, model = Strip(overlays=5), planted.model()
    fitted = strip.fit(model, (), CLEAN)
    assert torch.equal(fitted.score(TEST), -strip.entropy(model, TEST, CLEAN))
    assert torch.equal(fitted.clean_scores, -strip.entropy(model, CLEAN, CLEAN))


def test_stamped_images_score_higher():
    fitted = Strip(overlays=30, alpha=1.0).fit(planted.model(), (), CLEAN)
    others = TEST[torch.arange(len(TEST)) // 10 != 1]
    stamped, clean = (fitted.score(x) for x in (planted.stamped(others), others))
    assert metrics.auc(stamped, clean) > 0.95


def test_a_score_depends_neither_on_its_neighbours_nor_on_the_batch_size():
    model = planted.model()
    whole = Strip(overlays=10).fit(model, (), CLEAN).score(TEST)
    one_by_one = Strip(overlays=10, batch_size=1).fit(model, (), CLEAN)
    alone = torch.cat([one_by_one.score(x[None]) for x in TEST[:4]])
    torch.testing.assert_close(whole[:4], alone)


def test_the_seed_draws_the_overlays():
    seeds = (0, 0, 1)
    one, again, other = (Strip(overlays=3, seed=s).fit(planted.model(), (), CLEAN).score(TEST) for s in seeds)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_no_image_no_score():
    assert Strip(overlays=2).fit(planted.model(), (), CLEAN).score(TEST[:0]).shape == (0,)


def test_the_model_comes_back_as_it_was():
    model = nn.Sequential(nn.Dropout(0.9), planted.model()).train()
    a, b = (Strip(overlays=3).fit(model, (), CLEAN).score(TEST[:2]) for _ in range(2))
    assert model.training and torch.equal(a, b)


@pytest.mark.parametrize("bad", [{"overlays": 0}, {"alpha": 0.0}, {"alpha": 1.5}, {"batch_size": 0}])
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Strip(**bad)


def test_too_few_clean_images_are_named():
    with pytest.raises(ValueError, match="100 or more"):
        Strip().fit(planted.model(), (), CLEAN[:20])
    with pytest.raises(ValueError, match="100 or more"):
        Strip().entropy(planted.model(), TEST, CLEAN[:20])


def test_a_blend_is_the_image_and_so_much_of_the_overlay():
    shown = []

    def model(x):
        shown.append(x)
        return torch.full((len(x), 2), 0.5)

    x, over = torch.full((1, 1, 8, 8), 0.4), torch.full((3, 1, 8, 8), 0.6)
    Strip(overlays=3, alpha=0.5).entropy(model, x, over)
    assert torch.allclose(torch.cat(shown), torch.tensor(0.7))
