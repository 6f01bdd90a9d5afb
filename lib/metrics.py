"""How good an attack, a verdict or a repair is: rates with their denominators and intervals.

Everything here works on predicted labels, so it needs no model. Sources: L-RED (Xiang et al. 2021,
Definition A.1, Sec. 4.2), B3D (Dong et al. 2021, Cases I-IV), Neural Cleanse (Wang et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import torch
from scipy.stats import fisher_exact, norm
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
        z, n, p = float(norm.ppf(0.5 + self.confidence / 2)), self.total, self.value
        centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))

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
    """Attack success rate: share of stamped test images of the source classes sent to `target`.

    predicted, labels: (N,) predictions on stamped images and true labels. Images of the target class are
    always left out: they would count as successes for free. `sources` None means every class but the target
    ([LR] 4.2, [NC]).
    """
    return rate(predicted[_of(labels, target, sources)] == target)


def non_source_rate(predicted: Tensor, labels: Tensor, target: int, sources: Iterable[int]) -> Rate:
    """Share of stamped test images that are neither source nor target and still go to `target`."""
    inside = _of(labels, target, sources)
    return rate(predicted[~inside & (labels != target)] == target)


def _of(labels: Tensor, target: int, sources: Iterable[int] | None) -> Tensor:
    if sources is None:
        return labels != target
    return torch.isin(labels, torch.as_tensor(list(sources), device=labels.device)) & (labels != target)


@dataclass(frozen=True)
class Collateral:
    """Collateral damage of one class (Definition A.1): stamped against clean confusion with the target."""

    label: int
    stamped: Rate
    clean: Rate
    p_value: float  # one-sided Fisher exact test of "stamped is higher"

    def suffers(self, level: float = 0.05) -> bool:
        """Is the stamped share significantly higher than the clean confusion?"""
        return self.p_value < level


def collateral_damage(stamped: Tensor, clean: Tensor, labels: Tensor, target: int) -> list[Collateral]:
    """Per class other than `target`: share sent to it with the pattern and without ([LR] Definition A.1).

    stamped, clean: (N,) predictions on the same images with and without the pattern; labels (N,).
    "Significantly higher" is not quantified in the paper; here it is a one-sided Fisher exact test,
    uncorrected.
    """
    found = []
    for label in sorted(set(labels.tolist()) - {target}):
        of = labels == label
        a, b = rate(stamped[of] == target), rate(clean[of] == target)
        table = [[a.count, a.total - a.count], [b.count, b.total - b.count]]
        found.append(Collateral(label, a, b, float(fisher_exact(table, alternative="greater")[1])))
    return found


def case(flagged: Iterable[int], target: int | None) -> str:
    """Case I-IV of B3D Sec. 4 for the flagged classes of one model; `target` None for a clean model."""
    flagged = set(flagged)
    if not flagged:
        return "IV"
    if target is None or target not in flagged:
        return "III"
    return "I" if flagged == {target} else "II"


def auc(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + half the ties; in [0, 1]."""
    scores = torch.cat([positive, negative]).double()
    order = torch.unique(scores, return_inverse=True, return_counts=True)
    counts = order[2].double()
    ranks = (counts.cumsum(0) - counts + (counts + 1) / 2)[order[1]]
    n, m = positive.numel(), negative.numel()
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def threshold_at(clean: Tensor, fpr: float) -> float:
    """The smallest threshold that at most a share `fpr` of the clean scores (N,) exceeds; larger is rejected.

    It is one of the clean scores, so nothing but clean inputs decides it. Raises ValueError for no scores,
    NaN, or fpr outside [0, 1).
    """
    if not clean.numel() or clean.isnan().any() or not 0 <= fpr < 1:
        raise ValueError(
            f"{clean.numel()} clean scores, fpr = {fpr}: scores without NaN and fpr in [0, 1) are needed"
        )
    ordered = clean.flatten().sort(descending=True).values
    return float(ordered[int(fpr * len(ordered) + 1e-9)])
