"""MM-BD: largest margins that can be written down, and what rules make of them."""

import numpy as np
import planted
import pytest
import torch
from scipy.stats import gamma
from torch import nn

from lib import anomaly
from lib.detectors.margins import MMBD, direction, margins

SHAPE = (2, 3, 4)  # of the images of the small networks here
NOTHING = planted.images(1)[:, :0]


def linear(weight, bias=None):
    """A network with these logits: weight (K, 24), bias (K,)."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return nn.Sequential(nn.Flatten(), layer)


def nothing(k):
    return torch.empty(k, 0, *SHAPE)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_margins_are_the_logit_less_the_best_of_the_others():
    logits = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [-1.0, -1.0, -4.0]])
    assert margins(logits, torch.tensor([0, 1, 2])).tolist() == [0.5, -2.0, -3.0]
    torch.testing.assert_close(
        margins(torch.log_softmax(logits, 1), torch.tensor([0, 1, 2])), torch.tensor([0.5, -2.0, -3.0])
    )


def test_a_direction_leaves_no_pixel_outside_and_has_one_length_whatever_the_scale():
    x = torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0)).round(decimals=0)
    slope = normal(2, 3, *SHAPE)
    way = direction(x, slope)
    assert ((x + 0.01 * way >= 0) & (x + 0.01 * way <= 1)).all() and (way != 0).any()
    torch.testing.assert_close(way.square().mean((2, 3, 4)), torch.ones(2, 3))
    torch.testing.assert_close(direction(x, 1000 * slope), way)
    assert not direction(torch.ones_like(x), slope.abs()).any(), "in a corner there is no way up"


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_two_classes_of_a_linear_network_end_in_opposite_corners(scale):
    """z_1 - z_0 = d x + b is largest where x = 1 for d > 0, else 0; whatever the scale of the logits."""
    weight, bias = scale * normal(2, 24), scale * torch.tensor([1.0, 0.0])
    scan = MMBD().scan(linear(weight, bias), nothing(2))
    d = weight[1] - weight[0]
    most = torch.stack([(-d).clamp_min(0).sum() + scale, d.clamp_min(0).sum() - scale])
    torch.testing.assert_close(1 / scan.norms, most)
    assert torch.equal(scan.pattern[1].flatten(), (d > 0).float())
    assert torch.equal(scan.pattern[0], 1 - scan.pattern[1])
    assert scan.converged.all() and scan.reached.all() and (scan.success == 1).all()


def test_classes_with_pixels_of_their_own_light_all_of_them():
    """z_t = the sum of a_t over its own six pixels, a_t > 0: r_t = that sum, with all others dark."""
    weight = torch.zeros(4, 24)
    for t in range(4):
        weight[t, 6 * t : 6 * t + 6] = torch.linspace(0.5, 1.5, 6) * (1 + t)
    scan = MMBD().scan(linear(weight), nothing(4))
    torch.testing.assert_close(1 / scan.norms, weight.sum(1))
    assert torch.equal(scan.pattern.flatten(1), (weight > 0).float())


def test_the_class_whose_logit_can_be_driven_higher_is_named():
    """The planted corner adds 15 * (4 - 1) to the 10 that every class's own band gives."""
    for target in range(planted.K):
        scan = MMBD().scan(planted.model(target), NOTHING)
        assert scan.norms.argmin() == target
        torch.testing.assert_close(1 / scan.norms[target], torch.tensor(55.0), rtol=1e-3, atol=0)
        assert anomaly.judge(scan, "calibrated").targets == (target,)
        assert scan.pattern[target][0][planted.corner()].min() > 0.99
    assert not anomaly.judge(MMBD().scan(planted.model(None), NOTHING), "calibrated").attacked


