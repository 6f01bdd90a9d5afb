"""The RED family: the theorems of the paper, and a planted backdoor."""

import math
from dataclasses import replace

import planted
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.detectors import LRED, PRED, URED, Scan, SurrogateRED, named
from lib.detectors import lred_annealing as W
from lib.detectors.base import clip

shares = st.lists(st.integers(0, 8), min_size=2, max_size=9).map(
    lambda q: torch.tensor([q], dtype=torch.double) / 8
)
temperatures = st.floats(0.05, 5.0)


@given(shares, temperatures, st.integers(0, 2**31))
def test_closed_form_beats_every_other_point_of_the_simplex(q, t, seed):
    def objective(w):
        return float((w * q).sum() - t * torch.xlogy(w, w).sum())

    other = torch.rand(q.shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    other = -other.log() if seed % 2 else other  # exponentials: uniform on the simplex
    other = other / other.sum()
    best = W.closed_form(q, torch.tensor([t], dtype=torch.double))
    assert best.sum().item() == pytest.approx(1)
    assert objective(best) >= objective(other) - 1e-9


@given(shares)
def test_limits_of_the_temperature(q):
    assert torch.allclose(W.closed_form(q, torch.tensor([math.inf])), torch.full_like(q, 1 / q.shape[1]))
    hard = W.closed_form(q, torch.zeros(1))
    assert hard[q < q.max()].sum() == 0 and hard.sum().item() == pytest.approx(1)
    nearly = W.closed_form(q, torch.tensor([1e-4], dtype=torch.double))
    assert torch.allclose(nearly, hard.double(), atol=1e-6)


def test_temperature_is_minus_log_q_and_infinite_at_zero():
    assert torch.allclose(W.temperature(torch.tensor([1.0, 0.5])), torch.tensor([0.0, math.log(2)]))
    assert W.temperature(torch.zeros(1)).item() == math.inf


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_simplex_projection_is_the_nearest_point(x, other):
    n = min(len(x), len(other))
    point, raw = (
        torch.tensor([x[:n]], dtype=torch.double),
        torch.tensor([other[:n]], dtype=torch.double) + 1e-9,
    )
    found = W.simplex_projection(point)
    assert (found >= 0).all() and found.sum().item() == pytest.approx(1)
    assert (found - point).norm() <= (raw / raw.sum() - point).norm() + 1e-9


@pytest.mark.parametrize("bad", ["cold", "constant", "linear:1", "constant:-1", "geometric:a,b", "paper:3"])
def test_unknown_schedules_are_named(bad):
    with pytest.raises(ValueError, match="allowed are"):
        LRED(schedule=bad)


def test_schedules_are_what_they_say():
    q = torch.tensor([0.5])
    values = {
        "constant:0.3": 0.3,
        "hard": 0.0,
        "uniform": math.inf,
        "linear:2,10": 1.0,
        "geometric:2,0.5": 2 * 0.5**5,
    }
    assert {k: W.schedule(k)(q, 5).item() for k in values} == pytest.approx(values)


clean, model = planted.images(6), planted.model(target=1)
some = planted.model(target=1, sources=(0,))


def steps(detector, net=some, x=clean):
    return replace(detector, record_every=1).scan(net, x)


def test_lred_with_frozen_weights_is_ured_step_by_step():
    uniform, frozen = steps(URED(delta=0.05)), steps(LRED(delta=0.05, schedule="uniform"))
    for name in ("v", "q", "w", "Q", "norm"):
        assert torch.equal(uniform.trajectory[name].nan_to_num(-1), frozen.trajectory[name].nan_to_num(-1))


def test_two_classes_make_the_three_coincide():
    two = torch.nn.Sequential(model, _First(2))
    found = [steps(kind(delta=0.05), two, clean[:2]) for kind in (PRED, URED, LRED)]
    for other in found[1:]:
        assert torch.allclose(other.pattern, found[0].pattern) and torch.equal(
            other.weights, found[0].weights
        )


class _First(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, logits):
        return logits[:, : self.k]


@pytest.mark.parametrize(
    "detector", [PRED(delta=0.05), URED(delta=0.05), LRED(delta=0.05), SurrogateRED(delta=0.05, max_steps=60)]
)
def test_every_step_has_length_delta(detector):
    v = steps(detector).trajectory["v"]
    moved = (v[1:] - v[:-1]).flatten(2).norm(dim=2)
    assert torch.allclose(moved[~moved.isnan()], torch.tensor(0.05), atol=1e-5)


def test_norm_is_at_most_the_way_travelled():
    scan = steps(LRED(delta=0.1))
    travelled = torch.arange(len(scan.trajectory["norm"]))[:, None] * 0.1
    norm = scan.trajectory["norm"]
    assert (norm.nan_to_num(0) <= travelled + 1e-5).all()


def test_coarse_steps_lead_there_and_fine_ones_arrive():
    """The first that lands at Q = 0.3 or more is taken back but for a fine one; a problem has its own two lengths."""
    path, coarse = steps(LRED(stride=(0.1, 0.02))).trajectory, []
    for t in range(planted.K):
        v, q = (path[name][~path["Q"][:, t].isnan(), t] for name in ("v", "Q"))
        near, moved = int((q >= 0.3).nonzero()[0]), (v[1:] - v[:-1]).flatten(1).norm(dim=1)
        coarse.append(float(moved[0]))
        lengths = coarse[-1] * torch.tensor([1.0] * near + [0.8] + [0.2] * (len(moved) - near - 1))
        assert 0 < near < len(moved) - 1 and torch.allclose(moved, lengths, rtol=1e-3)
        norm = v.flatten(1).norm(dim=1)[near]
        assert (
            norm / 2.5 < 10 * moved[0] < norm * 2.5
        )  # a tenth of the rough norm, whose steps grow by a half
    assert len(set(coarse)) > 1


@pytest.mark.parametrize("factor", [0.02, 3.0])
def test_a_scan_has_no_unit_of_length(factor):
    """Images and patterns of another size: the same steps, and norms in proportion."""
    net, images = planted.model(target=1), planted.images(6) * 0.3
    want = LRED().scan(net, images)
    found = LRED().scan(torch.nn.Sequential(_Times(1 / factor), net), images * factor)
    assert found.cost.backward == want.cost.backward
    assert torch.allclose(found.norms / factor, want.norms, rtol=1e-3)


def test_old_weights_stop_the_search():
    path = steps(LRED(delta=0.05)).trajectory
    for t in range(planted.K):
        q, w, success = (path[name][:, t] for name in ("q", "w", "Q"))
        last = int((~success.isnan()).sum()) - 1
        assert success[last] >= 0.9 - 1e-6 and (success[:last] < 0.9).all()
        if last > 1:
            assert success[last].item() == pytest.approx(float((w[last - 1] * q[last]).sum()), abs=1e-6)


def test_planted_backdoor_is_found_and_its_source_named():
    everything, one = URED().scan(model, clean), LRED(delta=0.02).scan(some, clean)
    assert everything.norms.argmin() == 1 and one.norms.argmin() == 1
    assert one.weights[1].argmax() == 0
    assert everything.norms[1] < 0.8 * everything.norms[[0, 2, 3]].min()
    assert PRED().scan(some, clean).weights[1, 0] == 1


def test_clip_is_the_identity_on_the_valid_domain_its_bounds_included():
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1], requires_grad=True)
    (slope,) = torch.autograd.grad(clip(x).sum(), x)
    assert clip(x).tolist() == pytest.approx([0, 0, 0.5, 1, 1]) and slope.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("detector", [PRED(), URED(), LRED()], ids=lambda d: type(d).__name__)
