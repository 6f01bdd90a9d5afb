"""Numbers on their way into the text: how they are written, and under which names they are glued."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib import metrics
from lib.prose import Glue, glue, of, p, percent

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [True, False, True]
FRAME = pd.DataFrame(
    {"u-red": [1, 2], "l-red": [3, 4]},
    index=pd.MultiIndex.from_product([["G-3"], [0, 1]], names=["group", "seed"]),
)


@pytest.fixture
def glued(monkeypatch) -> dict:
    """What is glued, by name, as myst_nb gets it."""
    found: dict = {}
    myst_nb = pytest.importorskip("myst_nb")
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: found.update({name: value}))
    return found


def test_values_are_glued_and_numpy_scalars_as_plain_numbers(glued):
    glue(a=np.float64(0.5), b="x", c=np.bool_(True))
    assert glued == {"a": 0.5, "b": "x", "c": True}
    assert type(glued["a"]) is float and type(glued["c"]) is bool


@pytest.mark.parametrize(
    ("table", "pattern", "form", "want"),
    [
        (FRAME, "{group}_{seed}_{column}", str, {"G-3_0_u-red": "1", "G-3_1_u-red": "2", "G-3_0_l-red": "3", "G-3_1_l-red": "4"}),
        (FRAME["u-red"] / 10, "{column[0]}{seed}", percent, {"u0": "10.0 %", "u1": "20.0 %"}),
        (FRAME.loc[("G-3", 0)].rename("n"), "{row}", str, {"u-red": "1", "l-red": "3"}),
        (FRAME.unstack(), "{column[0]} {seed} {group}", int, {"u-red 0 G-3": 1, "u-red 1 G-3": 2, "l-red 0 G-3": 3, "l-red 1 G-3": 4}),
        ({"G-3": {"l-red": metrics.Rate(9, 10)}}, "{row}_{column}", of, {"G-3_l-red": "9 of 10"}),
    ],
)  # fmt: skip
def test_every_cell_of_a_table_is_glued_under_its_name(glued, table, pattern, form, want):
    glue.table(table, pattern, form=form)
    assert glued == want


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("{grp}", "allowed are row, column, group, seed"), ("{seed}", "two cells the name '0'")],
)
def test_a_pattern_that_does_not_name_the_cells_is_refused(glued, pattern, said):
    with pytest.raises(ValueError, match=said):
        glue.table(FRAME, pattern)
    assert not glued and isinstance(glue, Glue)


@pytest.mark.parametrize(
    ("x", "digits", "want"),
    [
        (0.9731, 1, "97.3 %"),
        (metrics.Rate(9, 10), 0, "90 %"),
        (torch.tensor(0.25), 2, "25.00 %"),
        (np.float32(-1e-6), 1, "0.0 %"),
        (-0.021, 1, "-2.1 %"),
    ],
)
def test_percent(x, digits, want):
    assert percent(x, digits) == want


@pytest.mark.parametrize(
    "found",
    [
        FLAGS,
        tuple(FLAGS),
        np.array(FLAGS),
        torch.tensor(FLAGS),
        pd.Series(FLAGS),
        iter(FLAGS),
        metrics.Rate(2, 3),
    ],
    ids=lambda found: type(found).__name__,
)
def test_how_many_of_how_many(found):
    assert of(found) == "2 of 3"


def test_of_can_be_a_fraction_and_takes_nothing_but_flags():
    assert of(metrics.Rate(2, 3), sep="/") == metrics.Rate(2, 3).fraction and of([]) == "0 of 0"
    for other in ([3, 5], [None], [float("nan")], "9/10", 3, None):
        with pytest.raises(ValueError, match="flags, or a count and a total"):
            of(other)


@pytest.mark.parametrize(
    ("log_p", "want"),
    [
        (np.log(0.031), "0.031"),
        (np.log(0.5), "0.50"),
        (0.0, "1.0"),
        (np.log(8.5e-9), "8.5e-9"),
        (np.log(9.96e-5), "1.0e-4"),
        (-412 * np.log(10) + np.log(1.2), "1.2e-412"),
        (-np.inf, "0"),
        (np.nan, "not defined"),
    ],
)
def test_p_values_in_two_digits_also_where_they_underflow(log_p, want):
    assert p(float(log_p)) == want


def test_prose_needs_no_heavy_library():
    code = "import sys, lib.prose; sys.exit(bool({'torch', 'pandas', 'myst_nb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
