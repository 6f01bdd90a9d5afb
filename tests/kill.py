"""Killing on purpose: a process that dies at its n-th step on the disk, or at a moment, and what it leaves.

    with Killer("from lib import zoo\ndef act(root): ...") as killer:
        killer.run(root, "act")               # in a fork of a process that has done its imports already
        killer.run(root, "act", at=3)         # the same, dead by SIGKILL at its third step: `.step` says which
        killer.run(root, "act", after=0.2)    # dead after so many seconds, if it was not done before

A step is a call that changes what is on the disk, and it has a before and an after; writing a file has, between
these, the moment when half of it is there.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "REDBOOK_TEST_MARK"

# -- in the process that dies


class Steps:
    """Counts the steps of this process, and kills it at the one whose number is `at`."""

    def __init__(self, at: int, tell: Callable[[str], object]) -> None:
        self.at, self.tell, self.count = at, tell, 0

    def here(self, name: str, torn: Path | None = None) -> None:
        """A step: maybe the last one. torn: a whole file, of which a dying process leaves half."""
        self.count += 1
        if self.count != self.at:
            return
        if torn is not None:
            os.truncate(torn, torn.stat().st_size // 2)
        self.tell(name)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """From now on, calls that change the disk are steps."""
        import builtins
        import io

        for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir"):
            setattr(os, name, self._move(getattr(os, name)))
        Path.write_text = self._writer(Path.write_text, 0)  # type: ignore[method-assign]
        Path.write_bytes = self._writer(Path.write_bytes, 0)  # type: ignore[method-assign]
        io.open = builtins.open = self._open(builtins.open)  # type: ignore[assignment]
        if torch := sys.modules.get("safetensors.torch"):
            torch.serialize_file = self._writer(torch.serialize_file, 1)  # type: ignore[attr-defined]
        if pandas := sys.modules.get("pandas"):
            pandas.DataFrame.to_parquet = self._writer(pandas.DataFrame.to_parquet, 1)  # type: ignore[attr-defined]

    def _move(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **how: Any) -> Any:
            name = f"{call.__name__} {args[0]}"
            self.here("before " + name)
            done = call(*args, **how)
            self.here("after " + name)
            return done

        return stepped

    def _writer(self, call: Callable[..., Any], place: int) -> Callable[..., Any]:
        """place: which argument is the file's path."""

        def stepped(*args: Any, **how: Any) -> Any:
            name = f"{call.__name__} {args[place]}"
            self.here("before " + name)
            done = call(*args, **how)
            self.here("in " + name, torn=Path(args[place]))
            self.here("after " + name)
            return done

        return stepped

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(file: Any, mode: str = "r", *args: Any, **how: Any) -> Any:
            writes = set(mode) & set("wax+") and not isinstance(file, int)
            if writes:
                self.here(f"before open {file}")
            opened = call(file, mode, *args, **how)
            if writes:
                self.here(f"after open {file}")
            return opened

        return stepped


def _serve() -> None:
    """Run the set-up on the first line of stdin, then what the further lines ask for, each in a fork of its own."""
    names: dict[str, Any] = {}
    exec(json.loads(sys.stdin.readline()), names)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed goes with the complaints
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if asked["warm"]:
            found = [names[call](Path(asked["root"])) for call in asked["calls"]]
            print(json.dumps([0, json.dumps(found)]), file=answers, flush=True)
            continue
        reads, writes = os.pipe()
        process = os.fork()
        if not process:
            _child(names, asked, writes)
        os.close(writes)
        killed = _kill_later(process, asked["after"]) if asked["after"] is not None else None
        with os.fdopen(reads) as told:
            said = told.read()
        if killed is None:
            _, killed = os.waitpid(process, 0)
        print(json.dumps([killed, said]), file=answers, flush=True)


