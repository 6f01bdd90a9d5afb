"""Attacks: `embed` puts a trigger on images, `poison` makes a training set, `train` a model."""

from .additive import Additive, Chessboard, Cross, Global, LocalChessboard, LocalSquare, LShape, SinglePixel
from .badnets import BadNets, Blended
from .base import Attack, AttackError, Job, Needs, PoisonedSet, SingleAttack, describe
from .combined import Combined, nine_triggers, several_labels
from .gallery import gallery, needs_table
from .groups import group
from .input_aware import InputAware
from .label_consistent import LabelConsistent
from .latent import Latent
from .trojan import Trojan

__all__ = [
    "Additive",
    "Attack",
    "AttackError",
    "BadNets",
    "Blended",
    "Chessboard",
    "Combined",
    "Cross",
    "Global",
    "InputAware",
    "Job",
    "LShape",
    "LabelConsistent",
    "Latent",
    "LocalChessboard",
    "LocalSquare",
    "Needs",
    "PoisonedSet",
    "SingleAttack",
    "SinglePixel",
    "Trojan",
    "describe",
    "gallery",
    "group",
    "needs_table",
    "nine_triggers",
    "several_labels",
]
