"""The print of code: which files it reaches, and what changes it."""

import pytest

from lib import fingerprint
from lib.fingerprint import LIBRARY, of_source, reached


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
