"""Scan a classifier and judge the scan: everything that a report tells."""

from __future__ import annotations

from .. import anomaly
from ..classifier import Classifier
from ..detectors import Detector
from .report import Report, conditions
from .suspects import AuditError


def examine(
    subject: Classifier,
    detector: Detector,
    *,
    name: str,
    n: int,
    rule: str,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Scan with n clean, correctly classified test images per class, and judge by every rule that can.

    name: what to call the detector.
    rule: the one that decides.
    seed: draws the images, and whatever the detector draws.
    Raises AuditError for bad input, before the scan begins.
    """
    if rule not in anomaly.RULES:
        raise AuditError(f"no rule '{rule}': allowed are {', '.join(anomaly.RULES)}")
    if n < 1:
        raise AuditError(f"n = {n}: at least one clean image per class is needed")
    if subject.n_classes < (least := anomaly.RULES[rule].least):
        few = f"rule '{rule}' judges {least} classes or more, not {subject.n_classes}"
        raise AuditError(f"{few}: take mad or mad-or-quarter")
    if anomaly.RULES[rule].judges == "pairs" and not detector.pairs:
        raise AuditError(f"rule '{rule}' judges the norms of all class pairs: {name} does not give them")
    scan = subject.scan(detector, n, seed=seed, progress=progress)
    verdicts = {rule: anomaly.judge(scan.norms, rule, pair_norms=scan.pair_norms)} | anomaly.verdicts(scan)
    return Report(
        subject=subject.name,
        classes=subject.dataset.classes,
        scan=scan,
        rule=rule,
        verdicts=verdicts,
        facts=conditions(subject, detector, n=n, seed=seed),
        detector=name,
    )
