"""Mask-and-pattern estimation, Neural Cleanse and the TABOR-style terms: theorems, invariants, planted
truths.
"""

import dataclasses
import math

import planted
import pytest
import torch
from torch import nn

from lib import anomaly, detectors
from lib.detectors import masks, neural_cleanse
from lib.detectors.base import Run
from lib.detectors.descent import Descent, State, inverse_unit, unit
from lib.detectors.neural_cleanse import LowCost, NeuralCleanse
from lib.detectors.scan import Problems
from lib.detectors.tabor import TaborStyle, roughness

pytestmark = pytest.mark.long

CLEAN = planted.images(6)
QUICK = NeuralCleanse(max_rounds=100)


class Relabelled(nn.Module):
    """A model whose class i is `order[i]` of another."""

    def __init__(self, model: nn.Module, order: torch.Tensor) -> None:
        super().__init__()
        self.model, self.order = model, order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)[:, self.order]


def centre(mask: torch.Tensor) -> list[float]:
    rows, cols = mask.sum(1), mask.sum(0)
    place = torch.arange(len(mask), dtype=mask.dtype)
    return [float((rows * place).sum() / rows.sum()), float((cols * place).sum() / cols.sum())]


@pytest.fixture(scope="module")
def scans() -> dict[str, detectors.Scan]:
    attacked, partial = planted.model(1), planted.model(1, [3])
    return {
        "nc": QUICK.scan(attacked, CLEAN),
        "tabor": TaborStyle(max_rounds=100).scan(attacked, CLEAN),
        "clean": QUICK.scan(planted.model(None), CLEAN),
        "partial": QUICK.scan(partial, CLEAN),
        "pairs": dataclasses.replace(QUICK, mode="pairs").scan(partial, CLEAN),
        "halving": dataclasses.replace(QUICK, mode="halving").scan(partial, CLEAN),
    }


@pytest.mark.parametrize("name", ["nc", "tabor"])
def test_a_planted_patch_is_found_where_it_is(scans: dict[str, detectors.Scan], name: str) -> None:
    scan = scans[name]
    assert scan.norms.argmin() == 1 and scan.norms[1] <= 4 and scan.norms[1] < 0.25 * scan.norms.median()
    assert all(abs(c - 6.5) < 0.6 for c in centre(scan.mask[1]))
    assert anomaly.judge(scan, "mad-or-quarter").targets == (1,)


def test_a_model_without_a_backdoor_has_no_small_mask(scans: dict[str, detectors.Scan]) -> None:
    norms = scans["clean"].norms
    assert norms.min() > 0.8 * norms.median()


def test_one_source_is_missed_by_all_and_found_by_pairs_and_halving(scans: dict[str, detectors.Scan]) -> None:
    assert scans["partial"].norms[1] > 0.8 * scans["partial"].norms.median()
    pairs = scans["pairs"].pair_norms
    assert pairs.shape == (4, 4) and torch.isnan(pairs.diagonal()).all()
    assert pairs.nan_to_num(torch.inf).argmin() == 3 * 4 + 1  # source 3, target 1
    for mode in ("pairs", "halving"):
        assert scans[mode].norms.argmin() == 1 and scans[mode].weights[1].argmax() == 3


def test_what_a_scan_says_of_its_triggers_is_true(scans: dict[str, detectors.Scan]) -> None:
    model, scan = planted.model(1), scans["nc"]
    assert scan.converged.all() and scan.mask.min() >= 0 and scan.mask.max() <= 1
    assert torch.allclose(scan.norms, scan.mask.sum((1, 2)))  # of the 2-D mask, whatever the channels
    for t in range(4):
        others = CLEAN[[s for s in range(4) if s != t]].flatten(0, 1)
        share = (model(scan.embed(others, t)).argmax(1) == t).float().mean()
        assert share == pytest.approx(float(scan.success[t])) and share >= QUICK.pi - 0.06


def test_the_ledger_counts_every_image_once() -> None:
    asked = [0]

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked[0] += len(x)
            return inner(x)

    inner = planted.model(1)
    scan = TaborStyle(max_rounds=4, blocking=0.1).scan(Counting(), CLEAN)
    assert scan.cost.forward == asked[0] and 0 < scan.cost.backward < asked[0] and scan.cost.queries == 0


