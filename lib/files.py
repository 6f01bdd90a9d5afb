"""Files and folders that are there whole or not at all, and doors that let one process in at a time.

    with files.written(path) as partial:
        partial.write_text(text)

Whoever is killed inside, at any moment, leaves at `path` nothing, or what was there before, or all that was to be
written. What had been begun lies beside it as `<name>.<machine>-<process>.partial`: nobody reads that, and the next
who writes at the same place sweeps it up.
"""

from __future__ import annotations

import errno
import glob
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MACHINE = re.sub(r"\W", "_", platform.node())


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A partial path to make a file or a folder of, which takes the place of `path` when the block ends.

    path: a file or folder; what is there stays until then, and stays for good when the block raises. Of a link, where
        it leads to. Folders above it are made.
    One thread of a process may write at a place at a time; processes may, and the last one wins.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    partial, old = _partial(path), _partial(path, ".old")
    try:
        yield partial
        _flush(partial)
        if partial.is_dir() and path.is_dir():  # no rename puts a folder in the place of another
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        _remove(partial)
        _remove(old)


def check_writable(path: str | Path) -> None:
    """Raise OSError where `written` could put no file at `path`, or where one lies that is not to be written."""
    path = Path(os.path.realpath(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    partial = _partial(path)
    partial.touch()
    partial.unlink()


def _partial(path: Path, end: str = "") -> Path:
    return path.with_name(f"{path.name}.{MACHINE}-{os.getpid()}{end}.partial")


def sweep(path: Path) -> None:
    """Remove what dead writers have left beside `path`."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        if _abandoned(left):
            _remove(left)


@contextmanager
def alone(path: Path, *, waiting: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """One process at a time is inside, of those that name the same lock file `path`; others wait.

    waiting: called once if another is inside; then the block is told True.
    The door opens with the end of the process, however it ends; the file stays.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        waited = False
    except Timeout:
        waiting()
        lock.acquire()
        waited = True
    try:
        yield waited
    finally:
        lock.release()


def _abandoned(partial: Path) -> bool:
    """Was this left by a process of this machine that is no more (or by us, before)?"""
    found = re.search(rf"\.{MACHINE}-(\d+)(\.old)?\.partial$", partial.name)
    if not found:
        return False
    if (process := int(found[1])) == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is somebody else's
    return False


def _flush(partial: Path) -> None:
    """Onto the disk with it: a rename that outlives a power cut must not name what did not."""
    for file in [partial, *partial.rglob("*")]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
