"""Every repair and every input score on one classifier, with the controls that make them mean something.

For evaluation: the attacker's own trigger is needed to judge. What is fitted sees only the recovered trigger
and clean images, except the columns that say "original", which are Neural Cleanse's controls (Wang et al.
2019, Table IV).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import metrics, models
from ..detectors.strip import Strip
from .activation_filter import ActivationFilter
from .base import Embed, Outcome, assess
from .layers import LAST_CONV, LAST_HIDDEN
from .pruning import Pruning
from .rejection import Rejection
from .scores import InputScore
from .unlearning import Unlearning

Labelled = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N,)


def repairs(
    model: nn.Module,
    embed: Embed,
    original: Embed,
    *,
    target: int,
    trusted: Labelled,
    held: Labelled,
    test: Labelled,
    sources: Iterable[int] | None = None,
    unlearning: Unlearning | None = None,
    seed: int = 0,
) -> dict[str, Outcome]:
    """Outcome on `test` of nothing, unlearning with its two controls, and pruning of both layers.

    embed: the recovered trigger; original: the attacker's. trusted: clean training data for unlearning; held:
    the defender's clean images for pruning.
    """
    how, prunings = unlearning or Unlearning(), (LAST_HIDDEN, LAST_CONV)
    columns = {"before": model}
    for name, trigger in (("reversed", embed), ("original", original), ("clean only", None)):
        columns[f"unlearned, {name}"] = how.fit(model, trigger, *trusted, seed=seed)
    for layer in prunings:
        columns[f"pruned, {layer}"] = Pruning(layer=layer).fit(model, embed, *held, target=target).model
    wanted = None if sources is None else tuple(sources)
    return {
        name: assess(m, *test, target=target, original=original, reversed_trigger=embed, sources=wanted)
        for name, m in columns.items()
    }


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a score separates stamped test images of the source classes from clean ones.

    auc: against clean images of all classes but the target; auc_all: against all. fnr: share of stamped
    images let through at the threshold that rejects 5 % of the clean images it was fitted on; fpr: share of
    all clean test images rejected there.
    """

    auc: float
    auc_all: float
    fnr: metrics.Rate
    fpr: metrics.Rate


def input_scores(
    model: nn.Module,
    embed: Embed,
    original: Embed,
    *,
    target: int,
    held: Tensor,
    test: Labelled,
    sources: Iterable[int] | None = None,
    strip: Strip | None = None,
) -> dict[str, Separation]:
    """Activation filter, S(x), STRIP, and a control that needs no trigger at all:
    the posterior of the target.

    held: the defender's clean images (N, C, H, W), which set every threshold.
    """
    images, labels = test
    away = labels != target
    of = away if sources is None else torch.isin(labels, torch.as_tensor(list(sources)).to(labels)) & away
    blends = strip or Strip()

    def posterior(x: Tensor) -> Tensor:
        return torch.softmax(models.logits(model, x), 1)[:, target]

    def blended(x: Tensor) -> Tensor:
        return blends.score(model, x, held)

    scores = {
        "activation filter": ActivationFilter().fit(model, embed, held),
        "S(x)": Rejection().fit(model, embed, held),
        "STRIP": InputScore(score=blended, clean_scores=blended(held)),
        "posterior of the target": InputScore(score=posterior, clean_scores=posterior(held)),
    }
    return {name: _separation(score, original(images[of]), images, away) for name, score in scores.items()}


def _separation(score: InputScore, stamped: Tensor, clean: Tensor, away: Tensor) -> Separation:
    bad, good, threshold = score.score(stamped), score.score(clean), score.threshold()
    return Separation(
        auc=metrics.auc(bad, good[away]),
        auc_all=metrics.auc(bad, good),
        fnr=metrics.rate(bad <= threshold),
        fpr=metrics.rate(good > threshold),
    )