def test_a_trigger_on_black_ground_is_found(detector):
    x = planted.images(8).masked_fill(planted.corner(), 0.0)  # no image has a gradient of torch.clamp there
    scan = detector.scan(planted.model(target=1), x)
    assert int(scan.norms.argmin()) == 1 and scan.pattern[1][0, planted.corner()].min() > 0.1


@pytest.mark.parametrize("sources", [9, 10, 11, 14, 19, 42])
def test_all_images_arriving_at_once_is_no_error(sources):
    w, q = torch.full((1, sources), 1 / sources), torch.ones(1, sources)  # float32: the sum may pass 1
    new, t = W.annealed(W.schedule("paper"))(w, q, -q, 1)
    assert 0 <= float(t) < 1e-6 and torch.allclose(new, w)


def test_recovered_pattern_does_what_the_scan_says():
    scan = LRED().scan(some, clean)
    for t in range(planted.K):
        share = (some(scan.embed(clean.flatten(0, 1), t)).argmax(1) == t).float().view(planted.K, -1).mean(1)
        assert float((share * scan.weights[t]).sum()) == pytest.approx(float(scan.success[t]), abs=1e-5)


def test_cost_counts_every_image():
    calls = []
    counted = torch.nn.Sequential(_Counting(calls), model)
    scan = LRED().scan(counted, clean)
    assert scan.cost.forward == sum(calls) and 0 < scan.cost.backward <= scan.cost.forward


class _Counting(torch.nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, x):
        self.calls.append(len(x))
        return x


def test_a_flat_model_ends_and_says_so():
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    torch.nn.init.zeros_(flat[1].weight)
    scan = LRED(max_steps=50).scan(flat, clean)
    assert not scan.converged.any() or not scan.norms[~scan.converged].any()


def test_the_budget_of_steps_is_kept_and_reported():
    scan = LRED(delta=1e-3, max_steps=3).scan(model, clean)
    assert not scan.converged.any() and (scan.norms <= 3e-3 + 1e-6).all()


