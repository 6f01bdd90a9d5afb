"""A scan cut into parts, on one thread or several, is the scan."""

import time
from dataclasses import replace

import planted
import pytest
import torch

from lib.detectors import LRED, PRED, URED, USB, MaskedLRED, NeuralCleanse, TaborStyle
from lib.detectors.masks import random_start
from lib.models.ask import BATCH

pytestmark = pytest.mark.long

clean, model = planted.images(6), planted.model(target=1)
quick = dict(max_rounds=12)
DETECTORS = (
    PRED(delta=0.05), URED(), LRED(record_every=3), NeuralCleanse(record_every=2, **quick), NeuralCleanse(mode="pairs", **quick),
    NeuralCleanse(mode="pooled", **quick), NeuralCleanse(mode="halving", **quick), TaborStyle(**quick), USB(**quick), MaskedLRED(**quick),
)  # fmt: skip


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: f"{type(d).__name__}{getattr(d, 'mode', '')}")
def test_as_many_threads_as_one_likes(detector, threads):
    scans, states = [], []
    for count in (1, 2, 7):
        threads(count)
        generator = torch.Generator().manual_seed(3)
        scans.append(detector.scan(model, clean, generator=generator))
        states.append(generator.get_state())
        assert torch.get_num_threads() == count
    for scan, state in zip(scans[1:], states[1:], strict=True):
        assert torch.allclose(scan.norms, scans[0].norms, rtol=1e-4)
        assert torch.equal(scan.reached, scans[0].reached) and torch.equal(state, states[0])
        assert replace(scan.cost, seconds=0) == replace(scans[0].cost, seconds=0)
        assert scan.trajectory.keys() == scans[0].trajectory.keys()
        for name, path in scan.trajectory.items():
            assert torch.allclose(path, scans[0].trajectory[name], rtol=1e-3, atol=1e-4, equal_nan=True), name


@pytest.mark.parametrize("how", [NeuralCleanse(stall=4), NeuralCleanse(mode="pairs", stall=4)])
def test_all_parts_draw_the_same_batches_and_the_generator_goes_on_from_the_longest(how, threads):
    """With more images than a batch holds, each round draws anew; problems end at different rounds."""
    many, found = planted.images(30), []
    for count in (1, 2, 5):
        threads(count)
        generator = torch.Generator().manual_seed(3)
        scan = how.scan(model, many, generator=generator)
        found.append((scan.norms, generator.get_state()))
    begun = torch.Generator().manual_seed(3)
    random_start(many.shape[2:], begun)
    assert not torch.equal(found[0][1], begun.get_state())
    for norms, state in found[1:]:
        assert torch.allclose(norms, found[0][0], rtol=1e-4) and torch.equal(state, found[0][1])


class Remembers(torch.nn.Module):
    """Keeps what it has computed on itself between two layers, as some networks do."""

    def __init__(self):
        super().__init__()
        self.inner = planted.model(target=1)

    def forward(self, x):
        self.kept = self.inner(x)
        time.sleep(0.003)  # time for another thread to come by
        return self.kept + 0.0


def test_a_model_that_keeps_something_is_no_trouble(threads):
    norms = []
    for count in (1, 4):
        threads(count)
        norms.append(NeuralCleanse(max_rounds=4).scan(Remembers(), clean).norms)
    assert torch.allclose(*norms, rtol=1e-4)


@pytest.mark.parametrize("detector", [PRED(delta=0.1), URED(), NeuralCleanse(mode="pairs", max_rounds=3)])
def test_no_step_holds_more_images_than_the_bound(detector, threads):
    """Neither do more classes or pairs make a step larger; a single problem is never cut."""
    many, sizes = planted.images(60), []
    spy = torch.nn.Sequential(model)
    spy.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    threads(1)
    detector.scan(spy, many)
    assert BATCH / 3 < max(sizes) <= BATCH


def test_a_part_that_fails_ends_the_others(threads):
    threads(2)
    asked = []

    def schedule(success, step):
        asked.append(step)
        if len(asked) == 5:
            raise ArithmeticError("no temperature today")
        return torch.ones_like(success)

    with pytest.raises(ArithmeticError, match="today"):
        LRED(schedule=schedule, delta=1e-5).scan(model, clean)
    assert torch.get_num_threads() == 2 and len(asked) < 50


@pytest.mark.parametrize("count", [1, 3])
def test_stop_ends_all_parts(count, threads):
    threads(count)
    """A part that has not begun by then has a path of no length; one True is enough."""
    asked = iter([False] * 10 + [True])
    scan = URED(delta=1e-5, record_every=1).scan(model, planted.images(60), stop=lambda: next(asked, False))
    assert not scan.converged.any() and not scan.reached.any() and scan.norms.max() <= 11e-5
    path = scan.trajectory["v"]
    assert path.shape[1] == planted.K and len(path) <= 11
    assert [int((~p.isnan().flatten(1).any(1)).sum()) > 0 for p in path.unbind(1)].count(True) >= 1
