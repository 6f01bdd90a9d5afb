"""B3D: unbiased estimates, a budget that holds, answers that are checked, and planted backdoors found by
queries alone.
"""

from itertools import product

import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.detectors.b3d import B3D, harden, mask_gradient, norms_at, pattern_gradient
from lib.detectors.b3d_ss import B3DSS
from lib.detectors.descent import State, unit
from lib.models import Queries, QueryBudgetError, of_module, of_onnx

pytestmark = pytest.mark.long

CLEAN = planted.images(12)
SMALL = B3D(samples=10, batch=6, round_steps=2, check=12, budget=20_000)


class Served:
    """A served model: probabilities alone, and its own count of what it was asked."""

    def __init__(self, model=None):
        self.ask, self.count, self.calls = of_module(model or planted.model()), 0, []

    def __call__(self, images):
        assert not images.requires_grad
        self.count += len(images)
        self.calls.append(len(images))
        return self.ask(images)


def every_mask(d):
    return torch.tensor(list(product([0.0, 1.0], repeat=d)), dtype=torch.float64).view(-1, 1, d)


@pytest.mark.parametrize("baseline", [False, True])
def test_the_mask_estimate_of_a_linear_loss_is_2_a_g_one_minus_g_on_average(baseline):
    # The expectation over two samples is summed out exactly: every pair of masks with its probability.
    g = torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64)
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    masks = every_mask(3)
    p = torch.where(masks > 0, g, 1 - g).prod(2)[:, 0]
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    pairs = torch.stack([masks[i.flatten()], masks[j.flatten()]], 1)  # (64, 2, 1, 3)
    losses = 7 + (pairs[:, :, 0] * a).sum(2)
    estimates = mask_gradient(losses, pairs, g.expand(64, 1, 3), baseline=baseline)
    mean = (estimates * (p[i] * p[j]).flatten()[:, None, None]).sum(0)
    torch.testing.assert_close(mean[0], 2 * a * g[0] * (1 - g[0]))


@pytest.mark.parametrize("baseline", [False, True])
def test_the_pattern_estimate_of_a_linear_loss_is_its_slope_on_average(baseline):
    # Signs have the mean and the variance of the normal noise; for a linear loss no other moment matters.
    a, sigma = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), 0.1
    signs = 2 * every_mask(3)[:, 0] - 1
    noise = torch.stack([signs.repeat_interleave(8, 0), signs.repeat(8, 1)], 1).view(64, 2, 1, 1, 3)
    losses = 5 + (sigma * noise[:, :, 0, 0] * a).sum(2)
    mean = pattern_gradient(losses, noise, sigma, baseline=baseline).mean(0)
    torch.testing.assert_close(mean.flatten(), a)


def test_the_baseline_takes_away_most_of_the_variance_of_an_offset_loss():
    generator = torch.Generator().manual_seed(0)
    g = torch.full((400, 4, 4), 0.3)
    masks = (torch.rand(400, 20, 4, 4, generator=generator) < 0.3).float()
    losses = 10 + masks[:, :, 0].sum(2)
    without, within = (mask_gradient(losses, masks, g, baseline=b).var(0).sum() for b in (False, True))
    assert within < without / 20


def test_a_pixel_that_no_sample_tells_apart_is_left_alone():
    losses = torch.rand(1, 10, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, 10, 2, 2).index_fill(1, torch.arange(3), 1.0)
    masks[..., 0] = 0
    gradient = mask_gradient(losses, masks, torch.full((1, 2, 2), 0.3))
    assert (gradient[..., 0] == 0).all() and (gradient[..., 1] != 0).all()


def test_the_closed_form_penalty_is_the_mean_of_the_sampled_one():
    g = torch.full((1, 2, 2), 0.3)
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(1, 40_000, 2, 2, generator=generator) < 0.3).float()
    sampled = mask_gradient(masks.sum((2, 3)), masks, g)
    torch.testing.assert_close(sampled, 2 * g * (1 - g), atol=0.02, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    budget=st.integers(1, 1500),
    samples=st.integers(2, 8),
    batch=st.integers(1, 10),
    round_steps=st.integers(1, 3),
    check=st.integers(1, 40),
)
def test_the_budget_is_never_exceeded_and_the_ledger_is_the_truth(budget, samples, batch, round_steps, check):
    served = Served()
    detector = B3D(budget=budget, samples=samples, batch=batch, round_steps=round_steps, check=check)
    try:
        scan = detector.scan(served, CLEAN[:, :4])
    except ValueError as e:
        assert "budget" in str(e) and served.count == 0
        return
    assert served.count == scan.cost.queries <= budget
    assert scan.cost.forward == scan.cost.backward == 0
    assert not scan.converged.any() or scan.cost.queries < budget


