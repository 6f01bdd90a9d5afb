"""Mitigations: from recovered triggers to a score for inputs, or to a repaired classifier.

Each is a frozen dataclass of settings with `fit`. A `Filter` (ActivationFilter, KLScore, Strip) watches the
inputs, a `Repair` (Unlearning, Pruning, PatchEveryLabel, DetectAndPatch) changes the model; all filters are
called alike, and all repairs. A Trigger is `recovered(scan, target)`, or for controls `Trigger(attack.embed,
attack.target)`. Nothing here sees a triggered image that the defender could not have made, except `evaluate`.

    >>> trigger = recovered(scan, target=3)
    >>> patched = Unlearning().fit(model, [trigger], *trusted)
"""

from .activation_filter import ActivationFilter
from .activation_gap import activation_gap, top
from .base import Filter, InputScore, Repair, Trigger, recovered, triggers_of
from .detect_and_patch import DetectAndPatch, Round
from .evaluate import Outcome, Separation, assess, input_scores, repairs
from .kl_score import KLScore, kl_score
from .patch_every_label import PatchEveryLabel
from .pruning import Pruned, Pruning, curve
from .strip import Strip
from .unlearning import PatchSet, Unlearning

__all__ = [
    "ActivationFilter",
    "DetectAndPatch",
    "Filter",
    "InputScore",
    "KLScore",
    "Outcome",
    "PatchEveryLabel",
    "PatchSet",
    "Pruned",
    "Pruning",
    "Repair",
    "Round",
    "Separation",
    "Strip",
    "Trigger",
    "Unlearning",
    "activation_gap",
    "assess",
    "curve",
    "input_scores",
    "kl_score",
    "recovered",
    "repairs",
    "top",
    "triggers_of",
]
