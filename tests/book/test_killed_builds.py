"""Builds that are killed, and builds that meet: what they leave, who lives on, and that the same command goes on."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import kill
import pytest
from small_book import chapter, make_root

from lib import book
from lib.book import notebooks

pytestmark = pytest.mark.long


def start(
    root: Path, *words: str, mark: str = "", path: Path = kill.ROOT, said: Any = subprocess.PIPE
) -> "subprocess.Popen[str]":
    """A build of the book in `root`."""
    return subprocess.Popen(
        [sys.executable, "-m", "lib.cli", "build", "--jobs", "2", *words],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{kill.ROOT}{os.pathsep}{path}", kill.MARK: mark},
        text=True,
        stdout=subprocess.PIPE,
        stderr=said,
    )


def finished(build: "subprocess.Popen[str]") -> str:
    """What a build said that came to its end."""
    out, err = build.communicate()
    if build.returncode:
        logs = [Path(word) for word in (err or "").split() if word.endswith(".log")]
        raise AssertionError(
            "\n".join([err or "", *(log.read_text()[-3000:] for log in logs if log.exists())])
        )
    return out


def version(root: Path, number: int) -> None:
    """One of two versions of the book: other prose in the first chapter, other code in the second."""
    path = chapter(root, "01_a", "1")
    path.write_text(path.read_text().replace("Prose", f"Prose of version {number}"))
    chapter(root, "02_b", f"import time\ntime.sleep(1)\nglue('version', {number}, display=False)")


def pages(root: Path) -> dict[str, str]:
    """Hash of every page; nothing where there are none."""
    html = root / "_build/html"
    files = [p for p in html.rglob("*") if p.suffix in (".html", ".js", ".css")]
    return {str(p.relative_to(html)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def numbers(root: Path) -> dict[str, dict]:
    """What every executed chapter glued."""
    return {p.stem: notebooks.glued(p) for p in sorted((root / "_build/executed/smoke").glob("*.ipynb"))}


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_a_build_killed_at_random_goes_on_and_leaves_nobody(kills, tmp_path):
    """From nothing, and from the other version's pages to this one's, with kernels and Sphinx wherever they are."""
    root = make_root(tmp_path / "book", {"01_a": "1", "02_b": "2"})
    whole, length = {}, 0.0
    for number in (0, 1):
        version(root, number)
        begun = time.monotonic()
        finished(start(root))
        length = max(time.monotonic() - begun, length)
        whole[number] = pages(root), numbers(root)
    assert whole[0][0] and whole[0] != whole[1]
    draw, mark, killed, ends = random.Random(kills), uuid.uuid4().hex, 0, 0
    while killed < kills:
        version(root, ends % 2)
        if draw.random() < 0.5:
            shutil.rmtree(root / "_build")
        complete: dict[Path, int] = {}
        while True:
            build = start(root, mark=mark)
            try:
                build.wait(draw.uniform(0.1, 1) * length if killed < kills else None)
            except subprocess.TimeoutExpired:
                build.kill()
                build.communicate()
                killed += 1
                kill.wait_until(lambda: not kill.marked(mark))
                assert pages(root) in ({}, whole[0][0], whole[1][0])
                complete = {c.executed: c.executed.stat().st_mtime_ns for c in book.plan(root) if c.fresh}
            else:
                break
        finished(build)
        assert (pages(root), numbers(root)) == whole[ends % 2]
        assert all(
            path.stat().st_mtime_ns == then for path, then in complete.items()
        )  # and are not run again
        assert not list(root.rglob("*.partial*"))
        ends += 1
    print(f"{killed} kills, {ends} times to the end, {length:.1f} s each if undisturbed")


def test_a_build_killed_while_pages_are_made_leaves_no_sphinx(tmp_path):
    """Nor pages that are half made."""
    root, told = make_root(tmp_path / "book", {}), tmp_path / "told"
    (root / "notebooks/profiles/smoke.yml").write_text("{}\n")
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (tmp_path / "sleeps.py").write_text(
        f"import os, pathlib, time\n"
        f"def setup(app):\n"
        f"    pathlib.Path({str(told)!r}).write_text(str(os.getpid()))\n"
        f"    time.sleep(900)\n"
    )
    text = (root / "_config.yml").read_text()
    (root / "_config.yml").write_text(text.replace("sphinx: {", "sphinx: {extra_extensions: [sleeps], "))
    build = start(root, path=tmp_path)
    kill.wait_until(lambda: (told.exists() and told.read_text()) or build.poll() is not None)
    assert build.poll() is None, build.communicate()
    os.kill(build.pid, signal.SIGKILL)
    build.communicate()
    kill.wait_until(lambda: not kill.alive(int(told.read_text())), seconds=60)
    assert not pages(root)


def test_a_second_build_says_that_it_waits_and_finds_all_done(tmp_path):
    go, begun = tmp_path / "go", tmp_path / "begun"
    code = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\n"
    code += f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.1)"
    root = make_root(tmp_path / "book", {"01_a": code})
    (root / "notebooks/profiles/smoke.yml").write_text("01_a: {}\n")
    first = start(root, "--only", "01")
    kill.wait_until(lambda: begun.exists() or first.poll() is not None)
    with (tmp_path / "said").open("w") as said:
        second = start(root, "--only", "01", said=said)
    try:
        kill.wait_until(lambda: (tmp_path / "said").read_text() or second.poll() is not None, seconds=120)
        assert "another build of this book is under way" in (tmp_path / "said").read_text()
        assert first.poll() is None and second.poll() is None
    finally:
        go.touch()
        was, then = finished(first), finished(second)
    assert "1 chapters run" in was and "0 chapters run, 1 fresh" in then
