"""Explorers of recorded frames: Neural Cleanse's mask, B3D's search distribution, pruning.

Sources: Neural Cleanse (Wang et al. 2019), "Black-box Detection of Backdoor Attacks with Limited Information
and Data" (B3D, Dong et al. 2021). B3D's triggers are drawn in the page, from the distribution that is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..detectors import Scan
from .assets import Explorer, explorer, held

Curve = Sequence[float] | np.ndarray | Tensor
FRAMES = 60  # pictures kept of a recorded search


def mask_explorer(
    scan: Scan, *, targets: Mapping[int, str], title: str = "Neural Cleanse: the mask over its rounds"
) -> Explorer:
    """The mask of a mask-based search over its rounds, and the kept pattern behind it.

        mask_explorer(replace(detector, record_every=4).scan(model, clean), targets={0: "the target"})

    scan: with record_every >= 1: a trajectory of `mask` (frames, K, H, W), and of `norm` and `Q` (rounds, K).
        The last frame is what the scan kept.
    targets: class -> words for the choice.
    Raises ValueError for a scan that recorded nothing.
    """
    rounds, path = _path(scan, list(targets), "mask")
    mask = path["mask"][:, :, None]
    arrays = {
        "mask": mask,
        "acts": mask * scan.pattern.numpy()[list(targets)][:, None],
        "norm": path["norm"],
        "Q": path["Q"],
    }
    series = [_rate("success", "Q"), _size("L1 norm of the mask", "norm", arrays)]
    panels = [("mask", "mask"), ("mask × kept pattern", "acts")]
    return _frames(title, arrays, series, targets, rounds, "Round", panels=panels)


def search_explorer(
    scan: Scan, *, targets: Mapping[int, str], title: str = "B3D: the search distribution"
) -> Explorer:
    """The mean of B3D's mask distribution over its queries; triggers are drawn from it in the page.

    scan: as for `mask_explorer`, with `queries` (rounds, K) in its trajectory; its `mask` is g(theta_m), the
        probability that a pixel is replaced. Drawn triggers have the kept pattern.
    targets: class -> words for the choice.
    """
    of = list(targets)
    rounds, path = _path(scan, of, "mask")
    queries = held(scan.trajectory["queries"].numpy())
    asked = queries[np.minimum(rounds, len(queries) - 1)].max(1)
    mask, kept = path["mask"][:, :, None], scan.pattern.numpy()[of][:, None]
    arrays = {
        "mask": mask,
        "pattern": np.broadcast_to(kept, (len(of), mask.shape[1], *kept.shape[2:])),
        "norm": path["norm"],
        "Q": path["Q"],
    }
    series = [_rate("success", "Q"), _size("expected size of the mask", "norm", arrays)]
    panels = [("probability of the mask", "mask")]
    sample = {"mask": "mask", "pattern": "pattern"}
    return _frames(
        title, arrays, series, targets, asked, "Queries, all classes", panels=panels, sample=sample
    )


def pruning_explorer(
    curves: Mapping[str, Mapping[str, Curve]], *, title: str = "Pruning: success against accuracy"
) -> Explorer:
    """Share of pruned neurons against rates.

        pruning_explorer({"last hidden": {"share": [0, 0.5, 1], "clean accuracy": [0.97, 0.9, 0.1]}})

    curves: layer (the choice) -> "share" and the names of rates -> values in [0, 1], all of a layer equally
        many.
    """
    columns = {
        layer: {name: np.asarray(values, dtype=float) for name, values in c.items()}
        for layer, c in curves.items()
    }
    for layer, c in columns.items():
        if "share" not in c or len({len(values) for values in c.values()}) != 1:
            raise ValueError(f"curves of {layer!r}: 'share' and rates of the same length are needed")
    names = [name for name in next(iter(columns.values())) if name != "share"]
    longest = max(len(c["share"]) for c in columns.values())

    def padded(name: str) -> np.ndarray:
        """A rate of every layer, (layers, longest): a shorter curve keeps its last value."""
        rates = [c[name] for c in columns.values()]
        return np.array([np.pad(r, (0, longest - len(r)), mode="edge") for r in rates])

    arrays = {f"rate{j}": padded(name) for j, name in enumerate(names)}
    series = [_rate(name, f"rate{j}") for j, name in enumerate(names)]
    percent = [np.round(100 * c["share"], 1) for c in columns.values()]
    layers = dict(enumerate(columns))
    return _frames(
        title, arrays, series, layers, percent, "Share pruned", unit=" %", choose="Layer", start="begin"
    )


def _rate(name: str, array: str) -> dict[str, Any]:
    return {"name": name, "array": array, "max": 1}


def _size(name: str, array: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {"name": name, "array": array, "max": float(arrays[array].max())}


def _path(scan: Scan, of: Sequence[int], *pictures: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rounds of at most FRAMES frames, and the trajectory there.

    of: the classes, which come first in its arrays.
    pictures: what was recorded in frames, where `norm` and `Q` were in every round.
    The last frame is what the scan kept.
    """
    every = int(scan.settings.get("record_every", 0))
    missing = [n for n in (*pictures, "norm", "Q") if n not in scan.trajectory]
    if missing or every < 1:
        raise ValueError(
            f"{scan.detector}'s trajectory lacks {', '.join(missing) or 'frames'}: scan with record_every >= 1"
        )
    n = len(scan.trajectory[pictures[0]])
    keep = np.unique(np.linspace(0, n - 1, min(n, FRAMES)).round().astype(int))
    kept = {"mask": scan.mask, "pattern": scan.pattern, "norm": scan.norms, "Q": scan.success}
    path = {}
    for name in (*pictures, "norm", "Q"):
        frames = held(scan.trajectory[name].numpy())[keep if name in pictures else keep * every]
        last = kept[name]
        assert last is not None
        path[name] = np.concatenate([frames, last.numpy()[None]]).swapaxes(0, 1)[of]
    return np.append(keep * every, len(scan.trajectory["norm"])), path


def _frames(
    title: str,
    arrays: Mapping[str, np.ndarray],
    series: list[dict[str, Any]],
    variants: Mapping[int, str],
    steps: np.ndarray | Sequence[np.ndarray],
    axis: str,
    *,
    panels: Sequence[tuple[str, str]] = (),
    sample: Mapping[str, str] | None = None,
    unit: str = "",
    choose: str = "Putative target class",
    start: str = "end",
) -> Explorer:
    """An explorer of frames.js.

    arrays: pictures (variants, frames, C, H, W), and curves (variants, frames).
    series: the curves; panels: names and arrays of the pictures.
    variants: words for the choice that `choose` names.
    steps: where on the axis each frame stands, for all variants or one by one.
    sample: arrays to draw a trigger from; start: the frame to begin with, "begin" or "end".
    """
    each = [steps] * len(variants) if isinstance(steps, np.ndarray) else steps
    data = {
        "title": title,
        "axis": axis,
        "unit": unit,
        "choose": choose,
        "start": start,
        "variants": list(variants.values()),
        "steps": [s.tolist() for s in each],
        "series": series,
        "panels": [{"name": name, "array": key} for name, key in panels],
        "sample": dict(sample) if sample else None,
    }
    pictures = {key for _, key in panels} | set((sample or {}).values())
    return explorer("frames", data, arrays, coarse=dict.fromkeys(pictures, 8))
