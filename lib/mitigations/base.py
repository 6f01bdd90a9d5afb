"""What every mitigation shares: the trigger that it begins with, and the two ways to end.

A mitigation never asks how its triggers were made. `recovered(scan, target)` is a scan's, be it a mask and a
pattern or an additive pattern v; `Trigger(attack.embed, attack.target)` is the attacker's own, for controls.

    >>> trigger = recovered(scan, target=3)
    >>> ActivationFilter().fit(model, [trigger], held.images).rejects(inputs)  # a Filter
    >>> patched = Unlearning().fit(model, [trigger], *trusted)  # a Repair
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ..data import Labelled
from ..detectors.scan import Scan
from ..metrics import threshold_at
from ..models import check_images
from ..settings import Settings


@dataclass(frozen=True)
class Trigger:
    """A trigger and the class that it leads to; called with images, it puts itself on them.

    embed: images (N, C, H, W) in [0, 1] -> the same images with the trigger on.
    target: the class.
    """

    embed: Callable[[Tensor], Tensor] = field(repr=False)
    target: int

    def __call__(self, images: Tensor) -> Tensor:
        return self.embed(images)


def recovered(scan: Scan, target: int) -> Trigger:
    """The trigger that a scan recovered for a class.

    Raises ValueError for a class that the scan does not have.
    """
    if not 0 <= target < scan.n_classes:
        raise ValueError(f"target = {target}: the scan has classes 0 to {scan.n_classes - 1}")
    return Trigger(partial(scan.embed, target=target), target)


def triggers_of(scan: Scan) -> list[Trigger]:
    """The trigger that a scan recovered for each of its classes, in their order."""
    return [recovered(scan, target) for target in range(scan.n_classes)]


def check_triggers(triggers: Sequence[Trigger], *, needed: bool = True) -> None:
    """Raise ValueError unless `triggers` is a list or tuple of them, and if `needed` not empty."""
    wanted = "a sequence of triggers is needed, such as [recovered(scan, target)]"
    if not isinstance(triggers, Sequence):
        raise ValueError(f"triggers is of type {type(triggers).__name__}: {wanted}")
    for i, trigger in enumerate(triggers):
        if not isinstance(trigger, Trigger):
            raise ValueError(f"triggers[{i}] is of type {type(trigger).__name__}: {wanted}")
    if needed and not triggers:
        raise ValueError("there are no triggers: at least one is needed")


@dataclass(frozen=True, kw_only=True)
class InputScore:
    """A score for single inputs, larger = more suspect; clean images alone decide its threshold.

    score: images (N, C, H, W) -> (N,).
    clean_scores: the scores of the clean images that it was fitted on.
    """

    score: Callable[[Tensor], Tensor]
    clean_scores: Tensor

    def threshold(self, fpr: float = 0.05) -> float:
        """The smallest threshold that rejects at most a share `fpr` of the clean images."""
        return threshold_at(self.clean_scores, fpr)

    def rejects(self, images: Tensor, *, fpr: float = 0.05) -> Tensor:
        """(N,) boolean: is the score above the threshold?"""
        return self.score(images) > self.threshold(fpr)


class Filter(Protocol):
    """A way to watch the inputs and leave the model as it is."""

    def fit(self, model: nn.Module, triggers: Sequence[Trigger], images: Tensor) -> InputScore:
        """A score for inputs of `model`; with several triggers, the largest of their scores.

        triggers: the reversed ones, at least one, unless the filter needs none.
        images: the defender's clean ones, (N, C, H, W); the threshold comes from them.
        Raises ValueError for anything else.
        """


class Repair(Settings, ABC):
    """A way to change the model and leave the inputs as they are; a subclass says how in `repaired`."""

    takes_none: ClassVar[bool] = False  # does it do something without a trigger?

    def fit(
        self,
        model: nn.Module,
        triggers: Sequence[Trigger],
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> nn.Module:
        """A repaired copy of `model`, in evaluation mode; the model given stays as it was.

        triggers: the reversed ones.
        images, labels: clean data that the defender trusts, (N, C, H, W) and (N,).
        seed: of whatever is drawn.
        Raises ValueError for anything else.
        """
        check_triggers(triggers, needed=not self.takes_none)
        check_images(images, labels)
        return self.repaired(model, triggers, Labelled(images, labels), seed, progress).eval()

    @abstractmethod
    def repaired(
        self, model: nn.Module, triggers: Sequence[Trigger], data: Labelled, seed: int, progress: bool
    ) -> nn.Module:
        """The copy, from arguments that were checked."""