def test_the_numbering_of_the_classes_does_not_matter() -> None:
    order = torch.tensor([2, 0, 3, 1])
    a = dataclasses.replace(QUICK, max_rounds=15, batch=6).scan(planted.model(1), CLEAN)
    b = dataclasses.replace(QUICK, max_rounds=15, batch=6).scan(
        Relabelled(planted.model(1), order), CLEAN[order]
    )
    assert torch.allclose(a.norms[order], b.norms, rtol=1e-3)


def test_a_problem_does_not_notice_the_others() -> None:
    """Cost, Adam state and retirement are each problem's own: a class alone gives what it gives among all."""
    model, how = planted.model(1), dataclasses.replace(QUICK, max_rounds=60, stall=5)
    everything = Problems.all_to_one(4)
    together = masks.estimate_masks(Run.of(model, CLEAN), everything, how)
    for t in range(4):
        one = Problems(everything.target[t : t + 1], everything.sources[t : t + 1])
        alone = masks.estimate_masks(Run.of(model, CLEAN), one, how)
        assert torch.allclose(alone.norms[0], together.norms[t], rtol=1e-3)
        assert alone.steps[0] == together.steps[t]
    assert together.steps.min() < together.steps.max()  # some retired before others


def shrinking(how: Descent, factor: float, rounds: int) -> State:
    """The state after rounds that all succeed, with masks that lose a share of their norm each time."""
    start = torch.full((10, 10), 0.9), torch.full((1, 10, 10), 0.5)
    state = State(how, start, 1, 3, torch.device("cpu"))
    state.rose, state.fell = torch.ones(2, 1, dtype=torch.bool)
    for turn in range(rounds):
        mask = torch.full((1, 10, 10), 0.9 * factor**turn)
        state.seen = [inverse_unit(mask), state.theta[1]]
        state.look(torch.ones(1))
        if state.retire(turn + 1, last=False):
            break
    return state


@pytest.mark.parametrize("keep_last", [False, True])
def test_a_mask_that_shrinks_slowly_is_not_stalled(keep_last: bool) -> None:
    """Half a percent a round is 1 % every other round; a mask that stays as it is retires after `stall` rounds."""
    how = NeuralCleanse(stall=5, keep_last=keep_last)
    assert len(shrinking(how, 0.995, 60).index) == 1
    still = shrinking(how, 1.0, 60)
    assert not len(still.index) and still.rounds.tolist() == [6] and still.converged.tolist() == [True]
    strict = dataclasses.replace(how, threshold=0.5)
    assert shrinking(strict, 0.995, 60).rounds.tolist() == [6], "half of it is asked for"
    any_ = dataclasses.replace(how, threshold=1.0)
    assert len(shrinking(any_, 0.9999, 60).index) == 1


def test_the_released_codes_batches_are_of_its_size() -> None:
    asked: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            return inner(x)

    inner, how = planted.model(1), dataclasses.replace(neural_cleanse.PRESETS["nc-released"], max_rounds=1)
    clean = planted.images(20)
    scan = how.scan(Counting(), clean)
    assert set(asked[: how.round_steps]) == {32 * 4}, "four targets, 32 images each"
    assert scan.weights is not None and torch.allclose(scan.weights.sum(1), torch.ones(4))
    both = [dataclasses.replace(QUICK, mode=mode, batch=60).scan(inner, clean) for mode in ("all", "pooled")]
    assert torch.allclose(both[0].norms, both[1].norms, rtol=0.05), (
        "all images each time: the order alone differs"
    )
    with pytest.raises(ValueError, match="forgets whose class"):
        TaborStyle(mode="pooled", blocking=0.1)


def test_the_cost_goes_up_and_down_and_starts_anew() -> None:
    how = dataclasses.replace(QUICK, record_every=5, cost_waits=True)
    t = how.scan(planted.model(1), CLEAN).trajectory
    cost, success = t["cost"], t["Q"]
    assert (cost[0] == 0).all()
    ratio = (cost[1:] / cost[:-1])[(cost[:-1] > 0) & ~cost[1:].isnan()]
    for r in ratio.unique():
        assert min(abs(float(r) - x) for x in (1.0, 2.0, 2**-1.5)) < 1e-4
    assert (ratio > 1).any() and (ratio < 1).any()
    assert ((success >= 0) & (success <= 1) | success.isnan()).all()
    assert t["mask"].shape[1:] == (4, 8, 8)


