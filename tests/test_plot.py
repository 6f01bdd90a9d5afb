"""Figures show what they were given, and the true target stands out."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from lib import metrics, plot
from lib.prose import glue


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def bars(ax):
    return [(bar.get_height(), to_hex(bar.get_facecolor())) for bar in ax.patches]


def test_panels_mark_the_target_and_nothing_on_a_clean_classifier():
    norms = torch.tensor([3.0, 1.0, 2.0])
    figure = plot.panels({"attacked": (norms, 1), "clean": (norms, None)}, label="norm")
    attacked, clean = figure.axes
    assert bars(attacked) == [(3.0, plot.OTHER), (1.0, plot.TARGET), (2.0, plot.OTHER)]
    assert {colour for _, colour in bars(clean)} == {plot.OTHER}
    assert [ax.get_title() for ax in figure.axes] == ["attacked", "clean"]
    assert attacked.get_ylim() == clean.get_ylim()


@pytest.mark.parametrize("values", [(1, 2), ("many", "few")])
def test_a_sweep_has_a_dot_per_classifier_and_a_line_through_the_means(values):
    table = pd.DataFrame({"x": np.repeat(values, 2), "asr": [0.0, 1.0, 0.5, 0.7]})
    line, dots = plot.sweep(table, "x", {"asr": "ASR"}).lines
    assert line.get_ydata() == pytest.approx([0.5, 0.6]) and line.get_label() == "ASR"
    assert list(line.get_xdata()) == list(values) and dots.get_ydata().tolist() == [0.0, 1.0, 0.5, 0.7]


def test_rates_stand_in_their_wilson_intervals():
    few, many = metrics.Rate(1, 5), metrics.Rate(20, 100)
    ax = plot.rates({"few": {"L-RED": few}, "many": {"L-RED": many}})
    (whiskers,) = ax.collections
    assert [segment[:, 1].tolist() for segment in whiskers.get_segments()] == [
        pytest.approx(list(rate.interval)) for rate in (few, many)
    ]


def test_a_numpy_scalar_is_glued_as_a_plain_number(monkeypatch):
    glued = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: glued.update({name: value}))
    glue(auc=np.float64(0.5), n=3, text="9/10")
    assert repr(glued) == "{'auc': 0.5, 'n': 3, 'text': '9/10'}"
