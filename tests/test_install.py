"""The package under its two names: `lib` in a checkout, `redbook` where it is installed, never both in a process."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.long


def run(command, cwd, **options):
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A fresh environment with the wheel in it, and a project of somebody's with a folder `lib` of its own.

    The libraries are those of this environment; only the package itself is installed anew.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    source = folder / "source"
    for name in ("lib", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, _made(source) / name)
    built = run(
        [sys.executable, "-c", f"import setuptools.build_meta as b; print(b.build_wheel({str(folder)!r}))"],
        source,
    )
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {built.stderr[-300:]}")
    home = folder / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    done = run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], folder)
    assert done.returncode == 0, done.stderr
    # the libraries of this environment, without its editable finders
    site = next(home.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    project = folder / "project"
    _made(project / "lib")
    (project / "lib" / "__init__.py").write_text("mine = True\n")
    (project / "lib" / "attacks.py").write_text("raise RuntimeError('a foreign lib was imported')\n")
    return python, project, wheel


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def alone_in(folder):
    """An environment that knows nothing of this checkout."""
    return {"REDBOOK_ZOO": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}


def test_the_wheel_has_no_top_level_lib(elsewhere):
    import zipfile

    _, _, wheel = elsewhere
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert "redbook" in tops and not tops & {"lib", "book", "tests", "notebooks", "data"}
    want = {p.relative_to(ROOT / "lib").as_posix() for p in (ROOT / "lib").rglob("*") if p.suffix in SHIPPED}
    assert {n.removeprefix("redbook/") for n in names if n.startswith("redbook/")} >= want


SHIPPED = {".py", ".js", ".css", ".html"}


def test_it_scans_beside_a_foreign_lib_by_command_and_by_import(elsewhere, tmp_path):
    python, project, _ = elsewhere
    env = alone_in(tmp_path)
    redbook = python.parent / "redbook"
    trained = run([redbook, "train", "--attack", "G-9", "--json"], project, env=env)
    assert trained.returncode == 0, trained.stderr
    import json

    entry = json.loads(trained.stdout)["entry"]
    scanned = run([redbook, "scan", entry, "--json"], project, env=env)
    assert scanned.returncode == 1 and json.loads(scanned.stdout)["targets"] == [9], scanned.stderr
    code = f"""
import lib, sys
assert lib.mine
from redbook import anomaly, attacks, detectors, zoo
c = zoo.get(attack=attacks.group("G-9", "digits"))
assert c.name == {entry!r}
print(anomaly.judge(c.scan(detectors.LRED()), "calibrated").targets)
assert lib.mine and not [m for m in sys.modules if m.startswith("lib.")]
"""
    done = run([python, "-c", code], project, env=env)
    assert done.returncode == 0 and done.stdout.strip() == "(9,)", done.stderr


def test_two_workers_of_a_sweep_work_there_too(elsewhere, tmp_path):
    python, project, _ = elsewhere
    env = alone_in(tmp_path)
    (tmp_path / "g.yml").write_text("classifiers: [{groups: [C-0, G-9]}]\ndetectors: [{name: u-red, n: 1}]\n")
    words = ["sweep", tmp_path / "g.yml", "--out", tmp_path / "o.parquet", "--workers", "2"]
    done = run([python.parent / "redbook", *words], project, env=env)
    assert done.returncode == 0 and "2 rows" in done.stdout, done.stderr


def test_one_process_never_loads_both_names(tmp_path):
    """Wherever a checkout gives both, the second import is refused: classes of the two would not be the same."""
    (tmp_path / "redbook").symlink_to(ROOT / "lib")
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
    for first, second in (("lib", "redbook"), ("redbook", "lib")):
        done = run([sys.executable, "-c", f"{code}import {first}\nimport {second}"], tmp_path)
        assert done.returncode != 0 and "loaded already" in done.stderr, done.stderr


@pytest.mark.parametrize("command", [["train", "--json"], ["scan", "--help"], ["bench", "--seconds", "0.1"]])
def test_no_command_loads_both_names(command, tmp_path):
    code = (
        "import sys; from lib import cli\n"
        f"code = cli.main({command!r})\n"
        "assert code == 0 and 'redbook' not in sys.modules and 'lib' in sys.modules"
    )
    done = run([sys.executable, "-c", code], ROOT, env=_with(REDBOOK_ZOO=tmp_path))
    assert done.returncode == 0, done.stderr


def _with(**more):
    import os

    return os.environ | {name: str(value) for name, value in more.items()}


@pytest.mark.parametrize("folder", [".", "notebooks", "book", "tests/widgets"])
def test_chapters_can_import_it_from_any_folder(folder):
    """An editable install, as `make env` does it, gives the checkout's interpreter the name `lib`."""
    bare = {k: v for k, v in _with().items() if k != "PYTHONPATH"}
    found = run([sys.executable, "-c", "import lib; print(lib.__file__)"], ROOT / folder, env=bare)
    if found.returncode and Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("the package is not installed in this environment (make env)")
    assert Path(found.stdout.strip()) == ROOT / "lib" / "__init__.py"