def _child(names: dict[str, Any], asked: dict[str, Any], writes: int) -> None:
    code = 1
    try:
        *first, last = [names[call] for call in asked["calls"]]
        found = [call(Path(asked["root"])) for call in first]
        if asked["at"]:
            Steps(asked["at"], lambda name: os.write(writes, json.dumps(name).encode())).watch()
        found.append(last(Path(asked["root"])))
        os.write(writes, json.dumps(found).encode())
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _kill_later(process: int, seconds: float) -> int:
    """The status of a process that is killed after so many seconds, if it has not ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


# -- in the test


@dataclass(frozen=True)
class Ran:
    """How a run ended. values: what the functions gave back, where it came to its end; step: where it died."""

    killed: bool
    values: list[Any]
    step: str | None = None


class Killer:
    """Runs functions of some code in processes that can be killed; use as a context manager.

    setup: the code; its functions take a Path, and give back what JSON can say.
    """

    def __init__(self, setup: str) -> None:
        self.mark = uuid.uuid4().hex
        self._setup = setup

    def __enter__(self) -> Killer:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "book")])
        env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", MARK: self.mark}
        env |= {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # macOS
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=env,
        )
        self._say(self._setup)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._server.stdin, self._server.stdout):
            assert stream
            stream.close()
        self._server.wait()

    def _say(self, what: object) -> None:
        assert self._server.stdin
        print(json.dumps(what), file=self._server.stdin, flush=True)

    def run(
        self, root: Path, *calls: str, at: int = 0, after: float | None = None, warm: bool = False
    ) -> Ran:
        """Call these, one after the other, with `root`; AssertionError where one raised.

        at: kill the last of them at this step; after: kill all of it after so many seconds.
        warm: do it in the process that the others are forks of, so that they find its imports and caches.
        """
        self._say({"calls": calls, "root": str(root), "at": at, "after": after, "warm": warm})
        assert self._server.stdout
        answer = self._server.stdout.readline()
        assert answer, "the set-up, or what was to warm it, failed"
        status, said = json.loads(answer)
        if warm:
            self._serving = marked(self.mark)
        if os.WIFSIGNALED(status):
            return Ran(True, [], step=json.loads(said) if said else None)
        assert status == 0, f"{', '.join(calls)} failed"
        return Ran(False, json.loads(said))

    def survivors(self) -> set[int]:
        """Processes that a run has started, and that are still there, but for what serves all runs."""
        return marked(self.mark) - self._serving


def marked(mark: str) -> set[int]:
    """The living processes whose environment has this mark."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and alive(process.pid):
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def alive(process: int) -> bool:
    """Is it there, and not only waiting for its parent to take notice of its end?"""
    import psutil

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(happened: Callable[[], object], seconds: float = 300) -> None:
    """Wait for something that must come; AssertionError where it does not."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def kill_at_every_step(setup: str, folder: Path) -> int:
    """Kill `act(root)` at each of its steps in turn, look at what it left, and go on; how many times it was killed.

    setup: defines act(root); look(root), which gives what a reader finds there, None for nothing, and raises where it
        finds something broken; and maybe before(root), which prepares what act is to replace.
    AssertionError, naming the step, where a kill leaves neither nothing, nor the old, nor the new; or where the same
    command, run again, does not give what an undisturbed one gives; or leaves something of the dead one's behind.
    """
    before = ["before"] if "def before(" in setup else []
    with Killer(setup) as killer:
        (calm := folder / "calm").mkdir()
        *_, old, _, new = killer.run(calm, *before, "look", "act", "look", warm=True).values
        assert new is not None and new != old
        for n in itertools.count(1):
            (root := folder / str(n)).mkdir()
            ran = killer.run(root, *before, "act", at=n)
            if not ran.killed:
                return n - 1
            seen, _, then = killer.run(root, "look", "act", "look").values
            assert seen in (None, old, new), f"killed {ran.step}: {seen}"
            assert then == new, f"killed {ran.step}, then run again: {then}"
            left = [str(p) for p in root.rglob("*.partial*")]
            assert not left, f"killed {ran.step}: {left}"
    raise AssertionError


def kill_at_random(setup: str, folder: Path, *, kills: int, seed: int) -> None:
    """Kill `act(root)` so many times, each time at a moment drawn from its whole length, and go on with it each time.

    setup: as above, without before(root).
    AssertionError as above, or where a process lives on that the dead one had started.
    """
    draw, killed, ends = random.Random(seed), 0, 0
    with Killer(setup) as killer:
        (calm := folder / "calm").mkdir()
        _, new = killer.run(calm, "act", "look", warm=True).values
        (again := folder / "again").mkdir()
        begun = time.monotonic()
        killer.run(again, "act")
        length = time.monotonic() - begun
        while killed < kills:
            (root := folder / str(ends)).mkdir()
            while killer.run(root, "act", after=draw.uniform(0, length) if killed < kills else None).killed:
                killed += 1
                wait_until(lambda: not killer.survivors())
                assert killer.run(root, "look").values[0] in (None, new)
            ends += 1
            assert killer.run(root, "look").values == [new]
            assert not list(root.rglob("*.partial*"))
    print(f"{killed} kills, {ends} times to the end, {length:.2f} s each if undisturbed")


if __name__ == "__main__":
    _serve()
