"""Problems solved in parts: what a step holds is bounded, it fits a processor's cache, and every core has work.

No problem can touch another's result, so a scan may be cut between problems at will: each part is solved to its end,
on a CPU as many parts at once as PyTorch has threads (`torch.set_num_threads`, OMP_NUM_THREADS), with one thread and one
copy of the model each. A GPU gets all problems at once. Sums of floating-point numbers may come out in another order,
nothing else differs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..models import Cost, frozen
from ..models.ask import BATCH
from .base import Run
from .scan import Found

Solve = Callable[[Run, Tensor, Callable[[int], object]], Found]


def in_parts(run: Run, b: int, images: int, solve: Solve, *, whole: bool = False) -> Found:
    """What `solve` finds for B problems, in their order; their cost is booked in `run.cost`.

    images: of one problem, in one step.
    solve: called with the run of a part (a model, a ledger and a generator of its own), the part's problems (an index),
        and what to tell how many more are done. Whatever else it calls must bear several threads. Generators of all
        parts begin alike, and run.generator goes on from the longest.
    whole: all in one part.
    """
    device, threads, size = run.clean.device, 1, b
    if device.type == "cpu" and not whole:
        threads = torch.get_num_threads()
        size = max(1, min(BATCH // images, -(-b // threads)))
    index = torch.arange(b, device=device).split(size)
    models = _copies(run.model, min(threads, len(index)))
    lock, ended = threading.Lock(), threading.Event()

    def stop() -> bool:
        with lock:
            if run.stopped:
                ended.set()
            return ended.is_set()

    runs = [
        replace(run, cost=Cost(), stop=stop, generator=_copy(run.generator), progress=False) for _ in index
    ]
    with ExitStack() as stack:
        stack.enter_context(run.cost.clock())
        for model in models:
            stack.enter_context(frozen(model))
        bar = stack.enter_context(tqdm(total=b, desc="problems", disable=not run.progress, leave=False))

        def tell(done: int) -> None:
            with lock:
                bar.update(done)

        try:
            found = _solved(solve, list(zip(runs, index, strict=True)), tell, models, ended)
        finally:
            run.cost.forward += sum(part.cost.forward for part in runs)
            run.cost.backward += sum(part.cost.backward for part in runs)
    longest = max(range(len(found)), key=lambda i: _steps(found[i]))
    run.generator.set_state(runs[longest].generator.get_state())
    return Found.joined(found)


def _solved(
    solve: Solve,
    parts: list[tuple[Run, Tensor]],
    tell: Callable[[int], object],
    models: list[nn.Module],
    ended: threading.Event,
) -> list[Found]:
    """The parts, as many at once as there are models; where one fails, or somebody interrupts, the others end, too."""
    if len(models) == 1:
        return [solve(run, rows, tell) for run, rows in parts]
    idle: SimpleQueue[Any] = SimpleQueue()
    for model in models:
        idle.put(model)

    def one(run: Run, rows: Tensor) -> Found:
        model = idle.get()
        try:
            return solve(replace(run, model=model), rows, tell)
        finally:
            idle.put(model)

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // len(models)))
    try:
        with ThreadPoolExecutor(len(models)) as pool:
            futures = [pool.submit(one, run, rows) for run, rows in parts]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = [future for future in futures if future.done() and future.exception()]
                return [future.result() for future in failed or futures]
            except BaseException:
                ended.set()
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(before)


def _copies(model: nn.Module, count: int) -> list[nn.Module]:
    """The model and copies of it, for a network may keep something between its layers; itself alone if it has none."""
    try:
        return [model, *(deepcopy(model) for _ in range(count - 1))]
    except (RuntimeError, TypeError):  # it holds what cannot be copied
        return [model]


def _copy(generator: torch.Generator) -> torch.Generator:
    made = torch.Generator(generator.device)
    made.set_state(generator.get_state())
    return made


def _steps(found: Found) -> int:
    return int(found.steps.max()) if found.steps is not None and len(found.steps) else 0