def test_a_network_and_its_served_probabilities_give_the_same_scan_in_batches_of_any_size():
    model = planted.model()
    a, b = SMALL.scan(model, CLEAN), B3D(**{**vars(SMALL), "query_batch": 7}).scan(Served(model), CLEAN)
    torch.testing.assert_close(a.mask, b.mask)
    assert a.cost.queries == b.cost.queries


def test_calls_are_batched():
    served = Served()
    scan = B3D(**{**vars(SMALL), "query_batch": 300}).scan(served, CLEAN)
    assert max(served.calls) == 300 and len(served.calls) < scan.cost.queries / 100


@pytest.mark.parametrize("settings_", [{}, {"baseline": False, "exact_penalty": False}, {"mask": "discrete"}])
def test_the_planted_backdoor_is_found_in_its_corner(settings_):
    scan = B3D(budget=600_000, samples=30, lr=0.1, stall=10, **settings_).scan(Served(), CLEAN)
    assert int(scan.norms.argmin()) == 1 and scan.norms[1] < scan.norms.median() / 2
    assert (scan.mask[1] * planted.corner()).sum() > 0.5 * scan.mask[1].sum()
    assert scan.success[1] > 0.9


def test_the_discrete_mask_holds_zeros_and_ones_and_is_never_empty():
    scan = B3D(**{**vars(SMALL), "mask": "discrete"}).scan(planted.model(), CLEAN)
    assert set(scan.mask.unique().tolist()) <= {0.0, 1.0} and (scan.norms >= 1).all()
    faint = torch.full((1, 3, 3), 0.1).index_put(
        (torch.tensor(0), torch.tensor(1), torch.tensor(2)), torch.tensor(0.2)
    )
    assert harden(faint).sum() == 1 and harden(faint)[0, 1, 2] == 1


def test_renumbering_the_classes_renumbers_the_result():
    order = [2, 0, 3, 1]

    def renumbered(images):
        return of_module(planted.model())(images)[:, order]

    plain, moved = SMALL.scan(Served(), CLEAN), SMALL.scan(renumbered, CLEAN[order])
    torch.testing.assert_close(moved.mask, plain.mask[order], atol=1e-4, rtol=1e-3)


def test_a_retired_class_is_asked_about_no_more():
    scan = B3D(samples=20, lr=0.2, stall=3, max_rounds=400, record_every=1, budget=None).scan(Served(), CLEAN)
    running = (~scan.trajectory["norm"].isnan()).sum(1)
    assert scan.converged.all() and running[0] == 4 and (running.diff() <= 0).all()


