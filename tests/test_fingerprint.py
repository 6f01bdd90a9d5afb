"""The print of code: which files it reaches, and what changes it."""

from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from lib import detectors, fingerprint, zoo
from lib.attacks import BadNets
from lib.book import freshness
from lib.experiments.tasks import ScanTask
from lib.fingerprint import LIBRARY, of_source, reached
from lib.settings import plain


def files(code):
    return {str(p.relative_to(LIBRARY)) for p in reached(code)}


@pytest.mark.parametrize(
    ("code", "inside", "outside"),
    [
        ("from lib import detectors\ndetectors.LRED()", {"detectors/red.py"}, {"detectors/b3d.py", "zoo.py"}),
        ("from lib.detectors import B3D as X", {"detectors/b3d.py", "models/blackbox.py"}, {"detectors/usb.py"}),
        ("from lib import detectors\nf(detectors)", {"detectors/usb.py", "detectors/b3d.py"}, {"zoo.py"}),
        ("from lib import detectors\nx = (\n    1\n    != detectors.B3D()\n)", {"detectors/b3d.py"}, set()),
        ("%matplotlib inline\n!ls\nfrom lib import data", {"data.py"}, {"zoo.py"}),
        ("import lib\nlib.plot.axes()", {"plot.py", "metrics.py"}, {"zoo.py"}),
        ("import lib.zoo as z", {"zoo.py", "classifier.py", "train.py"}, {"cli.py"}),
        ("from lib.zoo import data", {"data.py", "zoo.py"}, set()),
        ("from lib import zoo\nzoo.Spec()", {"zoo.py", "classifier.py"}, {"detectors/b3d.py"}),
        ("from lib import widgets\nwidgets.gamma_explorer({})", {"widgets/gamma.py", "widgets/gamma.js", "widgets/controls.js"}, {"widgets/temperature.py"}),
        ("from lib.audit import report", {"audit/report.py", "audit/report.html"}, {"cli.py"}),
        ("import os\nfrom pathlib import Path", set(), {"zoo.py"}),
    ],
)  # fmt: skip
def test_files_are_followed_by_the_name_that_is_used(code, inside, outside):
    assert inside <= files(code) and not outside & files(code)


def test_type_checking_imports_are_left_out_and_what_else_stands_there_is_not():
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib import zoo\nelse:\n    from lib import data"
    assert files(code) >= {"data.py"} and "zoo.py" not in files(code)
    assert "zoo.py" in files("if not TYPE_CHECKING:\n    from lib import zoo")


@pytest.mark.parametrize(
    "same", ["x = 1  # why", '"""What."""\nx = 1', "\n\nx   =   1\n", "x = (\n    1\n)"]
)  # fmt: skip
def test_comments_docstrings_and_layout_change_nothing(same):
    assert of_source(same) == of_source("x = 1")


def test_where_a_module_of_the_package_lies_changes_nothing_and_where_another_does():
    assert of_source("from ..data import load") == of_source("from .rooms.data import load")
    assert of_source("from scipy.stats import gamma") != of_source("from scipy.special import gamma")


@pytest.mark.parametrize("other", ["x = 2", "x = 1.0", "x = True", "y = 1", "x: int = 1", "x = 1\nx = 1"])
def test_whatever_else_is_written_changes_it(other):
    assert of_source(other) != of_source("x = 1")


def test_the_print_of_files_does_not_know_their_names(tmp_path):
    for name, code in {"a.py": "x = 1", "b.py": "y = 2", "c.py": "y = 2  # b"}.items():
        (tmp_path / name).write_text(code)
    a, b, c = (tmp_path / f"{name}.py" for name in "abc")
    assert fingerprint.of_files([a, b]) == fingerprint.of_files([c, a]) != fingerprint.of_files([a])


# One print, three users: the zoo's key, the code of a sweep's row, the freshness of a chapter. Each is asked again after
# an edit, which is one that reading the file shows, and nothing else.
CHAPTER = """
from lib import attacks, detectors, zoo
c = zoo.get(zoo.Spec(attack=attacks.BadNets(size=2, target=1, rate=0.1)))
c.scan(detectors.LRED(), 4)
"""


def of_the_zoo(tmp_path):
    spec = zoo.Spec(attack=BadNets(size=2, target=1, rate=0.1))
    return zoo.key(spec, spec.load_data())


def of_a_row(tmp_path):
    spec = zoo.Spec(attack=BadNets(size=2, target=1, rate=0.1))
    return ScanTask(spec=spec, group="patch", detector="l-red", n=4).code


