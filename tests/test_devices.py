"""On another device all goes as on the CPU, and nothing is left behind there: on a GPU that is pretended."""

from dataclasses import replace

import planted
import pretend
import pytest
import torch
from torch import nn

from lib import attacks, classifier, data, detectors, train
from lib.detectors import DETECTORS, PRESETS, named

pytestmark = pytest.mark.long

# With little to do, and of everything: the searches go through all their parts.
QUICK = {
    "surrogate-red": {"max_steps": 20},
    "b3d": {"budget": 30_000},
    "b3d-paper": {"budget": 30_000, "samples": 5},
    "b3d-ss": {"budget": 60_000, "image_budget": 20_000},
    "b3d-ss-paper": {"budget": 60_000, "image_budget": 20_000, "images": 4, "samples": 5},
}


def quick(name):
    if name in QUICK:
        return named(name, **QUICK[name])
    how = named(name)
    return replace(how, max_rounds=3) if hasattr(how, "max_rounds") else how


def test_two_places_do_not_mix_and_everything_else_goes_on():
    """The tool itself."""
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    with pretend.device() as there:
        y = x.to(there)
        assert y.device == there == torch.zeros(2, device=there).device and (2 * y).device == there
        for mixed in (
            lambda: y + x,
            lambda: torch.cat([y, x]),
            lambda: torch.where(y > 0.5, y, x),
            lambda: y @ x.T,
        ):
            with pytest.raises(RuntimeError, match="on meta:0 and on the CPU"):
                mixed()
        assert (y + torch.tensor(1.0)).device == there and y[torch.tensor([0, 1])].device == there
        y.requires_grad_(True)
        (gradient,) = torch.autograd.grad((y * y).sum(), y)
        assert gradient.device == there and torch.equal(gradient.cpu(), 2 * x)
        assert float(y.detach().sum()) == float(x.sum()) and y.detach().cpu().tolist() == x.tolist()
        a, b = (torch.rand(3, generator=torch.Generator(d).manual_seed(1), device=d) for d in ("cpu", there))
        assert b.device == there and torch.equal(a, b.cpu())


@pytest.mark.parametrize("name", [*DETECTORS, *PRESETS])
def test_a_scan_is_the_same_elsewhere(name):
    how, clean = quick(name), planted.images(4)
    here = how.scan(planted.model(1), clean)
    with pretend.device() as there:
        found = how.scan(pretend.moved(planted.model(1)), clean.to(there))
        assert found.norms.device.type == found.pattern.device.type == "cpu", "a scan is for reading"
        assert torch.allclose(found.norms, here.norms, rtol=1e-4, equal_nan=True)
        assert torch.equal(found.reached, here.reached) and replace(found.cost, seconds=0) == replace(
            here.cost, seconds=0
        )


@pytest.mark.parametrize("name", [n for n, a in attacks.gallery((3, 32, 32)).items() if not a.learns])
def test_a_trigger_is_the_same_elsewhere(name):
    attack = attacks.gallery((3, 32, 32))[name]
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pretend.device() as there:
        for part in attack.parts:
            stamped = part.embed(x.to(there))
            assert stamped.device == there and torch.allclose(stamped.cpu(), part.embed(x))


def test_training_is_the_same_elsewhere():
    how = train.Recipe(epochs=2, batch_size=16, lr=1e-2, augment=True)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(64, 1, 8, 8, generator=generator), torch.arange(64) % 3

    def network():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
            )

    here = train.fit(network(), x, y, how, seed=0)
    model = network()
    with pretend.device() as there:
        there_ = train.fit(pretend.moved(model), x.to(there), y.to(there), how, seed=0)
        for a, b in zip(here.state_dict().values(), there_.state_dict().values(), strict=True):
            assert b.device == there and torch.allclose(a.float(), b.cpu().float(), atol=1e-5)


def test_a_classifier_is_measured_and_scanned_elsewhere():
    attack = attacks.group("G-3", "digits")
    spec = classifier.Spec(attack=attack, recipe=train.Recipe(epochs=3, batch_size=64, lr=1e-2))
    made = classifier.trained(spec, data.load("digits"))
    with pretend.device() as there:
        moved = made.with_model(pretend.moved(made.model))
        moved = replace(moved, dataset=made.dataset.to(there))
        assert moved.metrics["cta"] == made.metrics["cta"] and moved.metrics["asr"] == made.metrics["asr"]
        assert moved.scan(detectors.LRED(delta=0.1), 2).norms.isfinite().all()
