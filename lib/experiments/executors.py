"""Where the tasks of a sweep run: here, one after the other, or in processes of this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from .tasks import Task

One = Callable[[Task], None]  # runs a task and puts its row away
Done = Iterator[tuple[Task, Exception | None]]  # as they end: the task, and why it failed if it did


def here(tasks: Iterable[Task], one: One) -> Done:
    """One after the other, in this process."""
    for task in tasks:
        try:
            one(task)
            yield task, None
        except Exception as e:
            yield task, e


def processes(tasks: Iterable[Task], one: One, *, workers: int) -> Done:
    """So many at once, each in a process with one thread, which ends with this one; `one` must be picklable."""
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_begin) as pool:
        futures = {pool.submit(one, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent has, even by kill -9: a pool's worker would wait for its next task for ever."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
