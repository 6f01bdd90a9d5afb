"""The same seed gives the same classifier on every machine: against golden.json, and on this machine's oldest kernels."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lib import data, models, train
from tests import golden

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads(golden.FILE.read_text())
REST = tuple(golden.CASES)[len(golden.FIRST) :]
pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "names", [golden.FIRST, pytest.param(REST, marks=pytest.mark.slow)], ids=["first", "rest"]
)
@pytest.mark.parametrize("kernels", ["own", "oldest"])
def test_this_machine_trains_the_golden_classifiers(names, kernels):
    env = os.environ | {"OMP_NUM_THREADS": "1"} | (golden.OLDEST if kernels == "oldest" else {})
    program = [sys.executable, "-m", "tests.golden", *names]
    said = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    for name, found in json.loads(said).items():
        wanted = GOLDEN[name]
        assert found["weights"] == wanted["weights"], name
        near = pytest.approx(wanted["norms"], rel=1e-3)  # scans are of single precision
        assert found["norms"] == near, name
        assert found["flagged"] == wanted["flagged"], name


class Turned(nn.Module):
    """The same network, which adds up a batch from its other end."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.flip(0)).flip(0)


@pytest.mark.parametrize("exact", [True, False])
def test_the_order_of_sums_leaves_exact_training_alone(exact):
    """No two machines are needed: a batch turned round is another order of the same sums."""
    images, labels = data.load("digits").train
    how = replace(train.recipe("smoke"), exact=exact, epochs=8)

    def weights(wrap):
        net = models.network("small", n_classes=10, shape=(1, 16, 16), seed=1)
        train.fit(wrap(net), images, labels, how, seed=1)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    straight, turned = weights(lambda net: net), weights(Turned)
    assert torch.equal(straight, turned) == exact
    assert straight.dtype == torch.float32
    on_grid = torch.equal(straight.double() / train.GRID, (straight.double() / train.GRID).round())
    assert on_grid == exact


def test_the_order_of_sums_leaves_running_statistics_alone():
    """The second layer's mean is 0 but for rounding: a convolution of what has mean 0."""
    images, labels = data.load("digits").train

    def statistics(wrap):
        torch.manual_seed(1)
        first, second = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(16)
        convolutions = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 16, 1, bias=False)
        head = nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
        net = nn.Sequential(convolutions[0], first, convolutions[1], second, *head)
        net(images[:2])
        second.reset_running_stats()
        train.fit(wrap(net), images[:256], labels[:256], replace(train.recipe("smoke"), epochs=1), seed=1)
        assert second.running_mean.abs().max() < 1e-6
        return torch.cat([b.double().flatten() for b in net.buffers()])

    assert torch.equal(statistics(lambda net: net), statistics(Turned))


def test_weights_are_drawn_the_same_everywhere():
    """Drawn in double precision and rounded; nothing is left in double, nor new tensors after it."""
    net = models.network("lenet5", n_classes=10, shape=(1, 28, 28), seed=3)
    assert {p.dtype for p in net.state_dict().values()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
