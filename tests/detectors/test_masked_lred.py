"""L-RED for perceptible triggers: it is Neural Cleanse when its weights are frozen, and finds planted source
classes when not.
"""

import planted
import pytest
import torch

from lib.detectors.lred_annealing import temperature
from lib.detectors.masked_lred import MaskedLRED
from lib.detectors.neural_cleanse import NeuralCleanse

pytestmark = pytest.mark.long

CLEAN = planted.images(12)


def test_at_infinite_temperature_it_is_neural_cleanse_with_uniform_weights():
    ours = MaskedLRED(pi=0.9, schedule="uniform", max_rounds=40).scan(planted.model(), CLEAN)
    theirs = NeuralCleanse(pi=0.9, max_rounds=40).scan(planted.model(), CLEAN)
    torch.testing.assert_close(ours.mask, theirs.mask)
    torch.testing.assert_close(ours.norms, theirs.norms)


@pytest.mark.parametrize("source", [0, 3])
def test_a_planted_source_specific_backdoor_is_found_with_its_source(source):
    model = planted.model(target=1, sources=[source])
    scan = MaskedLRED().scan(model, CLEAN)
    uniform = NeuralCleanse(pi=0.9).scan(model, CLEAN)
    assert int(scan.norms.argmin()) == 1 and int(scan.weights[1].argmax()) == source
    assert scan.weights[1, source] > 0.9
    assert (scan.mask[1] * planted.corner()).sum() > 0.5 * scan.mask[1].sum()
    assert uniform.norms[1] > 3 * scan.norms[1]  # one source out of three cannot carry a uniform share of 0.9


def test_an_all_to_one_backdoor_is_found_too():
    scan = MaskedLRED().scan(planted.model(target=2), CLEAN)
    assert int(scan.norms.argmin()) == 2 and scan.norms[2] < scan.norms.median() / 2


def test_weights_lie_on_the_simplex_without_the_target_and_temperatures_stay_above_minus_log_pi():
    scan = MaskedLRED(record_every=1, max_rounds=60).scan(planted.model(target=1, sources=[0]), CLEAN)
    torch.testing.assert_close(scan.weights.sum(1), torch.ones(4))
    assert (scan.weights >= 0).all() and (scan.weights.diagonal() == 0).all()
    t = scan.trajectory["T"]
    least = temperature(torch.tensor(0.9))
    assert t[~t.isnan()].min() >= least - 1e-6


def test_two_classes_leave_one_source_and_nothing_to_weigh():
    two = torch.nn.Sequential(planted.model(target=1), torch.nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        two[1].weight.copy_(torch.eye(4)[:2])
    ours = MaskedLRED(max_rounds=30).scan(two, CLEAN[:2])
    theirs = NeuralCleanse(pi=0.9, max_rounds=30).scan(two, CLEAN[:2])
    torch.testing.assert_close(ours.mask, theirs.mask)


def test_a_seed_makes_it_repeatable():
    scans = [
        MaskedLRED(max_rounds=20).scan(planted.model(), CLEAN, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(scans[0].mask, scans[1].mask) and not torch.equal(scans[0].mask, scans[2].mask)


@pytest.mark.parametrize(
    ("bad", "name"), [({"pi": 1.0}, "pi"), ({"schedule": "warm"}, "schedule"), ({"lr": 0}, "lr")]
)
def test_impossible_settings_are_named(bad, name):
    with pytest.raises(ValueError, match=name):
        MaskedLRED(**bad)
