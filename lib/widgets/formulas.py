"""Explorers that compute everything in the page:
the weights of Eq. (8), and the Gamma test of L-RED Sec. 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lib import anomaly

from .assets import Explorer, build


def weights_explorer(
    q: Sequence[float] | torch.Tensor, *, names: Sequence[str] | None = None, n: int = 8
) -> Explorer:
    """Sliders for q and T, bars for w: Eqs. (7) and (8).

    q: shares to start from, (S,), in [0, 1]; names: of the S source classes; n:
    images per class, so q moves in steps of 1/n.
    """
    shares = [float(x) for x in q]
    labels = [str(s) for s in range(len(shares))] if names is None else list(names)
    if len(shares) < 2 or not all(0 <= x <= 1 for x in shares) or len(labels) != len(shares):
        raise ValueError(
            f"q = {shares}, names = {labels}: two or more shares in [0, 1] and as many names are needed"
        )
    return build("weights", {"q": shares, "names": labels, "n": int(n)})


def gamma_explorer(
    statistics: Mapping[str, torch.Tensor | np.ndarray],
    *,
    classes: Sequence[str] | None = None,
    level: float = 0.05,
) -> Explorer:
    """Drag one of the statistics r_t = 1 / ||v_t||, see the Gamma fit and the p-value follow.

    statistics: name (such as "attacked classifier") -> r, (K,), all of the same K >= 3. Raises AnomalyError
    for statistics that have no p-value.
    """
    examples = []
    for name, r in statistics.items():
        values = np.asarray(r.detach().cpu() if isinstance(r, torch.Tensor) else r, dtype=float)
        anomaly.gamma(values, level=level)
        examples.append({"name": name, "r": values.tolist()})
    sizes = {len(e["r"]) for e in examples}
    if len(sizes) != 1:
        raise ValueError(f"statistics of {sorted(sizes)} classes: one number of classes is needed")
    k = sizes.pop()
    labels = [str(c) for c in range(k)] if classes is None else list(classes)
    if len(labels) != k:
        raise ValueError(f"{len(labels)} class names for {k} statistics")
    rate = anomaly.gamma_false_positive_rate(k, level)
    return build("gamma", {"classes": labels, "examples": examples, "level": level, "rate": rate})


def format_p(log_p: float) -> str:
    """exp(log_p) in two digits, also where it underflows, as the explorers write it:
    "0.031", "8.5e-9", "1.2e-412".
    """
    if math.isinf(log_p) or math.isnan(log_p):
        return "0" if log_p < 0 else "not defined"
    ten = log_p / math.log(10)
    if ten > -3:
        return _two_digits(math.exp(log_p))
    power = math.floor(ten)
    lead = 10 ** (ten - power)
    if lead >= 9.95:
        lead, power = 1.0, power + 1
    return f"{lead:.1f}e{power}"


def _two_digits(x: float) -> str:
    """Two significant digits, trailing zeros kept, as JavaScript's toPrecision writes them (x in [1e-3, 1])."""
    return f"{x:#.2g}".rstrip(".")
