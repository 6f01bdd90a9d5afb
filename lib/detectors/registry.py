"""Every detector by name, and its presets: the settings of the papers and of their released code.

The command line, grids, reports, the comparison chapter and the tests that every detector must pass read from
here; a new detector needs its line in DETECTORS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..settings import check_names, from_text, shown
from . import b3d, b3d_ss, neural_cleanse, tabor, usb
from .b3d import B3D
from .b3d_ss import B3DSS
from .base import Detector
from .margins import MMBD
from .masked_lred import MaskedLRED
from .neural_cleanse import LowCost, NeuralCleanse
from .red import LRED, PRED, URED, SurrogateRED
from .tabor import TaborStyle
from .usb import USB

DETECTORS: dict[str, type[Detector]] = {
    "p-red": PRED,
    "u-red": URED,
    "l-red": LRED,
    "surrogate-red": SurrogateRED,
    "neural-cleanse": NeuralCleanse,
    "nc-low-cost": LowCost,
    "tabor-style": TaborStyle,
    "usb": USB,
    "masked-l-red": MaskedLRED,
    "b3d": B3D,
    "b3d-ss": B3DSS,
    "mm-bd": MMBD,
}
PRESETS: dict[str, Detector] = {
    **neural_cleanse.PRESETS,
    **tabor.PRESETS,
    **usb.PRESETS,
    **b3d.PRESETS,
    **b3d_ss.PRESETS,
}


def named(name: str, **settings: Any) -> Detector:
    """A detector or a preset by name, with other settings: `named("l-red", pi=0.8)`.

    Raises ValueError naming what is allowed.
    """
    kind = _kind(name)
    check_names(kind, sorted(settings), name=name)
    return replace(PRESETS[name], **settings) if name in PRESETS else kind(**settings)  # type: ignore[type-var]


def from_words(name: str, settings: Mapping[str, str] | None = None) -> tuple[str, Detector]:
    """The registered name and the detector; `name` may leave out dashes, settings are text.

    Raises ValueError naming what is allowed.
    """
    plain = {_bare(known): known for known in (*DETECTORS, *PRESETS)}
    known = plain.get(_bare(name), name)
    return known, named(known, **from_text(_kind(known), dict(settings or {}), name=known))


def _kind(name: str) -> type[Detector]:
    if name in DETECTORS:
        return DETECTORS[name]
    if name in PRESETS:
        return type(PRESETS[name])
    raise ValueError(f"no detector {shown(name)}: allowed are {', '.join((*DETECTORS, *PRESETS))}")


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