def of_a_chapter(tmp_path):
    file = tmp_path / "01_one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CHAPTER, id="one")]), file)
    return freshness.Keys(tmp_path).of(file, {})


@pytest.fixture
def edit(monkeypatch):
    """`edit(name, old, new)`: from now on the file of the package reads so."""
    texts, read = {}, Path.read_text

    def edit(name, old, new):
        file = LIBRARY / name
        before = read(file)
        assert old in before, f"{name} has no {old!r}"
        texts[file] = before.replace(old, new, 1)
        forget()

    def forget():
        fingerprint._print.cache_clear()
        fingerprint.of_closure.cache_clear()

    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: texts.get(self) or read(self, *a, **k))
    yield edit
    monkeypatch.undo()
    forget()


COMMENT = ("attacks/badnets.py", "def stamp(", "# how a patch gets on an image\n\n\ndef stamp(")
DOCSTRING = ("attacks/base.py", '"""', '"""Another word. ')
STAMP = ("attacks/badnets.py", "def stamp(images: Tensor", "def stamp(images: Tensor | None")
BASE = ("attacks/base.py", "def poison(", "def poison_(")
DEFAULT = ("attacks/badnets.py", "number(", "number(0 + ")
FURTHER = ("train.py", "def fit(", "def fit_(")
TWO_AWAY = ("models/ask.py", "def logits(", "def logits_(")  # attack or detector -> layers or base -> ask
ELSEWHERE = ("plot.py", "def ", "def a_")
DETECTOR = ("detectors/red.py", "number(", "number(0 + ")
DETECTOR_BASE = ("detectors/base.py", "def check_clean(", "def check_clean_(")
OTHER_DETECTOR = ("detectors/b3d.py", "number(", "number(0 + ")
RULE = ("anomaly/rules.py", "def mad(", "def mad_(")
LABORATORY = ("experiments/tasks.py", "LOOK = 8", "LOOK = 9")


@pytest.mark.parametrize(
    ("key", "changes", "keeps"),
    [
        (of_the_zoo, [STAMP, BASE, DEFAULT, FURTHER], [COMMENT, DOCSTRING, ELSEWHERE, DETECTOR, RULE, LABORATORY]),
        (of_a_row, [STAMP, BASE, DEFAULT, FURTHER, DETECTOR, DETECTOR_BASE, TWO_AWAY], [COMMENT, DOCSTRING, ELSEWHERE, OTHER_DETECTOR, RULE, LABORATORY]),
        (of_a_chapter, [STAMP, BASE, DEFAULT, FURTHER, DETECTOR, DETECTOR_BASE, TWO_AWAY], [COMMENT, DOCSTRING, ELSEWHERE, OTHER_DETECTOR, RULE, LABORATORY]),
    ],
)  # fmt: skip
def test_what_an_edit_changes_and_what_it_keeps(key, changes, keeps, edit, tmp_path):
    before = key(tmp_path)
    for change in keeps:
        edit(*change)
        assert key(tmp_path) == before, change
    found = {before}
    for change in changes:
        edit(*change)
        found.add(key(tmp_path))
        assert len(found) == changes.index(change) + 2, change


def test_editing_b3d_leaves_chapter_4_fresh(edit):
    root = LIBRARY.parent
    (chapter,) = (root / "notebooks").glob("04_*.ipynb")
    before = freshness.Keys(root).of(chapter, {})
    edit(*OTHER_DETECTOR)
    assert freshness.Keys(root).of(chapter, {}) == before
    edit(*DETECTOR)
    assert freshness.Keys(root).of(chapter, {}) != before


def test_the_key_of_a_row_is_its_settings_whole():
    """Two rows with one key would be taken for one another: defaults, too, are in it, and code is not."""
    spec, usual = zoo.Spec(), plain(detectors.LRED())

    def key(**settings):
        return ScanTask(spec=spec, group="C-0", detector="l-red", n=4, settings=tuple(settings.items())).key

    assert key() == key(**{name: usual[name] for name in ("pi", "max_steps")})
    others = [key(pi=0.8), key(delta=0.01), key(max_steps=7), key(schedule="hard")]
    assert len({key(), *others}) == 5
    harder = replace(spec, recipe=replace(spec.how, epochs=spec.how.epochs + 1))
    assert ScanTask(spec=harder, group="C-0", detector="l-red", n=4).key != key()


def test_the_key_of_a_row_keeps_through_an_edit(edit):
    task = ScanTask(spec=zoo.Spec(), group="C-0", detector="l-red", n=4)
    before = task.key, task.code
    edit(*DETECTOR_BASE)
    again = replace(task)
    assert again.key == before[0] and again.code != before[1]
