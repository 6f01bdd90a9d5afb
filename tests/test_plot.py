"""Figures show what they were given, and the true target stands out."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from lib import metrics, plot


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
def test_a_setting_has_a_dot_per_classifier_and_a_line_through_the_means(values):
    table = pd.DataFrame({"x": np.repeat(values, 2), "asr": [0.0, 1.0, 0.5, 0.7]})
    line, dots = plot.by_setting(table, "x", {"asr": "ASR"}).lines
    assert line.get_ydata() == pytest.approx([0.5, 0.6]) and line.get_label() == "ASR"
    assert list(line.get_xdata()) == list(values) and dots.get_ydata().tolist() == [0.0, 1.0, 0.5, 0.7]


def test_rates_stand_in_their_wilson_intervals():
    few, many = metrics.Rate(1, 5), metrics.Rate(20, 100)
    ax = plot.rates({"few": {"L-RED": few}, "many": {"L-RED": many}})
    (whiskers,) = ax.collections
    assert [segment[:, 1].tolist() for segment in whiskers.get_segments()] == [
        pytest.approx(list(rate.interval)) for rate in (few, many)
    ]


def test_the_target_has_its_colour_whatever_is_drawn():
    y = torch.arange(12.0).view(4, 3)
    *others, target = plot.by_step(y, target=1, label="norm").lines
    assert [line.get_color() for line in others] == [plot.OTHER] * 2 and target.get_color() == plot.TARGET
    assert target.get_ydata().tolist() == [1, 4, 7, 10] and target.get_xdata().tolist() == [0, 1, 2, 3]
    one, two = plot.by_step(y, target=1, x=10 * y, only=[1, 2]).lines
    assert one.get_label() == "class 2" and two.get_xdata().tolist() == [10, 40, 70, 100]


def test_curves_are_told_apart_and_none_is_dropped():
    x = np.linspace(0, 1, 5)
    lines = plot.curves(x, pd.DataFrame({str(i): x * i for i in range(6)})).lines
    assert [line.get_label() for line in lines] == [str(i) for i in range(6)]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 6


def test_dots_lie_above_the_diagonal_where_the_second_way_says_more():
    first, second, diagonal = plot.against({"target": ([1.0], [3.0]), "others": ([2.0], [2.0])}).lines
    assert first.get_color() == plot.TARGET and second.get_color() == plot.OTHER
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [1.0, 3.0]
    dots, across, up = plot.against({"all": ([-1.0], [-9.0])}, limit=-3.0).lines
    assert set(across.get_ydata()) == set(up.get_xdata()) == {-3.0} and dots.get_ydata() == [-9.0]


def test_arrows_go_from_before_to_after():
    ax = plot.before_after(["patch", "global"], [1.0, 0.9], [0.1, 0.8])
    assert [(a.xyann[0], a.xy[0]) for a in ax.texts] == [(1.0, 0.1), (0.9, 0.8)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["patch", "global"]


def test_a_cell_says_its_value_in_ink_that_can_be_read():
    ax = plot.heat([[0.0, 1.0], [0.25, np.nan]], ["a", "b"], [1, 2], label="ASR")
    assert [(t.get_text(), t.get_color()) for t in ax.texts] == [
        ("0%", "black"),
        ("100%", "white"),
        ("25%", "black"),
    ]
    assert len(ax.figure.axes) == 2 and ax.get_xticklabels()[1].get_text() == "2"
    bare = plot.heat([[0.0, 5.0]], ["a"], [1, 2], text="", limits=None)
    assert not bare.texts and bare.images[0].get_clim() == (0, 5) and len(bare.figure.axes) == 1


def test_a_film_has_a_row_for_each_and_takes_masks():
    figure = plot.film({"first": torch.rand(3, 3, 4, 4), "second": torch.rand(3, 4, 4)}, ["1", "2", "3"])
    assert [ax.get_title() for ax in figure.axes] == ["1", "2", "3", "", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["first", "", "", "second", "", ""]
    assert figure.axes[0].images[0].get_array().shape == (4, 4, 3)
    assert figure.axes[5].images[0].get_array().shape == (4, 4)
