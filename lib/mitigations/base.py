"""What every mitigation shares: the trigger as a function on images, and the numbers that judge a repair.

A mitigation never asks which kind of trigger it is given. `recovered(scan, target)` puts a scan's trigger on
images, be it a mask and a pattern or an additive pattern v; `attack.embed` is the attacker's own, for
controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .. import metrics, models
from ..detectors.scan import Scan

Embed = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [0, 1] -> the same images with a trigger on


def recovered(scan: Scan, target: int) -> Embed:
    """The trigger that a scan recovered for a class, as a function on images.

    Raises ValueError for a class that the scan does not have.
    """
    if not 0 <= target < scan.n_classes:
        raise ValueError(f"target = {target}: the scan has classes 0 to {scan.n_classes - 1}")
    return partial(scan.embed, target=target)


def check_images(images: Tensor, labels: Tensor | None = None) -> None:
    """Raise ValueError unless images are (N, C, H, W) with N >= 1, and labels (N,) when given."""
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}: (N, C, H, W) with N >= 1 is needed")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} for {len(images)} images: one label per image is needed"
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A classifier after (or before) a repair, on test images.

    asr: with the attacker's trigger, on the source classes. reversed_asr: with the recovered trigger, on the
    same images; None without one. accuracy: on clean images. true_label: share of images stamped with the
    attacker's trigger that get their true label back, on the source classes: a classifier can stop saying
    `target` and still be wrong.
    """

    asr: metrics.Rate
    reversed_asr: metrics.Rate | None
    accuracy: metrics.Rate
    true_label: metrics.Rate

    def row(self) -> dict[str, float]:
        """The four as shares for a table; NaN without a recovered trigger."""
        reversed_asr = float("nan") if self.reversed_asr is None else self.reversed_asr.value
        return {
            "original ASR": self.asr.value,
            "reversed ASR": reversed_asr,
            "accuracy": self.accuracy.value,
            "true label": self.true_label.value,
        }


def assess(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    target: int,
    original: Embed,
    reversed_trigger: Embed | None = None,
    sources: Iterable[int] | None = None,
) -> Outcome:
    """Judge `model` on test images (N, C, H, W), labels (N,). `sources` None: every class but the target.

    For evaluation only: nothing here may choose a setting, since a defender has no triggered images.
    """
    check_images(images, labels)
    wanted = torch.as_tensor(sorted(set(labels.tolist()) - {target}) if sources is None else list(sources))
    of = torch.isin(labels, wanted.to(labels.device)) & (labels != target)
    stamped = models.predict(model, original(images[of]))
    back = None
    if reversed_trigger is not None:
        back = metrics.rate(models.predict(model, reversed_trigger(images[of])) == target)
    return Outcome(
        asr=metrics.rate(stamped == target),
        reversed_asr=back,
        accuracy=metrics.cta(models.predict(model, images), labels),
        true_label=metrics.cta(stamped, labels[of]),
    )
