"""Detectors: frozen settings with `scan(model, clean images) -> Scan`.

Estimation only: a verdict is for `anomaly`, which may judge any detector's norms.
"""

from .b3d import B3D
from .b3d_ss import B3DSS
from .base import Detector, Needs
from .margins import MMBD
from .masked_lred import MaskedLRED
from .neural_cleanse import LowCost, NeuralCleanse
from .red import LRED, PRED, URED, SurrogateRED
from .registry import DETECTORS, PRESETS, from_words, named
from .scan import Scan
from .tabor import TaborStyle
from .usb import USB

__all__ = [
    "B3D",
    "B3DSS",
    "DETECTORS",
    "LRED",
    "MMBD",
    "PRED",
    "PRESETS",
    "URED",
    "USB",
    "Detector",
    "LowCost",
    "MaskedLRED",
    "Needs",
    "NeuralCleanse",
    "Scan",
    "SurrogateRED",
    "TaborStyle",
    "from_words",
    "named",
]
