"""Classifiers with a backdoor by hand in their weights: a white patch or a faint lattice.

They are like the models of `planted`, with an additive trigger beside the patch and with neurons that have
nothing to do with either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lib import mitigations, models
from lib.data import Labelled
from lib.detectors import Detector, Scan
from lib.detectors.base import Run
from lib.mitigations import Outcome, Trigger, Unlearning
from lib.models import Cost

K, SIDE, TARGET = 3, 8, 2
KINDS = ("patch", "lattice")
CORNER = (slice(None), slice(-2, None), slice(-2, None))
LATTICE = torch.zeros(1, SIDE, SIDE)
LATTICE[:, ::2, ::2] = 0.2
THOROUGH = Unlearning(sample=1.0, stamped=0.5, epochs=20, lr=2e-2)  # enough for so small a network


class Planted(nn.Module):
    """Class k is a bright row band k.

    One hidden unit per class, four bystanders, and one that fires on the trigger alone: a white 2x2 corner or
    a faint lattice. The filter of the planted unit is zero-mean over the image, so bright and dark images
    leave it silent.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        # written by hand, so nothing is drawn
        self.hidden, self.act = skip_init(nn.Linear, SIDE * SIDE, K + 5), nn.ReLU()
        self.head = skip_init(nn.Linear, K + 5, K)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            for k in range(K):
                band = torch.zeros(SIDE, SIDE)
                band[2 * k : 2 * k + 2, :-2] = 1 / 12
                self.hidden.weight[k] = band.flatten()
                self.head.weight[k, k] = 10.0
            self.hidden.weight[K : K + 4] = 0.01
            detector = torch.full((SIDE, SIDE), 0.0)
            if kind == "patch":
                detector[-2:, -2:] = 1.0
                self.hidden.bias[-1] = -3.0
            else:
                detector[::2, ::2], detector[1::2, ::2] = 1.0, -1.0
                self.hidden.bias[-1] = -1.0
            self.hidden.weight[-1] = detector.flatten()
            self.head.weight[TARGET, -1] = 100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.hidden(x.flatten(1))))


def both() -> Planted:
    """One with both backdoors: a bystander becomes the second planted unit."""
    model, other = Planted("patch"), Planted("lattice")
    with torch.no_grad():
        model.hidden.weight[-2], model.hidden.bias[-2] = other.hidden.weight[-1], other.hidden.bias[-1]
        model.head.weight[TARGET, -2] = 100.0
    return model


def images_of(n: int, seed: int = 0) -> Labelled:
    """Bands of brightness 0.5 to 0.7 on a dim noisy ground."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    x = torch.rand(n, 1, SIDE, SIDE, generator=g) * 0.05
    for i, k in enumerate(labels.tolist()):
        x[i, :, 2 * k : 2 * k + 2, :-2] += 0.5 + 0.15 * torch.rand((), generator=g)
    return Labelled(x, labels)


def scan_of(kind: str, towards: int = TARGET) -> Scan:
    """A scan whose trigger towards one class is the planted one; towards the others it is empty."""
    pattern, mask = torch.zeros(K, 1, SIDE, SIDE), None
    if kind == "patch":
        mask = torch.zeros(K, SIDE, SIDE)
        mask[(towards, *CORNER[1:])] = 1
        pattern[towards] = 1
    else:
        pattern[towards] = LATTICE
    norms = torch.full((K,), 5.0) + torch.arange(K) / 10
    norms[towards] = 0.1
    found = {"norms": norms, "norm_name": "norm", "pattern": pattern, "mask": mask}
    every = torch.ones(K)
    found |= {"success": every, "reached": every.bool(), "converged": every.bool()}
    return Scan(detector="planted", settings={}, cost=Cost(), **found)


def trigger_of(kind: str) -> Trigger:
    """The planted trigger, as a scan recovers it."""
    return mitigations.recovered(scan_of(kind), TARGET)


def judged(model: nn.Module, trigger: Trigger, seed: int = 9) -> Outcome:
    """What `assess` says when the trigger is the attacker's and the recovered one in one."""
    return mitigations.assess(model, images_of(60, seed), trigger, reversed_trigger=trigger)


@dataclass(frozen=True, kw_only=True)
class Oracle(Detector):
    """A detector that knows both triggers and finds the first that still works; norms say so."""

    def search(self, run: Run) -> Scan:
        model, x = run.model, run.clean[torch.arange(K) != TARGET].flatten(0, 1)
        for kind in KINDS:
            scan = scan_of(kind)
            if (models.predict(model, scan.embed(x, TARGET)) == TARGET).float().mean() > 0.5:
                return scan
        return Scan(**{**scan_of("patch").__dict__, "norms": torch.tensor([5.0, 5.1, 5.2])})