def test_the_trajectory_says_what_a_smaller_budget_would_have_found():
    long = B3D(**{**vars(SMALL), "record_every": 1}).scan(Served(), CLEAN)
    short = B3D(**{**vars(SMALL), "record_every": 1, "budget": 10_000}).scan(Served(), CLEAN)
    n = len(short.trajectory["best"])
    torch.testing.assert_close(short.trajectory["norm"], long.trajectory["norm"][:n])
    torch.testing.assert_close(norms_at(long, 10_000 - 4 * 12), short.norms)
    with pytest.raises(ValueError, match="first round"):
        norms_at(long, 1)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda x: torch.ones(len(x), 4), "not logits"),
        (lambda x: torch.full((len(x), 4), float("nan")), "probabilities"),
        (lambda x: torch.ones(len(x), 3) / 3, r"\(N, K\)"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(answer, complaint):
    with pytest.raises(ValueError, match=complaint):
        SMALL.scan(answer, CLEAN)


def test_a_request_beyond_the_budget_is_refused_before_it_is_asked():
    served = Served()
    ask = Queries(served, 4, budget=10)
    ask(CLEAN[0, :8])
    with pytest.raises(QueryBudgetError, match="3 queries are wanted, 2 of 10"):
        ask(CLEAN[0, :3])
    assert served.count == ask.cost.queries == 8


@pytest.mark.parametrize(
    "bad", [{"samples": 1}, {"sigma": 0}, {"start": 1.0}, {"mask": "hard"}, {"check": 0}, {"lr": -1.0}]
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        B3D(**bad)


def test_b3d_ss_needs_no_pixel_and_finds_the_planted_backdoor():
    served = Served()
    detector = B3DSS(budget=800_000, image_budget=100_000, images=6, samples=30, lr=0.1, stall=10)
    scan = detector.scan(served, torch.empty(4, 0, 1, 8, 8))
    assert served.count == scan.cost.queries <= 800_000
    assert int(scan.norms.argmin()) == 1 and scan.norms[1] < scan.norms.median() / 2


def test_synthetic_images_are_given_their_class_and_stay_in_range():
    detector = B3DSS(images=6, image_budget=100_000)
    ask = Queries(Served(), 4, budget=100_000)
    made = detector.synthesise(ask, (1, 8, 8), torch.Generator().manual_seed(0))
    assert made.images.shape == (4, 6, 1, 8, 8) and made.images.min() >= 0 and made.images.max() <= 1
    given_ = planted.model()(made.images.flatten(0, 1)).argmax(1).view(4, 6)
    assert made.reached.any(1).all() and (given_ == torch.arange(4)[:, None]).all()
    assert ask.cost.queries <= 100_000


def test_synthetic_images_keep_to_their_share_of_the_budget():
    detector = B3DSS(images=6, image_budget=150, image_samples=5)
    ask = Queries(Served(), 4)
    with pytest.warns(UserWarning, match="no synthetic image was given class"):
        detector.synthesise(ask, (1, 8, 8), torch.Generator().manual_seed(0))
    assert ask.cost.queries <= 150


def onnx_file(path, batch, softmax):
    onnx = pytest.importorskip("onnx", reason="the extra `blackbox` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `blackbox` is not installed")
    from onnx import TensorProto, helper, numpy_helper

    weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).numpy()
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["z"])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z"], ["p"], axis=1))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("p" if softmax else "z", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return torch.from_numpy(weight)


@pytest.mark.parametrize("batch", ["N", 5])
@pytest.mark.parametrize("softmax", [False, True])
def test_an_onnx_model_answers_as_the_network_it_is(tmp_path, batch, softmax):
    weight = onnx_file(tmp_path / "m.onnx", batch, softmax)
    images = CLEAN.flatten(0, 1)[:12]
    answer = of_onnx(tmp_path / "m.onnx", logits=not softmax, threads=1)(images)
    torch.testing.assert_close(answer, torch.softmax(images.flatten(1) @ weight, 1))


def test_an_onnx_model_that_gives_probabilities_is_not_flattened_unnoticed(tmp_path):
    onnx_file(tmp_path / "m.onnx", "N", True)
    with pytest.raises(ValueError, match="logits=False"):
        of_onnx(tmp_path / "m.onnx")(CLEAN[0])
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.onnx"):
        of_onnx(tmp_path / "bad.onnx")


@pytest.mark.parametrize("exact", [True, False])
def test_the_penalty_of_b3d_has_the_slope_of_lambda_times_the_expected_norm(exact):
    """A model that always says the same leaves nothing but the penalty."""
    how = B3D(
        samples=4000 if not exact else 10,
        batch=3,
        cost_waits=False,
        cost_start=0.5,
        exact_penalty=exact,
        start=0.3,
    )
    start = torch.full((2, 2), 0.3), torch.full((1, 2, 2), 0.5)
    state, slopes = State(how, start, 1, 3, torch.device("cpu")), []
    state.step = lambda loss: slopes.extend(torch.autograd.grad(loss, state.theta))
    ask = lambda x: torch.full((len(x), 4), 0.25)  # noqa: E731
    how._step(ask, state, torch.rand(1, 3, 1, 2, 2), torch.tensor([1]), torch.Generator().manual_seed(0))
    theta = state.theta[0].detach().requires_grad_()
    (wanted,) = torch.autograd.grad(0.5 * unit(theta).sum(), theta)
    torch.testing.assert_close(slopes[0], wanted, atol=1e-5 if exact else 0.02, rtol=0)
