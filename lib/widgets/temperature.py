"""The temperature explorer: recorded runs of L-RED, and with a kernel runs of the reader's own.

What differs between runs is the schedule of T, Eq. (7) of "L-RED: Efficient Post-Training Detection of
Imperceptible Backdoor Attacks without Access to the Training Set" (Xiang et al. 2021). A run of the reader's
goes on in a thread; it is asked to stop before every step, so Stop, or the next run, ends it within one step.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import traitlets
from torch import Tensor, nn
from tqdm import tqdm

from ..detectors import LRED, Scan
from ..detectors.lred_annealing import Schedule, schedule
from .assets import Explorer, checked, held, pack, script

SCHEDULES: Mapping[str, str] = {
    "paper, T = −log Q": "paper",
    "hard, T = 0": "hard",
    "uniform, T = ∞": "uniform",
    "constant, T = 0.3": "constant:0.3",
    "linear, 2 to 0 in 60 steps": "linear:2,60",
    "geometric, 2 · 0.95^step": "geometric:2,0.95",
    "by hand, two plateaus": "2, 2, 2, 2, 1.9, 1, 0.6, 0.6, 0.6, 0.5, 0.25, 0.2, 0.2, 0.2",
}
PICTURES = 600_000  # bytes of an explorer's pattern frames; frames are left out where there are more
# Iterations that a drawn schedule spans where nothing was recorded; it holds its last temperature afterwards.
HORIZON = 80


def parse(text: str, horizon: int = HORIZON) -> Schedule:
    """The schedule that a reader typed.

    text: a name of `lred_annealing.schedule`, or temperatures with commas between (two or more), which are
        spread evenly over `horizon` iterations, straight lines between them.
    Raises ValueError, naming what is allowed.
    """
    parts = text.split(",")
    if ":" in text or len(parts) < 2:
        try:
            return schedule(float(text))
        except ValueError:
            return schedule(text.strip())
    try:
        drawn = np.array([float(p) for p in parts])
    except ValueError:
        raise ValueError(f"{text!r} is neither a schedule's name nor numbers with commas between") from None
    if not (np.isfinite(drawn).all() and (drawn >= 0).all()):
        raise ValueError(f"temperatures {text!r}: numbers >= 0 are needed")
    at = np.linspace(0, horizon, len(drawn))
    return lambda success, step: torch.full_like(success, float(np.interp(step, at, drawn)))


def record(
    model: nn.Module,
    clean: Tensor,
    *,
    detector: LRED | None = None,
    schedules: Mapping[str, str] = SCHEDULES,
    progress: bool = False,
) -> dict[str, Scan]:
    """Scans of L-RED with their trajectories, one per schedule, by name.

    clean: (K, n, C, H, W).
    detector: settings of the runs; default: those of the paper, every fourth pattern recorded.
    schedules: name -> text for `parse`. Temperatures with commas between span as many iterations as the first
        schedule's run took.
    """
    base = detector or LRED(record_every=4)
    base = replace(base, record_every=base.record_every or 4)
    scans: dict[str, Scan] = {}
    for name, text in tqdm(schedules.items(), desc="schedules", disable=not progress, leave=False):
        horizon = _steps(next(iter(scans.values()))) if scans else HORIZON
        scans[name] = replace(base, schedule=parse(text, horizon)).scan(model, clean)
    return scans


def _steps(scan: Scan) -> int:
    """Iterations until the last search of a scan ended."""
    return max(1, len(scan.trajectory["Q"]) - 1)


class TemperatureExplorer(Explorer):
    """Plays recorded runs; holds a model and clean images when it may run more."""

    _esm = script("temperature")
    running = traitlets.Unicode("")  # the schedule under way, for Python alone

    def __init__(
        self, scans: Mapping[str, Scan], settings: Mapping[str, Any], again: Callable[..., Scan] | None
    ) -> None:
        self._scans, self._settings, self._again = dict(scans), dict(settings), again
        self._run, self._lock = 0, threading.Lock()
        data, buffer = _state(self._scans, self._settings)
        super().__init__(data=data, buffer=buffer)
        self.on_msg(lambda _, content, __: self._asked(content))

    def _asked(self, content: Mapping[str, Any]) -> None:
        kind = content.get("type")
        if kind == "hello" and self._again is not None:
            self.send({"type": "ready"})
        elif kind == "run":
            self.run(str(content.get("schedule", "")))
        elif kind == "stop":
            self.stop()

    def run(self, text: str) -> threading.Thread | None:
        """Run L-RED under the schedule `text` in a thread; a run under way is cancelled.

        None: the schedule was refused, and the front end told why. Raises ValueError without a model.
        """
        if self._again is None:
            raise ValueError("this explorer plays recorded runs: give it model and clean to run others")
        try:
            temperatures = parse(text, _steps(next(iter(self._scans.values()))))
        except ValueError as error:
            self.send({"type": "ended", "text": str(error)})
            return None
        with self._lock:
            self._run += 1
            number, self.running = self._run, text
        thread = threading.Thread(target=self._work, args=(number, text, temperatures), daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Cancel the run under way, if any."""
        with self._lock:
            self._run += 1
            was, self.running = self.running, ""
        if was:
            self.send({"type": "ended", "text": f"Stopped: {was}."})

    def _work(self, number: int, text: str, temperatures: Schedule) -> None:
        assert self._again is not None
        k = len(self.data["classes"])

        def watched(success: Tensor, step: int) -> Tensor:
            if step % 5 == 1 and number == self._run:
                ended = {"found": k - len(success), "of": k}
                self.send({"type": "progress", "run": number, "step": step, **ended})
            return temperatures(success, step)

        try:
            scan = self._again(watched, stop=lambda: number != self._run)
        except Exception as error:  # said where the reader looks; a thread has nobody else to tell
            with self._lock:
                if number == self._run:
                    self.running = ""
                    self.send({"type": "ended", "text": f"{type(error).__name__}: {error}"})
            return
        with self._lock:
            if number != self._run:
                return
            self.running = ""
            self._scans[f"run {number}: {text if len(text) < 30 else text[:27] + '…'}"] = scan
            data, buffer = _state(self._scans, self._settings)
            with self.hold_sync():
                self.data, self.buffer = data, buffer
            said = f"Run {number} has ended after {len(scan.trajectory['Q']) - 1} iterations."
            self.send({"type": "ended", "text": said, "show": len(self._scans) - 1})


