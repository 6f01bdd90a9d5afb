"""The Gamma explorer: drag one of the statistics, and see the fit and the p-value follow.

The page fits and tests by itself, with the numbers of `anomaly.gamma`. Source: "L-RED: Efficient Post-Training
Detection of Imperceptible Backdoor Attacks without Access to the Training Set" (Xiang et al. 2021), Sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .. import anomaly
from .assets import Explorer, explorer


def gamma_explorer(
    statistics: Mapping[str, torch.Tensor | np.ndarray],
    *,
    classes: Sequence[str] | None = None,
    level: float = 0.05,
) -> Explorer:
    """Drag one of the statistics r_t = 1 / ||v_t||, and see the Gamma fit and the p-value follow.

        gamma_explorer({"attacked classifier": scan.statistics})

    statistics: name, such as "attacked classifier" -> r, (K,), all of the same K >= 3.
    classes: names of the K classes; default: their numbers.
    level: below this p-value a classifier is called attacked.
    Raises AnomalyError for statistics that have no p-value.
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
    return explorer("gamma", {"classes": labels, "examples": examples, "level": level, "rate": rate})
