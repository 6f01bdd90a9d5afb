"""Detect and patch, again and again: for several triggers that lead to one label.

A detector recovers one trigger per class; once that is unlearned, the next round finds what is left.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019),
Sec. VII-D.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .. import anomaly
from ..data import Labelled, clean_per_class
from ..detectors.base import Detector
from ..detectors.scan import Scan
from ..models import check_images, predict
from ..settings import Allowed, allowed, choice, number
from .base import Repair, Trigger, recovered
from .unlearning import Unlearning

CLASSES = Allowed(lambda value: all(k >= 0 for k in value), "a list of classes, whole numbers from 0,")


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: what was found in the model before it, the classes patched, and the model after."""

    scan: Scan
    verdict: anomaly.Verdict
    patched: tuple[int, ...]
    model: nn.Module


@dataclass(frozen=True, kw_only=True)
class DetectAndPatch(Repair):
    """Scan, judge by a rule, unlearn the triggers of the flagged classes; then again.

    It ends after `max_rounds`, or when a round patches nothing.
    rule: a name in `anomaly.RULES`.
    n_clean: correctly classified images per class for each scan, drawn anew every time.
    suspected: classes patched in every round, whatever the rule says: once the easy triggers are gone, an
        outlier rule can lose sight of a label that is known to be infected.
    """

    detector: Detector
    rule: str = choice("mad", tuple(anomaly.RULES))
    unlearning: Unlearning = field(default_factory=Unlearning)
    max_rounds: int = number(3, least=1)
    n_clean: int = number(20, least=1)
    suspected: tuple[int, ...] = allowed((), CLASSES)

    takes_none = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if anomaly.RULES[self.rule].judges == "pairs" and not self.detector.pairs:
            name = type(self.detector).__name__
            raise ValueError(f"rule = {self.rule!r}: it judges pairs of classes, and {name} looks at none")

    def repaired(
        self, model: nn.Module, triggers: Sequence[Trigger], data: Labelled, seed: int, progress: bool
    ) -> nn.Module:
        """That of the last of the `rounds`.

        Triggers that are known already are unlearned first, with `seed`; the rounds then begin at seed + 1.
        """
        if triggers:
            model = self.unlearning.fit(model, triggers, *data, seed=seed, progress=progress)
            return self.rounds(model, *data, seed=seed + 1, progress=progress)[-1].model
        # a copy, because rounds that patch nothing end with the model that they began with
        return self.rounds(copy.deepcopy(model).eval(), *data, seed=seed, progress=progress)[-1].model

    def rounds(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False
    ) -> list[Round]:
        """The rounds, in order; the last one's model is the patched classifier.

        A round that patches nothing is kept, with the model as it was.
        images, labels: as in `fit`; there are as many classes as the largest label says.
        seed: draws the images for the scans and what the detector draws; round i unlearns with seed + i.
        """
        check_images(images, labels)
        k, rounds = int(labels.max()) + 1, list[Round]()
        if any(t >= k for t in self.suspected):
            raise ValueError(f"suspected = {self.suspected}: classes from 0 to {k - 1} are needed")
        generator = torch.Generator().manual_seed(seed)
        same = images.device.type == "cpu"  # a scan draws on the device of its images
        on_device = generator if same else torch.Generator(images.device).manual_seed(seed)
        for i in range(self.max_rounds):
            n, right = self.n_clean, partial(predict, model)
            clean = clean_per_class(right, images, labels, n, n_classes=k, generator=generator)
            scan = self.detector.scan(model, clean, generator=on_device, progress=progress)
            verdict = anomaly.judge(scan, self.rule)
            patched = tuple(dict.fromkeys((*verdict.targets, *self.suspected)))
            if patched:
                found = [recovered(scan, target) for target in patched]
                model = self.unlearning.fit(model, found, images, labels, seed=seed + i, progress=progress)
            rounds.append(Round(scan=scan, verdict=verdict, patched=patched, model=model))
            if not patched:
                break
        return rounds
