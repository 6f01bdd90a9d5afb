"""Explorers of recorded frames: attacks over a grid, Neural Cleanse's mask,
B3D's search distribution, pruning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lib.detectors import Scan

from .assets import Explorer, build, held

Curve = Sequence[float] | np.ndarray | Tensor
FRAMES = 60  # pictures kept of a recorded search


def attack_explorer(
    images: Tensor,
    where: Tensor,
    *,
    amplitudes: Sequence[int],
    counts: Sequence[int],
    asr: np.ndarray,
    cta: np.ndarray,
    names: Sequence[str],
    target: str,
    stamped: int,
    tested: int,
) -> Explorer:
    """Amplitude and number of poisoned images against success (recorded)
    and visibility (computed in the page).

    images: (N, C, H, W) in [0, 1], one per name; where: (C, H, W), the pattern at amplitude one level, in
    levels (0 and 1 for most). asr, cta: (amplitudes, counts). stamped, tested: test images behind each ASR
    and CTA. Raises ValueError when shapes disagree.
    """
    grid = (len(amplitudes), len(counts))
    if asr.shape != grid or cta.shape != grid or len(names) != len(images) or where.shape != images.shape[1:]:
        raise ValueError(
            f"asr {asr.shape}, cta {cta.shape}, images {tuple(images.shape)}, where {tuple(where.shape)}, "
            f"{len(names)} names: {grid}, {grid}, (N, C, H, W), (C, H, W) and N names are needed"
        )
    data = {
        "amplitudes": list(amplitudes),
        "counts": list(counts),
        "names": list(names),
        "target": target,
        "stamped": stamped,
        "tested": tested,
    }
    arrays = {"images": images.numpy(), "where": where.numpy(), "asr": asr, "cta": cta}
    return build("attack", data, arrays)


def mask_explorer(
    scan: Scan, *, targets: Mapping[int, str], title: str = "Neural Cleanse: the mask over its rounds"
) -> Explorer:
    """The mask of a mask-based search over its rounds, and the kept pattern behind it.

    scan: with record_every >= 1: a trajectory of `mask` (frames, K, H, W), and of `norm` and `Q` (rounds, K).
    The last frame is what the scan kept. targets: class -> words for the choice. Raises ValueError for a scan
    that recorded nothing.
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
    """
    of = list(targets)
    rounds, path = _path(scan, of, "mask")
    asked = held(scan.trajectory["queries"].numpy())[
        np.minimum(rounds, len(scan.trajectory["queries"]) - 1)
    ].max(1)
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

    curves: layer (the choice) -> "share" and the names of rates -> values in [0, 1],
    all of a layer equally many.
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
    padded = {
        f"rate{j}": np.array(
            [np.pad(c[name], (0, longest - len(c[name])), mode="edge") for c in columns.values()]
        )
        for j, name in enumerate(names)
    }
    series = [_rate(name, f"rate{j}") for j, name in enumerate(names)]
    percent = [np.round(100 * c["share"], 1) for c in columns.values()]
    layers = dict(enumerate(columns))
    return _frames(
        title, padded, series, layers, percent, "Share pruned", unit=" %", choose="Layer", start="begin"
    )


def _rate(name: str, array: str) -> dict[str, Any]:
    return {"name": name, "array": array, "max": 1}


def _size(name: str, array: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {"name": name, "array": array, "max": float(arrays[array].max())}


def _path(scan: Scan, of: Sequence[int], *pictures: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rounds of at most FRAMES frames, and the trajectory there, targets first;
    the last frame is what the scan kept.
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
    data = {
        "title": title,
        "axis": axis,
        "unit": unit,
        "choose": choose,
        "start": start,
        "variants": list(variants.values()),
        "steps": [steps.tolist()] * len(variants)
        if isinstance(steps, np.ndarray)
        else [s.tolist() for s in steps],
        "series": series,
        "panels": [{"name": name, "array": key} for name, key in panels],
        "sample": dict(sample) if sample else None,
    }
    pictures = {key for _, key in panels} | set((sample or {}).values())
    return build("frames", data, arrays, coarse=dict.fromkeys(pictures, 8))