def test_stop_ends_a_run():
    asked = iter([False] * 4)
    scan = URED(delta=1e-3, record_every=1).scan(model, clean, stop=lambda: next(asked, True))
    assert 1 <= len(scan.trajectory["Q"]) <= 4 and not scan.converged.any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: LRED(pi=1.5), "pi = 1.5"), (lambda: LRED(delta=0), "delta = 0"), (lambda: LRED(stride=(1, 2, 3)), "stride"), (lambda: LRED(delta=(0.06, 0.006)), "delta"),
        (lambda: LRED(max_steps=0), "max_steps = 0"), (lambda: named("x-red"), "allowed are p-red"),
        (lambda: named("l-red", stepp=1), "no setting 'stepp'"), (lambda: LRED().scan(model, clean[0]), "shape"),
        (lambda: LRED().scan(model, clean + 1), "values in"), (lambda: LRED().scan(_First(3), clean), "is needed"),
    ],
)  # fmt: skip
def test_bad_input_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


def test_nan_logits_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        LRED().scan(torch.nn.Sequential(model, _Times(float("nan"))), clean)


class _Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_the_model_comes_back_as_it_was():
    net = planted.model(target=1).train()
    asked = [p.requires_grad for p in net.parameters()]
    LRED().scan(net, clean)
    assert net.training and [p.requires_grad for p in net.parameters()] == asked


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 4))
def test_a_scan_survives_saving(every):
    import tempfile
    from pathlib import Path

    scan = LRED(record_every=every).scan(model, clean)
    with tempfile.TemporaryDirectory() as folder:
        scan.save(Path(folder) / "scan")
        back = Scan.load(Path(folder) / "scan")
    assert torch.equal(back.norms, scan.norms) and torch.equal(back.pattern, scan.pattern)
    assert back.cost == scan.cost and set(back.trajectory) == set(scan.trajectory)


def test_loading_something_else_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"not a scan")
    with pytest.raises(ValueError, match="not a saved scan"):
        Scan.load(tmp_path / "x")


@pytest.mark.gpu
def test_cpu_and_gpu_scans_agree():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    for detector in (PRED(), URED(), LRED()):
        a, b = detector.scan(model, clean), detector.scan(planted.model(target=1).cuda(), clean.cuda())
        assert torch.allclose(a.norms, b.norms, rtol=0.01) and a.norms.argmin() == b.norms.argmin()


@pytest.mark.parametrize("detector", [URED(stride=(1.0, 0.02)), LRED(stride=(1.0, 0.02))])
def test_a_coarse_step_never_ends_a_search(detector):
    """One that carries Q past pi at once is taken back like any other, and the last step is a fine one."""
    path = replace(detector, record_every=1).scan(planted.model(1), planted.images(6)).trajectory
    v, q = (path[name][~path["Q"][:, 1].isnan(), 1] for name in ("v", "Q"))
    moved = (v[1:] - v[:-1]).flatten(1).norm(dim=1)
    assert q[q >= 0.3][0] >= 0.9 and float(moved[-1]) == pytest.approx(0.02 * float(moved[0]), rel=1e-3)


@pytest.mark.parametrize("name", ["paper", "hard", "constant:0.3", "linear:2,10"])
def test_weights_are_uniform_again_where_nothing_arrives(name):
    """All weight on a class that is lost while another one arrives: the search must not stay there."""
    w, q = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    assert torch.allclose(W.annealed(W.schedule(name))(w, q, -q, 1)[0], torch.full((1, 3), 1 / 3))


def test_the_first_look_is_booked_stopped_and_bounded():
    first = LRED(max_steps=1).scan(model, clean).cost
    k, few, n = planted.K, 2, clean.shape[1]
    each = k * (k - 1)
    assert first.backward == each * few + each * n and first.forward == each * few + 2 * each * n
    asked = []
    LRED().scan(model, clean, stop=lambda: asked.append(1) or len(asked) > 1)
    assert len(asked) <= 3, "it is asked before every step of the first look, too"


def test_where_nothing_moves_the_first_look_ends():
    class Deaf(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([5.0, 0, 0, 0]).expand(len(x), 4) + 0 * x.sum((1, 2, 3))[:, None]

    scan = LRED(max_steps=50).scan(Deaf(), clean)
    assert scan.cost.backward <= 2 * 12 * (2 + 6) and not scan.reached[1:].any()
    black = torch.zeros_like(clean)
    assert LRED(max_steps=5).scan(model, black).norms.isfinite().all()


def test_images_that_are_there_already_do_not_make_the_steps_tiny():
    """One image of each class bears the trigger: whether it is among the few of the first look hardly matters."""
    trigger = URED(delta=0.02).scan(model, clean)
    marked = clean.clone()
    marked[:, 0] = trigger.embed(clean[:, 0], 1)
    ends = [URED().scan(model, images).cost.backward for images in (marked, marked.flip(1))]
    assert max(ends) < 3 * min(ends)


def test_a_fixed_step_is_one_search_by_one_name():
    assert LRED(delta=0.05, stride=(0.2, 0.1)) == LRED(delta=0.05)
    with pytest.raises(ValueError, match="stride"):
        LRED(stride=(0.02, 0.1))