def test_frozen_weights_on_one_class_are_the_pair_problem() -> None:
    model, how = planted.model(1, [3]), dataclasses.replace(QUICK, max_rounds=30)
    start = masks.random_start(CLEAN.shape[2:], torch.Generator().manual_seed(1))
    full, pair = Problems.all_to_one(4), Problems(torch.tensor([1]), torch.tensor([[3]]))
    one = Problems(full.target[1:2], full.sources[1:2])
    weights = (one.sources == 3).float()
    a = masks.estimate_masks(Run.of(model, CLEAN), one, how, start=start, weights=weights)
    b = masks.estimate_masks(Run.of(model, CLEAN), pair, how, start=start)
    assert torch.allclose(a.norms, b.norms, rtol=1e-3)


def test_unit_and_its_inverse() -> None:
    x = torch.linspace(0.001, 0.999, 50, dtype=torch.double)
    assert torch.allclose(unit(inverse_unit(x)), x)
    assert inverse_unit(torch.tensor([0.0, 1.0])).isfinite().all()


def test_tabor_terms_switched_off_are_neural_cleanse() -> None:
    off = TaborStyle(
        max_rounds=10, elastic=0, outside=0, scattered=0, scattered_outside=0, blocking=0, overlaying=0
    )
    a, b = off.scan(planted.model(1), CLEAN), NeuralCleanse(max_rounds=10).scan(planted.model(1), CLEAN)
    assert torch.equal(a.norms, b.norms)


@pytest.mark.parametrize(
    "term", ["elastic", "outside", "scattered", "scattered_outside", "blocking", "overlaying"]
)
def test_every_tabor_term_does_something(term: str) -> None:
    none = dict.fromkeys(
        ["elastic", "outside", "scattered", "scattered_outside", "blocking", "overlaying"], 0.0
    )
    base = NeuralCleanse(max_rounds=5).scan(planted.model(1), CLEAN)
    one = TaborStyle(max_rounds=5, **none | {term: 5.0}).scan(planted.model(1), CLEAN)
    assert not torch.equal(base.mask, one.mask) or not torch.equal(base.pattern, one.pattern)


def test_tabor_terms_by_hand() -> None:
    """Two pixels, mask (1/4, 0) over pattern (1/2, 1): outside the mask lies (3/8, 1). The model is never sure."""
    step = masks.Step(
        images=torch.ones(1, 1, 1, 1, 1, 2),
        stamped=torch.ones(1, 1, 1, 1, 1, 2),
        labels=torch.tensor([[0]]),
        mask=torch.tensor([[[0.25, 0.0]]]),
        pattern=torch.tensor([[[[0.5, 1.0]]]]),
        target=torch.tensor([1]),
        cost=torch.tensor([2.0]),
        log_posterior=lambda x: torch.tensor([[0.25, 0.75]]).log().expand(len(x), 2),
    )
    outside = 0.375 + 1 + 0.375**2 + 1
    hand = {"elastic": 2 * 0.25**2, "outside": 2 * outside, "scattered": 2 * 0.25**2}
    hand |= {"scattered_outside": 2 * 0.625**2, "blocking": -math.log(0.25), "overlaying": -math.log(0.75)}
    for term, value in hand.items():
        only = dict.fromkeys(hand, 0.0) | {term: 1.0}
        assert TaborStyle(**only).terms(step).item() == pytest.approx(value)


def test_roughness_is_the_sum_of_squared_neighbour_differences() -> None:
    x = torch.tensor([[[[0.0, 1.0], [3.0, 1.0]]]])
    assert roughness(x).item() == 9 + 0 + 1 + 4


def test_low_cost_scans_few_labels_and_judges_those() -> None:
    scheme = LowCost(max_rounds=100, top=2, overlap=1, steady=3, others=1)
    scan = scheme.scan(planted.model(1), CLEAN)
    assert torch.isnan(scan.norms).sum() == 1 and not torch.isnan(scan.norms[1])
    verdict = anomaly.judge(scan, "mad-or-quarter")
    assert verdict.suspect == 1 and verdict.targets == (1,)


