"""What holds for the repository as a whole: floors, imports, and nothing in it that belongs to one machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib.freshness import imported

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    {"metrics", "anomaly"},
    {"data", "models", "attacks"},
    {"train", "zoo"},
    {"detectors"},
    {"mitigations"},
    {"experiments", "tables", "guide", "report", "audit", "grids", "plot", "prose", "widgets"},
    {"chapters", "freshness", "runner", "bars", "pages", "book", "cli"},
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
MODULES = sorted(p for p in (ROOT / "lib").rglob("*.py") if p.name != "__init__.py" or p.parent.name != "lib")


def room(path: Path) -> str:
    return path.relative_to(ROOT / "lib").with_suffix("").parts[0]


def tracked() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [p for line in done.stdout.splitlines() if (p := ROOT / line).is_file()]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upward(path):
    here = room(path)
    assert here in FLOOR, f"give {here} a floor in tests/test_repo.py"
    package = ("lib", *path.relative_to(ROOT / "lib").parts[:-1])
    upward = [other for other in imported(path.read_text(), package) if FLOOR.get(other, 0) > FLOOR[here]]
    assert not upward, f"{here} (floor {FLOOR[here]}) imports {upward}"


def test_the_core_imports_on_a_bare_machine():
    """Without the command line, lib needs PyTorch, NumPy, SciPy, scikit-learn, matplotlib, safetensors, tqdm
    only.
    """
    names = sorted(
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in MODULES
        if room(p) not in {"cli", "bars", "widgets"}  # typer, rich, and anywidget's classes
    )
    code = f"""
import importlib, sys
absent = {{"pandas", "pyarrow", "papermill", "nbformat", "ipywidgets", "anywidget", "seaborn", "typer",
          "rich", "yaml", "IPython", "dask", "distributed", "onnx", "onnxruntime", "traitlets", "myst_nb"}}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Absent())
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_names_a_registry_or_this_machine():
    hosts = ["pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.(org|com)", "deb" + r"\.debian"]
    places = ["/wor" + "k/", "/far" + "m/", "/root" + "/"]
    pattern = re.compile("|".join(hosts + places))
    hits = []
    for path in tracked():
        try:
            body = path.read_text()
        except UnicodeDecodeError:
            continue
        hits += [
            f"{path.relative_to(ROOT)}:{i}"
            for i, line in enumerate(body.splitlines(), 1)
            if pattern.search(line)
        ]
    assert not hits


def test_no_big_files():
    big = [
        f"{p.relative_to(ROOT)}: {p.stat().st_size >> 10} KiB"
        for p in tracked()
        if p.stat().st_size > 1 << 20
    ]
    assert not big


def test_lib_is_not_ignored():
    done = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "lib/book.py", "lib/attacks/base.py"], capture_output=True
    )
    assert done.returncode != 0 and not done.stdout


def test_no_pickle_is_loaded():
    """torch.load of anything but tensors, and pickle itself, have no place here."""
    patterns = [
        r"\bpickle\.loads?\(",
        r"^import pickle",
        r"torch\.load\((?!.*weights_only=True)",
        r"joblib\.load\(",
        r"allow_pickle=True",
    ]
    bad = re.compile("|".join(patterns), re.MULTILINE)
    assert not [str(p) for p in MODULES if bad.search(p.read_text())]


def test_cited_keys_exist():
    keys = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text(), re.MULTILINE))
    cited = set()
    for path in [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", path.read_text()):
            cited.update(key.strip() for key in group.split(","))
    assert cited and cited <= keys
