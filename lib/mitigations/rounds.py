"""Detect and patch, again and again: for several triggers that lead to one label.

A detector recovers one trigger per class; once that is unlearned, the next round finds what is left. Source:
Neural Cleanse (Wang et al. 2019, Sec. VII-D).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .. import anomaly
from ..data import clean_per_class
from ..detectors.scan import Detector, Scan
from ..models import predict
from .base import recovered
from .unlearning import Unlearning


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: what was found in the model before it, the classes patched, and the model after."""

    scan: Scan
    verdict: anomaly.Verdict
    patched: tuple[int, ...]
    model: nn.Module


@dataclass(frozen=True, kw_only=True)
class DetectAndPatch:
    """Scan, judge by a rule of `lib.anomaly`, unlearn the triggers of the flagged classes; then again.

    It ends after `max_rounds`, or when a scan flags nothing. suspected: classes patched in every round,
    whatever the rule says: once the easy triggers are gone, an outlier rule can lose sight of a label that is
    known to be infected. n_clean: correctly classified images per class for each scan, drawn anew every time.
    """

    detector: Detector
    rule: str = "mad"
    unlearning: Unlearning = field(default_factory=Unlearning)
    max_rounds: int = 3
    n_clean: int = 20
    suspected: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in anomaly.RULES:
            raise ValueError(f"no rule {self.rule!r}: allowed are {', '.join(anomaly.RULES)}")
        if self.max_rounds < 1 or self.n_clean < 1:
            raise ValueError(
                f"max_rounds = {self.max_rounds}, n_clean = {self.n_clean}: both must be at least 1"
            )

    def fit(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        n_classes: int,
        seed: int = 0,
        progress: bool = False,
    ) -> list[Round]:
        """The rounds, in order; the last one's model is the patched classifier.

        images (N, C, H, W), labels (N,): clean data that the defender trusts. A round that flags nothing is
        kept, with the model as it was.
        """
        generator, rounds = torch.Generator().manual_seed(seed), []
        same = images.device.type == "cpu"  # a scan draws on the device of its images
        on_device = generator if same else torch.Generator(images.device).manual_seed(seed)
        for number in range(self.max_rounds):
            n, right = self.n_clean, partial(predict, model)
            clean = clean_per_class(right, images, labels, n, n_classes=n_classes, generator=generator)
            scan = self.detector.scan(model, clean, generator=on_device, progress=progress)
            verdict = anomaly.judge(scan.norms, self.rule, pair_norms=scan.pair_norms)
            patched = tuple(dict.fromkeys((*verdict.targets, *self.suspected)))
            if patched:
                embeds = [recovered(scan, t) for t in patched]
                model = self.unlearning.fit(
                    model, embeds, images, labels, seed=seed + number, progress=progress
                )
            rounds.append(Round(scan=scan, verdict=verdict, patched=patched, model=model))
            if not patched:
                break
        return rounds