def temperature_explorer(
    scans: Mapping[str, Scan],
    *,
    target: int | None,
    sources: Sequence[int] = (),
    targets: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    model: nn.Module | None = None,
    clean: Tensor | None = None,
    detector: LRED | None = None,
) -> TemperatureExplorer:
    """Play L-RED scans of one classifier under several schedules, and run others.

        temperature_explorer(record(model, clean), target=1, model=model, clean=clean)

    scans: name -> Scan with a trajectory, as `record` makes them, all with the same record_every.
    target, sources: the attack's; None and () for a clean classifier.
    targets: putative targets to play; by default every class, or for many classes or large images the target
        (else the class of the shortest pattern) and the class of the longest.
    classes: names of the classes; default: their numbers.
    model, clean: what to run others on, where there is a kernel; detector: settings of those runs.
    Raises ValueError for scans without a trajectory, or too many numbers for a page.
    """
    k = next(iter(scans.values())).n_classes
    for name, scan in scans.items():
        if "v" not in scan.trajectory or scan.n_classes != k:
            raise ValueError(
                f"scan {name!r} has no recorded patterns of {k} classes: scan with record_every >= 1"
            )
    every = {scan.settings["record_every"] for scan in scans.values()}
    if len(every) != 1:
        raise ValueError(f"scans with record_every = {sorted(every)}: one value is needed")
    settings = {
        "classes": [str(c) for c in range(k)] if classes is None else [str(c) for c in classes],
        "targets": _few(next(iter(scans.values())), target) if targets is None else list(targets),
        "truth": target,
        "sources": list(sources),
        "every": every.pop(),
    }
    base = replace(detector or LRED(), record_every=settings["every"])
    again = None
    if model is not None and clean is not None:

        def again(temperatures: Schedule, stop: Callable[[], bool]) -> Scan:
            return replace(base, schedule=temperatures).scan(model, clean, stop=stop)

    explorer = TemperatureExplorer(scans, settings, again)
    checked(explorer)
    return explorer


def _state(scans: Mapping[str, Scan], settings: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """`data` and `buffer` of the explorer.

    Norms and temperatures go exactly (float32), the rest at 8 or 16 bits.
    """
    arrays: dict[str, np.ndarray] = {}
    coarse: dict[str, int] = {}
    runs = []
    of = list(settings["targets"])
    frames = max(len(s.trajectory["v"]) for s in scans.values())
    pixels = next(iter(scans.values())).pattern[0].numel()
    stride = math.ceil(frames / max(4, PICTURES // (len(scans) * len(of) * pixels)))
    for i, (name, scan) in enumerate(scans.items()):
        path = {key: held(value.numpy()) for key, value in scan.trajectory.items()}
        arrays |= {f"{i}.{key}": path[key][:, of] for key in ("Q", "T", "w", "q")}
        arrays |= {f"{i}.v": path["v"][::stride, of], f"{i}.pattern": scan.pattern.numpy()[of]}
        arrays |= {f"{i}.norm": path["norm"], f"{i}.final": scan.norms.numpy()}
        coarse |= {f"{i}.w": 16, f"{i}.q": 16, f"{i}.v": 8, f"{i}.pattern": 8}
        ends = (~np.isnan(scan.trajectory["norm"].numpy())).sum(0) - 1
        run = {"name": name, "key": name.split(",")[0]}
        runs.append({**run, "steps": ends.tolist(), "converged": scan.converged.tolist()})
    index, buffer = pack(arrays, coarse=coarse)
    return {**settings, "every": stride * settings["every"], "runs": runs, "index": index}, buffer


def _few(scan: Scan, target: int | None) -> list[int]:
    """Every class where that is a small page's worth; else two, one suspicious and one not."""
    if scan.pattern.numel() <= 10 * 1024:
        return list(range(scan.n_classes))
    first = int(scan.norms.argmin()) if target is None else target
    return [first, int(scan.norms.argmax())]
