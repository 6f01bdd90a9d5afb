"""How good an attack, a verdict or a repair is: rates with their denominators and intervals.

Everything here works on predicted labels and scores, so it needs no model.

Sources: "L-RED: Efficient Post-Training Detection of Imperceptible Backdoor Attacks without Access to the
Training Set" (Xiang et al. 2021), Definition A.1 and Sec. 4.2; B3D, "Black-box Detection of Backdoor Attacks
with Limited Information and Data" (Dong et al. 2021), Cases I to IV; "Neural Cleanse: Identifying and
Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019), the attack success rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.stats import binomtest
from torch import Tensor


@dataclass(frozen=True)
class Rate:
    """A count out of a total, with its Wilson score interval."""

    count: int
    total: int
    confidence: float = 0.95

    @property
    def value(self) -> float:
        """The share, in [0, 1]; NaN when the total is 0."""
        return self.count / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval at the stated confidence; (0, 1) when the total is 0."""
        if not self.total:
            return 0.0, 1.0
        found = binomtest(self.count, self.total).proportion_ci(self.confidence, method="wilson")
        return float(found.low), float(found.high)

    @property
    def fraction(self) -> str:
        """The count and the total alone, as in "9/10"."""
        return f"{self.count}/{self.total}"

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.fraction} [{low:.2f}, {high:.2f}]"


def rate(hits: Tensor | Iterable[bool]) -> Rate:
    """The Rate of the true entries of a boolean sequence."""
    flags = torch.as_tensor(list(hits) if not isinstance(hits, Tensor) else hits).bool()
    return Rate(int(flags.sum()), flags.numel())


def cta(predicted: Tensor, labels: Tensor) -> Rate:
    """Clean test accuracy: predictions (N,) on clean images against their labels (N,)."""
    return rate(predicted == labels)


def asr(predicted: Tensor, labels: Tensor, target: int, sources: Iterable[int] | None = None) -> Rate:
    """Attack success rate: the share of stamped images of the source classes sent to `target`.

    predicted: (N,) predictions on stamped images.
    labels: (N,) their true labels.
    sources: None means every class but the target (L-RED Sec. 4.2, Neural Cleanse).
    Images of the target class are always left out: they would count as successes for free.
    """
    return rate(predicted[of_sources(labels, target, sources)] == target)


def non_source_rate(predicted: Tensor, labels: Tensor, target: int, sources: Iterable[int]) -> Rate:
    """Share of stamped test images that are neither source nor target and still go to `target`."""
    inside = of_sources(labels, target, sources)
    return rate(predicted[~inside & (labels != target)] == target)


def of_sources(labels: Tensor, target: int, sources: Iterable[int] | None = None) -> Tensor:
    """Which of `labels` (N,) are of a source class, (N,) bool; never the target's.

    sources: None means every class but the target.
    """
    away = labels != target
    if sources is None:
        return away
    return torch.isin(labels, torch.as_tensor(list(sources), device=labels.device)) & away


@dataclass(frozen=True)
class Collateral:
    """Collateral damage of one class: its stamped against its clean confusion with the target."""

    label: int
    stamped: Rate
    clean: Rate
    p_value: float  # one-sided exact McNemar test of "stamped is higher"

    def suffers(self, level: float = 0.05) -> bool:
        """Is the stamped share significantly higher than the clean confusion?"""
        return self.p_value < level


def collateral_damage(stamped: Tensor, clean: Tensor, labels: Tensor, target: int) -> list[Collateral]:
    """Per class other than `target`: share sent to it with the pattern and without.

    This is L-RED's Definition A.1. "Significantly higher" is not quantified in the paper; here it is a one-sided
    exact McNemar test (McNemar 1947), uncorrected: the same image is asked about twice, so what counts are the
    images that arrive with the pattern alone and those that arrive without it alone. Were the pattern without effect,
    either would be as likely.

    stamped, clean: (N,) predictions on the same images with and without the pattern.
    labels: (N,) their true labels.
    """
    found = []
    for label in sorted(set(labels.tolist()) - {target}):
        of = labels == label
        with_it, without = stamped[of] == target, clean[of] == target
        gained, lost = int((with_it & ~without).sum()), int((without & ~with_it).sum())
        p = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
        found.append(Collateral(label, rate(with_it), rate(without), float(p)))
    return found


def case(flagged: Iterable[int], target: int | None) -> str:
    """Case I to IV of B3D Sec. 4 for the flagged classes of one model.

    target: None for a clean model.
    I: the target alone. II: the target and others. III: others only. IV: nothing.
    """
    flagged = set(flagged)
    if not flagged:
        return "IV"
    if target is None or target not in flagged:
        return "III"
    return "I" if flagged == {target} else "II"


class Judged(Protocol):
    """What `case_of` reads of a verdict."""

    @property
    def targets(self) -> Iterable[int]:
        """The flagged classes."""

    @property
    def outcome(self) -> str:
        """In words; "inconclusive" where nothing is flagged and not all could be judged."""


def case_of(verdict: Judged, target: int | None) -> str:
    """The `case` of a verdict, or "inconclusive": that is no Case IV, whatever the truth."""
    return verdict.outcome if verdict.outcome == "inconclusive" else case(verdict.targets, target)


def auc(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve: P(a positive's score > a negative's) + half the ties; in [0, 1]."""
    from sklearn.metrics import roc_auc_score

    scores = torch.cat([positive, negative]).double()
    ranks = torch.unique(scores, return_inverse=True)[1]  # scikit-learn takes no infinite scores
    is_positive = [1] * len(positive) + [0] * len(negative)
    return float(roc_auc_score(is_positive, ranks.cpu().numpy()))


def threshold_at(clean: Tensor, fpr: float) -> float:
    """The smallest threshold that at most a share `fpr` of the clean scores (N,) exceeds.

    What is larger is rejected. It is one of the clean scores, so nothing but clean inputs decides it.
    Raises ValueError for no scores, NaN, or fpr outside [0, 1).
    """
    if not clean.numel() or clean.isnan().any() or not 0 <= fpr < 1:
        raise ValueError(
            f"{clean.numel()} clean scores, fpr = {fpr}: scores without NaN and fpr in [0, 1) are needed"
        )
    ordered = clean.flatten().sort(descending=True).values
    return float(ordered[int(fpr * len(ordered) + 1e-9)])