def test_two_classes_and_a_failure_to_converge_are_marked() -> None:
    two = CLEAN[:2]
    model = Relabelled(planted.model(1), torch.tensor([0, 1]))
    for mode in neural_cleanse.MODES:
        scan = NeuralCleanse(max_rounds=3, mode=mode).scan(model, two)
        assert scan.norms.shape == (2,) and scan.norms.isfinite().all()

    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([9.0, 0.0, 0.0, 0.0]) + 0 * x.sum((1, 2, 3))[:, None]

    scan = NeuralCleanse(max_rounds=3).scan(Stubborn(), CLEAN)
    assert (
        not scan.converged.any()
        and scan.reached.tolist() == [True, False, False, False]
        and scan.success[1:].max() == 0
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"pi": 0},
        {"pi": 1.1},
        {"lr": 0},
        {"betas": (0.5, 1.0)},
        {"batch": 0},
        {"cost_up": 0.5},
        {"stall": 0},
        {"mode": "some"},
        {"max_rounds": 0},
    ],
)
def test_bad_settings_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        NeuralCleanse(**bad)  # type: ignore[arg-type]


def test_a_bad_low_cost_scheme_and_bad_images_are_errors() -> None:
    with pytest.raises(ValueError, match="overlap"):
        LowCost(top=5, overlap=5)
    with pytest.raises(ValueError, match="mode"):
        LowCost(mode="pairs")
    with pytest.raises(ValueError, match="clean images"):
        QUICK.scan(planted.model(1), CLEAN + 1)
    with pytest.raises(ValueError, match="outside"):
        TaborStyle(outside=-1)


def test_presets_are_built_by_name_and_can_be_changed() -> None:
    for name, preset in detectors.PRESETS.items():
        assert detectors.named(name) == preset
    released = detectors.named("nc-released", max_rounds=7)
    assert isinstance(released, Descent) and (released.batch, released.patience, released.max_rounds) == (
        32,
        5,
        7,
    )
    with pytest.raises(ValueError, match="no setting 'colour'"):
        detectors.named("nc-released", colour=1)


def test_a_scan_is_the_same_under_the_same_seed_and_survives_the_disk(tmp_path, scans) -> None:  # type: ignore[no-untyped-def]
    again = QUICK.scan(planted.model(1), CLEAN)
    assert torch.equal(again.mask, scans["nc"].mask)
    other = QUICK.scan(planted.model(1), CLEAN, generator=torch.Generator().manual_seed(9))
    assert not torch.equal(other.mask, again.mask) and other.norms.argmin() == 1
    again.save(tmp_path / "scan.safetensors")
    assert torch.equal(detectors.Scan.load(tmp_path / "scan.safetensors").norms, again.norms)


@pytest.mark.parametrize("betas", [(0.5, 0.9), (0.9, 0.999)])
def test_the_descents_step_is_adams(betas):
    how = NeuralCleanse(betas=betas, lr=0.05)
    start = masks.random_start(torch.Size((1, 8, 8)), torch.Generator().manual_seed(0))
    state = State(how, start, 2, 3, torch.device("cpu"))
    theirs = [t.clone().requires_grad_() for t in state.theta]
    adam = torch.optim.Adam(theirs, lr=0.05, betas=betas)

    def loss(mask, pattern):
        return (mask - 0.3).square().sum() + (pattern * torch.linspace(-1, 2, 64).view(8, 8)).sum()

    for _ in range(5):
        state.step(loss(*state.parameters()))
        adam.zero_grad()
        loss(*map(unit, theirs)).backward()
        adam.step()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(state.theta, theirs))


def test_batches_are_whole_and_pass_by_pass_without_repetition():
    found = masks._batches(7, 3, torch.Generator().manual_seed(0))
    drawn = [next(found) for _ in range(8)]
    assert all(len(part) == 3 for part in drawn)
    assert all(len(set(torch.cat(drawn[i : i + 2]).tolist())) == 6 for i in range(0, 8, 2))


def test_blocking_shows_what_the_mask_leaves_and_overlaying_what_it_shows():
    shown = []
    step = masks.Step(
        images=torch.ones(1, 1, 1, 1, 1, 2), stamped=torch.ones(1, 1, 1, 1, 1, 2), labels=torch.tensor([[0]]),
        mask=torch.tensor([[[0.25, 0.0]]]), pattern=torch.tensor([[[[0.5, 1.0]]]]), target=torch.tensor([1]),
        cost=torch.tensor([2.0]), log_posterior=lambda x: shown.append(x) or torch.zeros(len(x), 2),
    )  # fmt: skip
    TaborStyle(blocking=1.0, overlaying=1.0).terms(step)
    assert [x.flatten().tolist() for x in shown] == [[0.75, 1.0], [0.125, 0.0]]
