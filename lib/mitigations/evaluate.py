"""Every repair and every input score on one classifier, with their controls.

For evaluation: the attacker's own trigger is needed to judge, and nothing here may choose a setting, since a
defender has no triggered images. What is fitted sees only the recovered trigger and clean images, except the
columns that say "original": they are, like those that say "clean only", the controls of Table IV of "Neural
Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import metrics, models
from ..data import Labelled
from .activation_filter import ActivationFilter
from .base import Filter, InputScore, Repair, Trigger
from .kl_score import KLScore
from .pruning import Pruning
from .strip import Strip
from .unlearning import Unlearning


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A classifier after (or before) a repair, on test images.

    asr: with the attacker's trigger, on the source classes.
    reversed_asr: with the recovered trigger, on the same images; None without one.
    accuracy: on clean images.
    true_label: share of the images with the attacker's trigger that get their true label back, on the source
        classes: a classifier can stop saying the target and still be wrong.
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
    test: Labelled,
    original: Trigger,
    *,
    reversed_trigger: Trigger | None = None,
    sources: Iterable[int] | None = None,
) -> Outcome:
    """Judge a model on test images.

        assess(repaired, judge, Trigger(attack.embed, attack.target)).asr

    original: the attacker's trigger.
    reversed_trigger: the recovered one, towards the same class.
    sources: the source classes; None means every class but the target.
    """
    images, labels = test
    models.check_images(images, labels)
    of = metrics.of_sources(labels, original.target, sources)
    stamped, back = models.predict(model, original(images[of])), None
    if reversed_trigger is not None:
        _check_target(reversed_trigger, original)
        back = metrics.rate(models.predict(model, reversed_trigger(images[of])) == original.target)
    return Outcome(
        asr=metrics.rate(stamped == original.target),
        reversed_asr=back,
        accuracy=metrics.cta(models.predict(model, images), labels),
        true_label=metrics.cta(stamped, labels[of]),
    )


def repairs(
    model: nn.Module,
    trigger: Trigger,
    original: Trigger,
    *,
    trusted: Labelled,
    held: Labelled,
    test: Labelled,
    sources: Iterable[int] | None = None,
    unlearning: Unlearning | None = None,
    seed: int = 0,
) -> dict[str, Outcome]:
    """Outcome of nothing, of unlearning with its two controls, and of pruning either layer.

    trigger: the recovered one, towards the class of `original`, the attacker's.
    trusted: clean training data for unlearning.
    held: the defender's clean images for pruning.
    test: the images that judge.
    sources: as in `assess`.
    unlearning: its settings; default those of the paper.
    """
    _check_target(trigger, original)
    how = unlearning or Unlearning()
    plan: dict[str, tuple[Repair, list[Trigger], Labelled]] = {
        "unlearned, reversed": (how, [trigger], trusted),
        "unlearned, original": (how, [original], trusted),
        "unlearned, clean only": (how, [], trusted),
    }
    for layer in (models.LAST_HIDDEN, models.LAST_CONV):
        plan[f"pruned, {layer}"] = (Pruning(layer=layer), [trigger], held)
    columns = {"before": model}
    for name, (repair, triggers, (images, labels)) in plan.items():
        columns[name] = repair.fit(model, triggers, images, labels, seed=seed)
    wanted = None if sources is None else tuple(sources)
    return {
        name: assess(column, test, original, reversed_trigger=trigger, sources=wanted)
        for name, column in columns.items()
    }


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a score separates stamped test images of the source classes from clean ones.

    auc: against clean images of all classes but the target.
    auc_all: against all clean images.
    fnr: share of stamped images let through, at the threshold that rejects 5 % of the clean images that the
        score was fitted on.
    fpr: share of all clean test images rejected there.
    """

    auc: float
    auc_all: float
    fnr: metrics.Rate
    fpr: metrics.Rate


def input_scores(
    model: nn.Module,
    trigger: Trigger,
    original: Trigger,
    *,
    held: Labelled,
    test: Labelled,
    sources: Iterable[int] | None = None,
    strip: Strip | None = None,
) -> dict[str, Separation]:
    """The activation filter, S(x), STRIP, and the posterior of the target, which is their control.

    trigger: the recovered one, towards the class of `original`, the attacker's.
    held: the defender's clean images, which set every threshold.
    test: the images that judge.
    sources: as in `assess`.
    strip: its settings.
    """
    _check_target(trigger, original)
    (clean, _), (images, labels) = held, test
    target = original.target
    filters: dict[str, Filter] = {
        "activation filter": ActivationFilter(),
        "S(x)": KLScore(),
        "STRIP": strip or Strip(),
    }

    def posterior(x: Tensor) -> Tensor:
        return torch.softmax(models.logits(model, x), 1)[:, target]

    scores = {name: how.fit(model, [trigger], clean) for name, how in filters.items()}
    scores["posterior of the target"] = InputScore(score=posterior, clean_scores=posterior(clean))
    away, stamped = labels != target, original(images[metrics.of_sources(labels, target, sources)])
    return {name: _separation(score, stamped, images, away) for name, score in scores.items()}


def _separation(score: InputScore, stamped: Tensor, clean: Tensor, away: Tensor) -> Separation:
    bad, good, threshold = score.score(stamped), score.score(clean), score.threshold()
    return Separation(
        auc=metrics.auc(bad, good[away]),
        auc_all=metrics.auc(bad, good),
        fnr=metrics.rate(bad <= threshold),
        fpr=metrics.rate(good > threshold),
    )


def _check_target(trigger: Trigger, original: Trigger) -> None:
    if trigger.target != original.target:
        found, true = trigger.target, original.target
        raise ValueError(f"the recovered trigger leads to class {found}, the attacker's to {true}")