def test_the_gamma_rule_is_the_papers_test_on_the_margins_themselves():
    """pv = 1 - G(r_max)^K, G the Gamma fitted to the other margins."""
    weight = torch.zeros(6, 24)
    for t, sum_ in enumerate([2.0, 2.4, 1.9, 2.2, 3.4, 2.1]):
        weight[t, 4 * t : 4 * t + 4] = sum_ / 4
    verdict = anomaly.judge(MMBD().scan(linear(weight), nothing(6)), "gamma")
    r = weight.sum(1).double().numpy()
    shape, _, scale = gamma.fit(np.delete(r, 4), floc=0)
    assert verdict.p_value == pytest.approx(1 - gamma.cdf(3.4, shape, scale=scale) ** 6, rel=1e-3)
    assert verdict.suspect == 4


def never(k=5):
    """A linear network that never says its last class."""
    weight = torch.zeros(k, 24)
    for t in range(k - 1):
        weight[t, 4 * t : 4 * t + 4] = 0.5 + 0.02 * t
    return linear(weight, torch.tensor([0.0] * (k - 1) + [-100.0]))


def test_a_class_that_is_never_said_is_not_reached_and_not_judged():
    scan = MMBD().scan(never(), nothing(5))
    assert scan.reached.tolist() == [True] * 4 + [False] and scan.success.tolist() == [1.0] * 4 + [0.0]
    assert scan.norms[4] == scan.norms[:4].median(), "a number that stands out nowhere"
    for rule in ("gamma", "calibrated", "mad"):
        verdict = anomaly.judge(scan, rule)
        assert verdict.unreached == (4,) and 4 not in verdict.targets
        assert verdict.score == anomaly.judge(scan.norms[:4], rule).score, "as if there were four classes"
    assert anomaly.judge(scan, "calibrated").outcome == anomaly.INCONCLUSIVE


def test_a_scan_stopped_at_once_has_found_nothing():
    scan = MMBD().scan(never(), nothing(5), stop=lambda: True)
    assert not (scan.reached.any() or scan.converged.any()) and scan.cost.forward == 0
    assert anomaly.judge(scan, "calibrated").outcome == anomaly.INCONCLUSIVE


def test_more_starts_find_no_less_and_every_step_is_counted():
    model = nn.Sequential(
        nn.Flatten(), linear(normal(16, 24))[1], nn.Tanh(), linear(normal(4, 16, seed=1))[1]
    )
    one, many = (MMBD(starts=n, max_steps=30, stall=30).scan(model, nothing(4)) for n in (1, 8))
    assert (many.norms <= one.norms + 1e-6)[one.reached].all()
    assert many.cost.forward == many.cost.backward == 4 * 8 * 30


def test_the_best_image_on_the_way_is_kept_where_steps_overshoot():
    model = nn.Sequential(
        nn.Flatten(), linear(normal(16, 24))[1], nn.Tanh(), linear(normal(4, 16, seed=1))[1]
    )
    scan = MMBD(step=3.0, max_steps=40, stall=40).scan(model, nothing(4))
    found = margins(model(scan.pattern), torch.arange(4)).detach()
    torch.testing.assert_close(1 / scan.norms[scan.reached], found[scan.reached])
    few, more = (MMBD(step=3.0, max_steps=n, stall=40).scan(model, nothing(4)) for n in (10, 11))
    assert few.reached.all() and (more.norms <= few.norms).all() and (scan.norms <= more.norms).all()


def test_a_class_rests_once_it_has_stopped_rising():
    scan = MMBD(starts=2, stall=5).scan(linear(normal(2, 24)), nothing(2))
    assert scan.converged.all() and scan.cost.backward < 2 * 2 * 100
    for scale in (1e-3, 1e3):  # of what it had, not in units of logits
        same = MMBD(starts=2, stall=5).scan(linear(scale * normal(2, 24)), nothing(2))
        assert same.cost.backward == scan.cost.backward


@pytest.mark.parametrize(
    "name, value", [("starts", 0), ("step", 0), ("max_steps", 0), ("stall", 0), ("rise", -1)]
)
def test_what_a_setting_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}: a .*number"):
        MMBD(**{name: value})


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match="gives probabilities"):
        MMBD().scan(nn.Sequential(linear(normal(4, 24)), nn.Softmax(1)), nothing(4))
