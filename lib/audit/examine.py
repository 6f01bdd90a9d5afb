"""Scan a classifier and judge the scan: everything that a report tells."""

from __future__ import annotations

from dataclasses import replace

import torch

from .. import anomaly, metrics
from ..classifier import Classifier
from ..data import DataError
from ..detectors import Detector
from ..settings import shown
from .report import Report, conditions
from .suspects import AuditError


def examine(
    subject: Classifier,
    detector: Detector,
    *,
    name: str,
    n: int,
    rule: str,
    level: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Scan with n clean, correctly classified test images per class, and judge by every rule that can.

    name: what to call the detector.
    rule: the one that decides.
    level: of the rules that give a p-value; default 0.05.
    seed: draws the images, and whatever the detector draws.
    Raises AuditError for bad input, before the scan begins.
    """
    if rule not in anomaly.RULES:
        raise AuditError(f"no rule {shown(rule)}: allowed are {', '.join(anomaly.RULES)}")
    if n < 1:
        raise AuditError(f"n = {n}: at least one clean image per class is needed")
    how, k = anomaly.RULES[rule], subject.n_classes
    if k < how.least:
        others = [other.name for other in anomaly.RULES.values() if k >= other.least]
        raise AuditError(
            f"rule {rule!r} judges {how.least} classes or more, not {k}: take {' or '.join(others)}"
        )
    if how.judges == "pairs" and not detector.pairs:
        raise AuditError(f"rule {rule!r} judges the norms of all class pairs: {name} does not give them")
    if level is not None and not how.gives_p:
        raise AuditError(f"level = {level}: rule {rule!r} gives no p-value, its threshold is its own")
    level = 0.05 if level is None else level
    if not how.finest < level < 1:
        raise AuditError(
            f"level = {level}: a number above {how.finest:g} and below 1 is needed for rule {rule!r}"
        )
    if "clean accuracy" not in subject.facts:
        subject = replace(subject, facts={**subject.facts, "clean accuracy": f"{_accuracy(subject):.4f}"})
    note = _how_right(subject)
    try:
        scan = subject.scan(detector, n, seed=seed, progress=progress)
    except DataError as e:  # too few images that it gets right
        raise AuditError(f"{e} ({note})") from e
    verdicts = {rule: anomaly.judge(scan, rule, level=level)} | anomaly.verdicts(scan, level=level)
    return Report(
        subject=subject.name,
        classes=subject.dataset.classes,
        scan=scan,
        rule=rule,
        verdicts=verdicts,
        facts=conditions(subject, detector, n=n, seed=seed),
        detector=name,
        notes=(note,),
    )


def _accuracy(subject: Classifier) -> float:
    images, labels = subject.dataset.test
    return float(metrics.cta(subject.predict(images), labels))


def _how_right(subject: Classifier) -> str:
    """The clean accuracy in words. A model that is often wrong was probably made for images of another kind."""
    accuracy = float(str(subject.facts["clean accuracy"]))
    chance = float(torch.bincount(subject.dataset.test_labels).max()) / len(subject.dataset.test_labels)
    said = f"clean accuracy on {subject.dataset.name}: {100 * accuracy:.1f} %, by chance {100 * chance:.1f} %"
    if accuracy >= (1 + chance) / 2:
        return said
    kind = "wrong data, or images normalised in another way (--mean, --std)"
    return f"{said}; so low, its norms mean little: {kind}?"
