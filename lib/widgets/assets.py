"""What every explorer is made of: its script in one file, its numbers in one buffer.

The scripts beside this file are ES modules that import one another, so tools can read and lint them.
anywidget hands the browser one module, so `script` puts the shared modules before the explorer's own and
drops the imports between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

HERE = Path(__file__).parent
SHARED = ("maths", "controls")
LIMIT = 1_500_000  # bytes of one explorer; a page of several stays below 2 MB


class Explorer(anywidget.AnyWidget):
    """Settings and names as JSON in `data`, numbers in `buffer`, as `pack` lays them out."""

    _css = (HERE / "explorer.css").read_text()
    data = traitlets.Dict().tag(sync=True)
    buffer = traitlets.Bytes().tag(sync=True)


@cache
def script(name: str) -> str:
    """<name>.js with the shared modules it imports, as one ES module."""
    text = (HERE / f"{name}.js").read_text()
    shared = [(HERE / f"{s}.js").read_text() for s in SHARED if f'"./{s}.js"' in text]
    whole = "\n".join([*(re.sub(r"^export ", "", part, flags=re.M) for part in shared), text])
    return re.sub(r'^import [^;]*from "\./\w+\.js";\n', "", whole, flags=re.M)


def pack(
    arrays: Mapping[str, np.ndarray], *, coarse: Mapping[str, int] | None = None
) -> tuple[dict[str, Any], bytes]:
    """Index and bytes of named arrays; `unpack` in controls.js reads them.

    arrays: they go as float32, but for
    coarse: names to bits, 8 or 16: those go as whole numbers over their range, zero staying exactly zero, for
        pictures and curves that nobody reads digits from.
    """
    index: dict[str, Any] = {}
    parts: list[bytes] = []
    at = 0
    for name, values in arrays.items():
        x = np.asarray(values, dtype=np.float64)
        bits = (coarse or {}).get(name)
        raw, scale, shift = _coarse(x, bits) if bits else (x.astype("<f4"), 1.0, 0.0)
        where = {"type": str(raw.dtype), "shape": list(raw.shape), "at": at}
        index[name] = {**where, "scale": scale, "shift": shift}
        parts.append(raw.tobytes())
        at += raw.nbytes
    return index, b"".join(parts)


def _coarse(x: np.ndarray, bits: int) -> tuple[np.ndarray, float, float]:
    top = 2**bits - 1
    kind = {8: np.uint8, 16: np.uint16}[bits]
    if x.min() < 0:  # symmetric, so that zero is a level
        size, zero = float(np.abs(x).max()), top // 2
        return np.round(x / size * zero + zero).astype(kind), size / zero, -size
    size = float(x.max()) or 1.0
    return np.round(x / size * top).astype(kind), size / top, 0.0


def explorer(
    name: str,
    data: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    coarse: Mapping[str, int] | None = None,
) -> Explorer:
    """The explorer that <name>.js draws; it needs no kernel.

    data: settings and names, JSON-ready.
    arrays, coarse: as for `pack`.
    Raises ValueError when its state is too large for a page.
    """
    index, buffer = pack(arrays or {}, coarse=coarse)
    kind = type(f"{name.title()}Explorer", (Explorer,), {"_esm": script(name)})
    return checked(kind(data={**data, "index": index}, buffer=buffer))


def state_bytes(made: Explorer) -> int:
    """Bytes that an explorer adds to a page: script, style, settings, and its buffer in base64."""
    texts = (str(made._esm), str(made._css), json.dumps(made.data))
    return sum(map(len, texts)) + -(-len(made.buffer) // 3) * 4


def checked(made: Explorer) -> Explorer:
    """The explorer itself. Raises ValueError when its state is too large for a page."""
    size = state_bytes(made)
    if size > LIMIT:
        raise ValueError(
            f"the explorer's state has {size:,} bytes: at most {LIMIT:,} fit a page; "
            "record fewer classes, runs or frames"
        )
    return made


def held(x: np.ndarray) -> np.ndarray:
    """A trajectory, steps first, in which a search that has retired (NaN) holds its last value."""
    out = x.copy()
    for i in range(1, len(out)):
        gone = np.isnan(out[i])
        out[i][gone] = out[i - 1][gone]
    return out
