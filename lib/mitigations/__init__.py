"""Mitigations: from a recovered trigger to a score for inputs, or to a repaired copy of the classifier.

Each is a frozen dataclass of settings with `fit`. A trigger is any function on images: `recovered(scan,
target)` for mask-and-pattern and additive scans alike, `attack.embed` for controls. Nothing here sees a
triggered image that the defender could not have made.
"""

from .activation_filter import ActivationFilter
from .base import Embed, Outcome, assess, recovered
from .compare import Separation, input_scores, repairs
from .every_label import PatchEveryLabel
from .layers import LAST_CONV, LAST_HIDDEN, Site, activation_gap, activations, find, silence, top
from .pruning import Pruned, Pruning, curve
from .rejection import Rejection, kl_score
from .rounds import DetectAndPatch, Round
from .scores import InputScore
from .unlearning import PatchSet, Unlearning

__all__ = [
    "LAST_CONV",
    "LAST_HIDDEN",
    "ActivationFilter",
    "DetectAndPatch",
    "Embed",
    "InputScore",
    "Outcome",
    "PatchEveryLabel",
    "PatchSet",
    "Pruned",
    "Pruning",
    "Rejection",
    "Round",
    "Separation",
    "Site",
    "Unlearning",
    "activation_gap",
    "activations",
    "assess",
    "curve",
    "find",
    "input_scores",
    "kl_score",
    "recovered",
    "repairs",
    "silence",
    "top",
]
