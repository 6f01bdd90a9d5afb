"""Detectors: frozen settings, `scan(model, clean images) -> Scan`. Estimation only;
verdicts are in `lib.anomaly`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from . import neural_cleanse, tabor, usb
from .b3d import B3D
from .b3d_ss import B3DSS
from .blackbox import Queries, QueryBudgetError, black_box, of_module, of_onnx
from .masked_lred import MaskedLRED
from .neural_cleanse import LowCost, NeuralCleanse
from .red import LRED, PRED, URED, SurrogateRED
from .scan import Cost, Detector, Scan
from .strip import Strip
from .tabor import TaborStyle
from .usb import USB

DETECTORS: dict[str, Callable[..., Detector]] = {
    "p-red": PRED,
    "u-red": URED,
    "l-red": LRED,
    "surrogate-red": SurrogateRED,
    "neural-cleanse": NeuralCleanse,
    "tabor-style": TaborStyle,
    "usb": USB,
    "masked-l-red": MaskedLRED,
    "b3d": B3D,
    "b3d-ss": B3DSS,
}

# Settings of the papers, and of their released code, by name; see each module.
PRESETS: dict[str, Any] = neural_cleanse.PRESETS | tabor.PRESETS | usb.PRESETS


def build(name: str, **settings: Any) -> Detector:
    """A detector or a preset by name, with other settings. Raises ValueError naming what is allowed."""
    if name not in DETECTORS and name not in PRESETS:
        raise ValueError(
            f"no detector {name!r}: allowed are {', '.join(dict.fromkeys([*DETECTORS, *PRESETS]))}"
        )
    kind = DETECTORS[name] if name in DETECTORS else type(PRESETS[name])
    allowed = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}: allowed are {', '.join(allowed)}")
    return kind(**settings) if name in DETECTORS else replace(PRESETS[name], **settings)


__all__ = [
    "B3D",
    "B3DSS",
    "DETECTORS",
    "LRED",
    "PRED",
    "PRESETS",
    "URED",
    "USB",
    "Cost",
    "Detector",
    "LowCost",
    "MaskedLRED",
    "NeuralCleanse",
    "Queries",
    "QueryBudgetError",
    "Scan",
    "Strip",
    "SurrogateRED",
    "TaborStyle",
    "black_box",
    "build",
    "of_module",
    "of_onnx",
]
