"""What holds for the repository as a whole: floors, imports, and nothing in it that belongs to one machine."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib import fingerprint

ROOT = Path(__file__).resolve().parents[1]
LIB = ROOT / "lib"
FLOORS = (
    {"files", "yaml_files", "settings", "fingerprint", "metrics", "anomaly", "data", "prose"},
    {"models", "train", "book", "plot"},
    {"classifier", "attacks", "detectors"},
    {"zoo", "mitigations", "widgets"},
    {"experiments", "audit"},
    {"cli"},
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
# What a room must not reach, not even through another: a detector that could see the attack, or the truth, could
# cheat; a defender does not hold the attack; a build must start in a second.
NEVERS = {
    "detectors": {"attacks", "zoo", "metrics", "anomaly", "classifier", "experiments"},
    "mitigations": {"attacks", "zoo"},
    "models": {"detectors"},
    "audit": {"experiments"},
    "experiments": {"audit"},
    "book": set(FLOOR) - {"book", "files", "yaml_files", "settings", "fingerprint", "prose"},
}
MODULES = sorted(p for p in LIB.rglob("*.py") if p.parent != LIB or p.name != "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(LIB).with_suffix("").parts[0]


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
    direct = {room(p) for p in fingerprint.imported(path) if p != LIB / "__init__.py"}
    upward = {other for other in direct if FLOOR.get(other, 0) > FLOOR[here]}
    assert not upward, f"{here} (floor {FLOOR[here]}) imports {upward}"


@pytest.mark.parametrize("name", NEVERS)
def test_what_a_room_must_never_reach(name):
    files = [p for p in MODULES if room(p) == name]
    assert files
    reached = {room(p): p for p in fingerprint.closure(files) if p != LIB / "__init__.py"}
    assert not set(reached) & NEVERS[name], {k: reached[k] for k in set(reached) & NEVERS[name]}


def test_the_root_of_the_package_is_small():
    assert len(list(LIB.glob("*.py"))) <= 14


def test_imports_inside_the_package_are_relative_and_nothing_holds_its_name():
    """A wheel installs it as `redbook`: an import or a text that says `lib` would break there."""
    named = re.compile(r"^\s*(?:from|import) lib\b|[\"']lib[\"'.]|-m lib\b", re.MULTILINE)
    bad = [p for p in MODULES if named.search(p.read_text())]
    assert not bad


@pytest.mark.long
def test_the_core_imports_on_a_bare_machine():
    """Without the command line: PyTorch, NumPy, SciPy, scikit-learn, matplotlib, safetensors, tqdm, filelock."""
    names = sorted(
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in MODULES
        # typer, rich, and anywidget's classes
        if room(p) not in {"cli", "widgets"} and p != LIB / "book" / "progress.py"
    )
    code = f"""
import importlib, sys
absent = {{"pandas", "pyarrow", "papermill", "nbformat", "ipywidgets", "anywidget", "seaborn", "typer",
          "rich", "yaml", "IPython", "dask", "distributed", "onnx", "onnxruntime", "traitlets", "myst_nb",
          "pydantic"}}
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


def test_nothing_of_the_build_says_torch():
    """Not even inside a function, where only a run would show it."""
    heavy = re.compile(r"^\s*(?:import|from) (?:torch|numpy|pandas|scipy)\b", re.MULTILINE)
    assert not [p for p in (LIB / "book").rglob("*.py") if heavy.search(p.read_text())]


def test_nothing_is_imported_behind_the_back_of_these_tests():
    assert not [p for p in MODULES if re.search(r"\b(?:import_module|__import__)\(", p.read_text())]


def test_the_build_imports_no_torch():
    code = "import lib.book.build, sys; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
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
        ["git", "-C", str(ROOT), "check-ignore", "lib/book/build.py", "lib/attacks/base.py"],
        capture_output=True,
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


@pytest.mark.long
def test_the_page_of_settings_is_of_this_code():
    """`python book/tools/make_settings.py` writes it again."""
    code = (
        "import make_settings as m; assert m.PAGE.read_text() == m.page(), 'run book/tools/make_settings.py'"
    )
    tools = ROOT / "book" / "tools"
    done = subprocess.run([sys.executable, "-c", code], cwd=tools, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize("path", list(LIB.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_begin_with_one_whole_line(path):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    said = [ast.get_docstring(node).splitlines() for node in nodes if ast.get_docstring(node)]
    broken = [
        lines[0] for lines in said if (len(lines) > 1 and lines[1].strip()) or lines[0][-1] not in ".?:"
    ]
    assert not broken


@pytest.mark.long
def test_the_map_of_the_package_works(tmp_path, monkeypatch):
    """The lines of lib/__init__.py that lead from a data set to a repaired classifier."""
    import lib
    from lib import anomaly, attacks, data, detectors, mitigations, zoo

    monkeypatch.setenv("REDBOOK_ZOO", str(tmp_path))
    lines = [line.strip() for line in lib.__doc__.splitlines() if re.match(r"    \w.*  # ", line)]
    names = dict(
        anomaly=anomaly, attacks=attacks, data=data, detectors=detectors, mitigations=mitigations, zoo=zoo
    )
    for line in lines[:-1]:
        exec(line, names)
    before, after = names["c"].metrics, eval(lines[-1].split("#")[0], names)
    assert names["verdict"].targets == (9,) and after["asr"] < before["asr"] / 2
