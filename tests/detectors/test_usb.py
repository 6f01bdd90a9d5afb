"""USB: the targeted step, the universal perturbation, its refinement and its reuse."""

import dataclasses

import planted
import pytest
import torch
from torch import nn

from lib import anomaly
from lib.detectors import masks
from lib.detectors.base import Run
from lib.detectors.uap import Walk, deepfool, project, universal_perturbations
from lib.detectors.usb import USB, gaussian_window, raised, split, ssim
from lib.models import Cost

pytestmark = pytest.mark.long

CLEAN = planted.images(6)


def linear(seed: int = 0) -> nn.Sequential:
    layer = nn.Linear(64, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def test_deepfool_on_a_linear_model_is_the_projection_onto_the_targets_boundary() -> None:
    """Two classes and no clipping: the step has length gap / |w| along w, and crosses."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.full((1, 1, 8, 8), 0.5)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    with torch.no_grad():
        model[1].bias[0] += 0.3 + (model(x)[0, 1] - model(x)[0, 0])  # class 0 by a margin of 0.3
    how = Walk(overshoot=0.0)
    r, there = deepfool(model, x, torch.zeros_like(x), torch.tensor([1]), how, Cost(), n_classes=2)
    gap = float((model(x)[0, 0] - model(x)[0, 1]).detach())
    assert not there and gap > 0
    assert float(r.norm()) == pytest.approx((gap + 1e-4) / float(w.norm()), rel=1e-2)
    assert torch.cosine_similarity(r.flatten(), w, dim=0) > 0.999
    assert model(x + r)[0].argmax() == 1


def test_the_step_goes_to_the_target_and_not_to_the_nearest_class() -> None:
    model, x = (
        linear(),
        torch.full((8, 1, 8, 8), 0.5)
        + 0.02 * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
    )
    for t in range(4):
        goal = torch.full((8,), t)
        r, there = deepfool(model, x, torch.zeros_like(x), goal, Walk(), Cost(), n_classes=4)
        assert (model((x + r).clamp(0, 1)).argmax(1) == t).all()
        assert (r[there] == 0).all() and (r[~there].flatten(1).norm(dim=1) > 0).all()


def test_projection_keeps_the_short_and_shortens_the_long() -> None:
    v = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 5.0), torch.zeros(1, 2, 2)])
    p = project(v, 1.0)
    assert torch.equal(p[0], v[0]) and p[1].norm() == pytest.approx(1) and torch.equal(p[2], v[2])


def test_the_universal_perturbation_reaches_theta_and_is_shortest_towards_the_backdoor() -> None:
    model = planted.model(1)
    v = universal_perturbations(Run.of(model, CLEAN), Walk(theta=0.6))
    for t in range(4):
        others = CLEAN[[s for s in range(4) if s != t]].flatten(0, 1)
        assert (model((others + v[t]).clamp(0, 1)).argmax(1) == t).float().mean() > 0.6
    norms = v.flatten(1).norm(dim=1)
    assert norms.argmin() == 1


def test_theta_says_how_far_the_walk_goes() -> None:
    """A larger share takes more images, so a longer v; and it is looked at before fifty of them."""
    runs = {theta: Run.of(planted.model(1), planted.images(20)) for theta in (0.1, 0.6, 0.95)}
    lengths = {
        theta: universal_perturbations(run, Walk(theta=theta)).flatten(1).norm(dim=1).sum()
        for theta, run in runs.items()
    }
    assert lengths[0.1] < lengths[0.6] < lengths[0.95]
    assert runs[0.1].cost.backward < runs[0.95].cost.backward


def test_the_text_and_the_code_measure_a_trigger_differently() -> None:
    mask, trigger = (USB(statistic=name).scan(planted.model(1), CLEAN) for name in ("mask", "trigger"))
    assert torch.equal(mask.mask, trigger.mask) and torch.equal(mask.pattern, trigger.pattern)
    assert torch.allclose(mask.norms, mask.mask.sum((1, 2)))
    assert torch.allclose(trigger.norms, (mask.mask[:, None] * mask.pattern).abs().sum((1, 2, 3)))
    assert mask.norm_name != trigger.norm_name


def test_a_ball_too_small_is_respected() -> None:
    v = universal_perturbations(Run.of(planted.model(1), CLEAN), Walk(radius=0.3, passes=1))
    assert v.flatten(1).norm(dim=1).max() <= 0.3 + 1e-5


def test_split_gives_back_v_where_it_is_positive() -> None:
    v = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).abs()
    mask, pattern = split(0.2 * v / v.max())
    assert mask.min() >= 0 and mask.max() == 1
    assert torch.allclose(mask[:, None] * pattern, 0.2 * v / v.max(), atol=1e-6)
    assert torch.equal(split(-v)[0], split(v)[0]), "the mask is of the size, whatever the sign"
    mask, pattern = split(torch.zeros(1, 1, 4, 4))
    assert mask.isfinite().all() and pattern.isfinite().all()


def test_raised_keeps_what_is_large_and_lets_the_rest_move() -> None:
    mask, pattern = torch.tensor([[[0.0, 0.5], [0.05, 1.0]]]), torch.rand(1, 3, 2, 2)
    m, u = raised(mask, pattern, 0.1)
    assert m.tolist() == torch.tensor([[[0.1, 0.5], [0.1, 1.0]]]).tolist()
    assert torch.equal(u[:, :, :, 1], pattern[:, :, :, 1]) and (u[:, :, :, 0] == 0.5).all()


def test_ssim_is_one_for_equal_images_symmetric_and_below_one_otherwise() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 3, 12, 12, generator=g), torch.rand(2, 3, 12, 12, generator=g)
    window = gaussian_window(7)
    assert window.sum() == pytest.approx(1)
    assert torch.allclose(ssim(x, x, window), torch.ones(2), atol=1e-5)
    assert torch.allclose(ssim(x, y, window), ssim(y, x, window))
    assert (ssim(x, y, window) < 0.5).all()


@pytest.mark.parametrize("settings", [{}, {"ssim_weight": 0.0}])
def test_a_planted_patch_is_found(settings: dict[str, float]) -> None:
    model = planted.model(1)
    scan = USB(**settings).scan(model, CLEAN)  # type: ignore[arg-type]
    assert scan.norms.argmin() == 1 and anomaly.judge(scan, "mad-or-quarter").targets == (1,)
    assert (scan.mask[1] * planted.corner()).sum() > 0.8 * scan.norms[1]
    stamped = scan.embed(CLEAN[[0, 2, 3]].flatten(0, 1), 1)
    assert (model(stamped).argmax(1) == 1).float().mean() >= 0.9
    assert scan.trajectory["uap"].shape == (1, 4, 1, 8, 8)


def test_only_the_floor_reaches_a_trigger_that_no_gradient_points_at() -> None:
    flatten, hidden, _, out = planted.model(1)
    model = nn.Sequential(flatten, hidden, nn.ReLU(), out)  # the corner's unit is silent on clean images
    scans = [USB(floor=floor).scan(model, CLEAN) for floor in (0.0, 0.5)]
    inside = [float((s.mask[1] * planted.corner()).sum() / s.norms[1]) for s in scans]
    assert inside[0] < 0.05 and inside[1] > 0.5
    assert [anomaly.judge(s, "mad-or-quarter").targets for s in scans] == [(), (1,)]


def test_without_the_masks_cost_the_mask_is_larger() -> None:
    with_cost, without = (USB(mask_weight=w).scan(planted.model(1), CLEAN) for w in (1.0, 0.0))
    assert without.norms[1] > 2 * with_cost.norms[1]


def test_a_uap_found_on_one_model_starts_another() -> None:
    first = USB().scan(planted.model(1), CLEAN)
    again = USB().scan(planted.model(1), CLEAN, uap=first.trajectory["uap"][0])
    assert torch.equal(
        again.trajectory["uap"], first.trajectory["uap"]
    )  # it reaches theta already: kept as it is
    assert again.cost.backward < first.cost.backward and again.norms.argmin() == 1
    with pytest.raises(ValueError, match="uap has shape"):
        USB().scan(planted.model(1), CLEAN, uap=torch.zeros(4, 3, 8, 8))


@pytest.mark.parametrize(
    "bad",
    [
        {"theta": 1.0},
        {"radius": 0},
        {"passes": 0},
        {"ssim_weight": -1},
        {"overshoot": -0.1},
        {"stall": 0},
        {"floor": 1.0},
    ],
)
def test_bad_settings_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        USB(**bad)  # type: ignore[arg-type]


def test_the_term_for_the_looks_rewards_likeness():
    step = masks.Step(
        images=CLEAN[None, 1:], stamped=CLEAN[None, 1:], labels=torch.tensor([[1, 2, 3]]), mask=torch.zeros(1, 8, 8),
        pattern=torch.zeros(1, 1, 8, 8), target=torch.tensor([0]), cost=torch.ones(1), log_posterior=planted.model(),
    )  # fmt: skip
    extra = USB(ssim_weight=2.0).likeness(CLEAN)
    same, other = extra(step), extra(dataclasses.replace(step, stamped=1 - step.images))
    assert same.item() == pytest.approx(-2, abs=1e-4) and other > same
