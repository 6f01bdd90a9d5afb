"""The build, on a book of tiny chapters: what is checked, what is run again, and what an interruption leaves."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from kill import alive, wait_until
from small_book import chapter, make_root

from lib import book, fingerprint
from lib.book import BookError, freshness, jupyter_book, notebooks, runner

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return make_root(tmp_path, {"01_a": "1", "02_b": "2"})


def keys(root: Path) -> dict[str, str]:
    return {c.name: c.key for c in book.plan(root)}


# -- what is asked for


def test_only_takes_prefixes_in_reading_order(tmp_path):
    root = make_root(tmp_path, {"01_a": "1", "02_b": "2", "03_c": "3"})
    for only, want in {
        (): ["01_a", "02_b", "03_c"],
        ("03", "notebooks/01_a.ipynb"): ["01_a", "03_c"],
    }.items():
        assert [c.name for c in book.plan(root, only=only)] == want


def test_the_book_is_found_upward_and_else_this_one(small, tmp_path_factory):
    assert book.find_root(small / "notebooks" / "profiles") == small
    assert book.find_root(tmp_path_factory.mktemp("elsewhere")) == ROOT


# -- what makes a chapter stale


def test_prose_does_not_change_the_key(small):
    before = keys(small)
    path = small / "notebooks/01_a.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[0].source += " More prose."
    nb.cells[3].metadata["mystnb"] = {"figure": {"caption": "Better words."}}
    nbformat.write(nb, path)
    assert keys(small) == before


@pytest.mark.parametrize("what", ["code", "parameters", "versions"])
def test_what_outputs_depend_on_changes_the_key(small, what, monkeypatch):
    before = keys(small)
    if what == "code":
        chapter(small, "01_a", "1 + 1")
    elif what == "parameters":
        (small / "notebooks/profiles/smoke.yml").write_text("01_a: {n_seeds: 9}\n02_b: {n_seeds: 4}\n")
    else:
        monkeypatch.setattr(freshness, "_version", lambda name: "99")
    after = keys(small)
    assert after["01_a"] != before["01_a"]
    assert (after["02_b"] != before["02_b"]) == (what == "versions")


def test_a_chapter_that_is_no_python_is_named(small):
    chapter(small, "01_a", "1 +")
    with pytest.raises(BookError, match=r"01_a\.ipynb: .*'1 \+'"):
        book.plan(small)


def test_a_table_matters_to_the_chapters_that_name_it(tmp_path):
    root = make_root(
        tmp_path,
        {"01_a": "open('data/papers/table.csv')", "02_b": "2", "03_c": "plain = 'data/results/rows.parquet'"},
    )
    for folder in ("papers", "results/rows.parquet.rows"):
        (root / "data" / folder).mkdir(parents=True)
    seen = [keys(root)]
    for path in (
        "papers/table.csv",
        "papers/other.csv",
        "results/rows.parquet.rows/one",
        "results/rows.parquet",
    ):
        (root / "data" / path).write_text("a,b\n")
        seen.append(keys(root))
    changed = [{n for n in now if now[n] != before[n]} for before, now in itertools.pairwise(seen)]
    assert changed == [{"01_a"}, set(), set(), {"03_c"}]  # a sweep under way disturbs nobody


def test_an_image_set_matters_to_the_chapters_that_name_it(small, tmp_path, monkeypatch):
    images = tmp_path / "images"
    monkeypatch.setenv("REDBOOK_DATA", str(images))
    (small / "notebooks/profiles/smoke.yml").write_text("02_b: {data: fashion-mnist}\n")
    before = keys(small)
    (images / "FashionMNIST/raw").mkdir(parents=True)
    (images / "FashionMNIST/raw/train").write_bytes(b"12")
    after = keys(small)
    assert after["01_a"] == before["01_a"] and after["02_b"] != before["02_b"]


def test_a_file_of_the_package_matters_to_the_chapters_that_reach_it(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    (library / "attacks").mkdir(parents=True)
    (library / "data.py").write_text("")
    (library / "zoo.py").write_text("def get():\n    from . import data")
    (library / "attacks/__init__.py").write_text("from .patch import Patch\nfrom .wave import Wave")
    (library / "attacks/patch.py").write_text("from .. import zoo")
    (library / "attacks/wave.py").write_text("")
    (library / "cli.py").write_text("from . import attacks")
    monkeypatch.setattr(fingerprint, "LIBRARY", library)
    codes = {
        "01_a": "1",
        "02_b": "%pwd\nfrom lib import data",
        "03_c": "from lib.attacks import Patch",
    }
    root = make_root(tmp_path / "book", codes)
    for path, want in [
        ("cli.py", set()),
        ("attacks/wave.py", set()),
        ("attacks/patch.py", {"03_c"}),
        ("attacks/patch.js", {"03_c"}),
        ("zoo.py", {"03_c"}),
        ("data.py", {"02_b", "03_c"}),
    ]:
        before = keys(root)
        with (library / path).open("a") as file:
            file.write("\nx = 1")
        after = keys(root)
        assert {name for name in after if after[name] != before[name]} == want


# -- building


@pytest.mark.long
def test_build_reuse_and_edit(small):
    first = book.make(small)
    assert first.ran == ("01_a", "02_b") and not first.failures
    assert first.pages_built and first.index.is_file()
    executed = small / "_build/executed/smoke/02_b.ipynb"
    assert notebooks.glued(executed) == {"n": 4, "half": 2.0}
    nb = nbformat.read(executed, 4)
    injected = [c for c in nb.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert [c.metadata["tags"] for c in injected] == [["injected-parameters", "remove-cell"]]
    assert not any({"papermill", "execution"} & set(thing.metadata) for thing in [nb, *nb.cells])  # timings

    second = book.make(small)
    assert second.reused == ("01_a", "02_b") and not second.ran and not second.pages_built

    path = small / "notebooks/01_a.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[0].source += "\n\nA new sentence."
    nbformat.write(nb, path)
    third = book.make(small)
    assert not third.ran and third.pages_built
    page = (first.index.parent / "notebooks/01_a.html").read_text()
    assert "A new sentence." in page and "4" in (first.index.parent / "notebooks/02_b.html").read_text()

    (small / "book/_static/own.css").write_text("b {}")
    assert book.make(small).pages_built  # Sphinx alone would keep the old style
    assert (first.index.parent / "_static/own.css").read_text() == "b {}"

    (small / "book/intro.md").write_text("# Intro\n\n[nowhere](nothing.md)\n")
    for _ in range(2):  # Sphinx alone would keep quiet the second time
        with pytest.raises(BookError, match=r"intro\.md.*nothing"):
            book.make(small)


@pytest.mark.long
def test_failed_chapter_is_kept_and_named_and_the_others_run(tmp_path):
    codes = {"01_a": "raise KeyError('lost')", "02_b": "2", "03_c": "import os\nos._exit(1)"}
    root = make_root(tmp_path, codes)
    summary = book.make(root, jobs=2)
    assert summary.ran == ("02_b",) and not summary.pages_built
    failed = {f.chapter: f for f in summary.failures}
    assert list(failed) == ["01_a", "03_c"]
    assert failed["01_a"].cell == 3 and "KeyError: 'lost'" in failed["01_a"].error
    kept = root / "_build/executed/smoke/01_a.failed.ipynb"
    assert failed["01_a"].kept == kept and kept.is_file()
    assert failed["03_c"].cell is None and "kernels.log" in failed["03_c"].error
    assert not (root / "_build/executed/smoke/01_a.ipynb").exists()


def test_a_chapter_runs_under_the_name_of_this_package():
    """Whatever that is: installed, it has another."""
    name = runner.KERNEL
    assert name == f"{book.__name__}.kernel"
    assert runner.PLACE.joinpath(*name.split(".")).with_suffix(".py").is_file()


def test_what_is_no_part_of_the_pages_is_not_staged(small):
    for folder in ("book/tools", "book/.cache"):
        (small / folder).mkdir()
        (small / folder / "make.py").write_text("1")
    (small / "book/more.md").write_text("# More\n")
    staged = {name for name, _ in jupyter_book._files(small, [])}
    assert {"_toc.yml", "_config.yml", "book/intro.md", "book/more.md", "book/_static/own.css"} == staged


def test_what_is_left_is_told_from_what_chapters_took_the_last_time():
    forecast = runner.Forecast({"a": 10.0, "b": None, "c": 30.0}, jobs=2)
    assert forecast.left(now=0.0) == (3, 30.0), "b is like the others: 60 s for two at once"
    forecast.begun |= {"a": 0.0, "c": 5.0}
    forecast.took["a"] = 12.0
    assert forecast.left(now=15.0) == (2, 21.0), "c has 20 s left, b takes 21, the mean of 12 and 30"
    forecast.took |= {"b": 1.0, "c": 40.0}
    assert forecast.left(now=50.0) == (0, 0.0)
    assert runner.Forecast({"a": None}, jobs=1).left(now=0.0) == (1, 0.0)


def test_the_book_needs_no_torch():
    code = "import sys, lib.book; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def start(root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "lib.cli", "build", "--jobs", "1", "--only", "01", "--only", "02"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        # what is started in the background of a script ignores Ctrl-C, and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.long
def test_interrupted_build_resumes_with_what_was_complete(tmp_path):
    """By Ctrl-C; kills are in test_killed_builds.py."""
    pid_file = tmp_path / "pid"
    tell = f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    slow = f"import os, pathlib, time\n{tell}\ntime.sleep(delay)"
    root = make_root(tmp_path, {"01_a": "1", "02_b": "delay = 900\n" + slow})
    executed = root / "_build/executed/smoke"
    build = start(root)
    wait_until(lambda: pid_file.exists() or build.poll() is not None)
    assert build.poll() is None, build.stderr.read()
    finished = (executed / "01_a.ipynb").stat().st_mtime_ns
    os.kill(build.pid, signal.SIGINT)
    _, said = build.communicate()
    assert build.returncode == 130 and "interrupted" in said
    wait_until(lambda: not alive(int(pid_file.read_text())))  # the kernel of the orphaned chapter ends too
    assert not (executed / "02_b.ipynb").exists()

    chapter(root, "02_b", "delay = 0\n" + slow)
    again = start(root)
    out, _ = again.communicate()
    assert again.returncode == 0 and "1 chapters run, 1 fresh" in out
    assert (executed / "01_a.ipynb").stat().st_mtime_ns == finished
    assert not list(executed.glob("*.partial")) and not list(executed.glob("*.failed.ipynb"))
