"""Figures: one function per question.

Each takes data and an optional `ax`, returns the axes (or the figure it made), and never calls show.

    ax = plot.by_class(scan.norms, target=8, label="norm")

Colours: the true target is always orange, other classes blue-grey, so that figures can be read side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .metrics import Rate

if TYPE_CHECKING:
    import pandas as pd

TARGET, OTHER, SOURCE, LINE = "#d9570d", "#5f7f95", "#2a6f4e", "#333333"
Values = Tensor | Sequence[float] | np.ndarray


def axes(width: float = 6.0, height: float = 2.8) -> Axes:
    """Empty axes, inches wide and high, open at the top and on the right like all graphs here."""
    return _open(plt.subplots(figsize=(width, height))[1])


def _open(ax: Axes, *more: str) -> Axes:
    ax.spines[["top", "right", *more]].set_visible(False)
    return ax


def _look(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line."""
    colours, dashes = (TARGET, OTHER, SOURCE, LINE), ("-", "--", ":", "-.")
    return {"color": colours[i % 4], "ls": dashes[i // 4 % 4]}


def _picture(image: Tensor) -> np.ndarray:
    array = image.detach().cpu().numpy().transpose(1, 2, 0)
    return array[..., 0] if array.shape[2] == 1 else array


def images(
    batch: Tensor, titles: Sequence[str] | None = None, *, columns: int = 10, size: float = 1.1
) -> Figure:
    """What do these images look like? A grid of (N, C, H, W) in [0, 1], with a short title each."""
    rows = -(-len(batch) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, (size + 0.25 * bool(titles)) * rows), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(axes.flat, batch, strict=False)):
        ax.imshow(_picture(image.clamp(0, 1)), cmap="gray", vmin=0, vmax=1)
        if titles:
            ax.set_title(titles[i], fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def pattern(v: Tensor, ax: Axes | None = None, *, limit: float | None = None, title: str = "") -> Axes:
    """Which pixels does a signed pattern (C, H, W) change? Blue darkens, red brightens.

    White leaves the pixel alone. Patterns in colour are shown around mid-grey.
    limit: the change that has the full colour; default the largest.
    """
    ax = ax or plt.subplots(figsize=(1.8, 1.9))[1]
    limit = limit or float(v.abs().max()) or 1.0
    if v.shape[0] == 1:
        ax.imshow(v[0].detach().cpu().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    else:
        ax.imshow(_picture((0.5 + v / (2 * limit)).clamp(0, 1)))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, fontsize=9)
    return ax


def patterns(vs: Sequence[Tensor], titles: Sequence[str], *, size: float = 1.6, columns: int = 6) -> Figure:
    """Do these signed patterns look alike? `pattern` side by side, each on its own scale."""
    columns = min(columns, len(vs))
    rows = -(-len(vs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.3) * rows), squeeze=False)
    for ax in axes.flat[len(vs) :]:
        ax.axis("off")
    for ax, v, title in zip(axes.flat, vs, titles, strict=False):
        pattern(v, ax, title=title)
    figure.tight_layout(pad=0.4)
    return figure


def by_class(
    values: Tensor | Sequence[float],
    ax: Axes | None = None,
    *,
    target: int | None = None,
    classes: Sequence[str] | None = None,
    label: str = "",
) -> Axes:
    """Does a class stand out? One bar per class; the true target in orange."""
    ax = ax or axes(4.5, 2.4)
    y = np.asarray(values, float)
    ax.bar(range(len(y)), y, color=[TARGET if k == target else OTHER for k in range(len(y))])
    ax.set_xticks(range(len(y)), classes or [str(k) for k in range(len(y))])
    ax.set_xlabel("class")
    ax.set_ylabel(label)
    return _open(ax)


def panels(
    found: Mapping[str, tuple[Tensor | Sequence[float], int | None]],
    *,
    label: str = "",
    share: bool = True,
    columns: int = 3,
    classes: Sequence[str] | None = None,
) -> Figure:
    """In which of these does a class stand out? `by_class` side by side.

    found: title -> (values, target or None).
    share: one scale for all?
    classes: names under the bars; default the numbers.
    """
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    size = (4.5 * columns if columns < 3 else 11, 2.5 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=share, squeeze=False)
    for ax in grid.flat[len(found) :]:
        ax.axis("off")
    for i, (ax, (title, (values, target))) in enumerate(zip(grid.flat, found.items(), strict=False)):
        y_label = "" if share and i % columns else label
        by_class(values, ax, target=target, classes=classes, label=y_label)
        ax.set_title(title, fontsize=10)
    figure.tight_layout()
    return figure


def by_setting(table: pd.DataFrame, x: str, columns: Mapping[str, str], ax: Axes | None = None) -> Axes:
    """What does one setting change? A dot per classifier, a line through the means.

    table: one row per classifier, its setting in column x.
    columns: of the table, to be drawn -> their labels.
    """
    ax = ax or axes()
    for i, (column, label) in enumerate(columns.items()):
        mean = table.groupby(x, sort=False)[column].mean()
        ax.plot(mean.index, mean, label=label, **_look(i))
        ax.plot(table[x], table[column], "o", ms=4, color=_look(i)["color"], alpha=0.5)
    return _open(ax)


def curves(x: Values, lines: Mapping[str, Values] | pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How do several values move together? A line each, over the same x.

    lines: name -> values, one per entry of x; a table's columns will do.
    """
    ax = ax or axes()
    for i, (name, y) in enumerate(lines.items()):
        ax.plot(x, y, label=name, **_look(i))
    return _open(ax)


def by_step(
    y: Tensor | np.ndarray,
    ax: Axes | None = None,
    *,
    target: int | None = None,
    x: Tensor | np.ndarray | None = None,
    only: Sequence[int] | None = None,
    label: str = "",
) -> Axes:
    """Does the target's search part from the others'? A line per class over the steps.

    y: (steps, K), as in a scan's trajectory.
    x: (steps,) or (steps, K), such as the queries spent; default the number of the step.
    only: the classes to be drawn; default all.
    """
    ax, along = ax or axes(), np.arange(len(y)) if x is None else np.asarray(x)
    chosen = range(y.shape[1]) if only is None else only
    for k in sorted(chosen, key=lambda k: k == target):  # the target last, on top
        colour, width = (TARGET, 1.5) if k == target else (OTHER, 0.7)
        steps = along[:, k] if along.ndim == 2 else along
        ax.plot(steps, y[:, k], color=colour, lw=width, label=f"class {k}")
    ax.set_ylabel(label)
    return _open(ax)


def against(
    groups: Mapping[str, tuple[Values, Values]], ax: Axes | None = None, *, limit: float | None = None
) -> Axes:
    """Do two ways agree? A dot per case, by one way along x and by the other along y.

    groups: name -> (x, y), a colour each.
    limit: a threshold, dotted for both; without one the dotted line is where both say the same.
    """
    ax = ax or axes(4.2, 3.4)
    for i, (name, (x, y)) in enumerate(groups.items()):
        ax.plot(x, y, "o", ms=4, alpha=0.7, color=_look(i)["color"], label=name)
    if limit is None:
        ends = min(ax.dataLim.min), max(ax.dataLim.max)
        ax.plot(ends, ends, ls=":", color=LINE)
    else:
        ax.axhline(limit, ls=":", color=LINE)
        ax.axvline(limit, ls=":", color=LINE)
    return _open(ax)


def before_after(names: Sequence[str], before: Values, after: Values, ax: Axes | None = None) -> Axes:
    """How far did a defence bring each down? An arrow per name, from a share before to one after."""
    ax = ax or axes(6, 0.6 + 0.4 * len(names))
    arrow = {"arrowstyle": "->", "color": TARGET, "lw": 2}
    for i, (start, end) in enumerate(zip(before, after, strict=True)):
        ax.annotate("", (float(end), i), (float(start), i), arrowprops=arrow)
        ax.plot(float(start), i, "o", color=TARGET)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(-0.05, 1.05), ylim=(len(names) - 0.5, -0.5))
    return _open(ax)


def heat(
    table: Values | pd.DataFrame,
    rows: Sequence[object],
    columns: Sequence[object],
    ax: Axes | None = None,
    *,
    text: str = "{:.0%}",
    limits: tuple[float, float] | None = (0, 1),
    label: str = "",
    colours: str = "Blues",
) -> Axes:
    """Where in a table are the values high? A dark cell for a high one; NaN stays white.

    table: (rows, columns), with a name for each row and column.
    text: how a cell's value is written into it; "" for not at all.
    limits: the values of the lightest and the darkest colour; None takes the table's own.
    label: of a colour bar, drawn only where there is one.
    """
    ax = ax or axes(1 + 0.6 * len(columns), 0.8 + 0.4 * len(rows))
    values, (low, high) = np.asarray(table, float), limits or (None, None)
    shown = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    dark = np.asarray(shown.norm(values)) > 0.6
    for (i, j), value in np.ndenumerate(values):
        if text and not np.isnan(value):
            ink = "white" if dark[i, j] else "black"
            ax.text(j, i, text.format(value), ha="center", va="center", color=ink)
    ax.set_xticks(range(len(columns)), list(map(str, columns)))
    ax.set_yticks(range(len(rows)), list(map(str, rows)))
    if label:
        ax.figure.colorbar(shown, ax=ax, label=label)
    return ax


def film(rows: Mapping[str, Tensor], titles: Sequence[str], *, size: float = 1.3) -> Figure:
    """How does a picture change from left to right? One film per row.

    rows: name -> images (N, C, H, W), or masks (N, H, W), in [0, 1].
    titles: of the N columns.
    """
    inches = (size * len(titles), (size + 0.15) * len(rows))
    figure, grid = plt.subplots(len(rows), len(titles), figsize=inches, squeeze=False)
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for ax, picture in zip(line, pictures, strict=True):
            image = picture[None] if picture.ndim == 2 else picture
            ax.imshow(_picture(image.clamp(0, 1)), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def strips(
    groups: Mapping[str, Sequence[tuple[Tensor | Sequence[float], int | None]]],
    ax: Axes | None = None,
    *,
    label: str = "",
) -> Axes:
    """Does the true target (orange) stand apart? One column per classifier, one dot per class.

    groups: name -> [(values, target or None)], an entry per classifier.
    """
    ax = ax or axes(7)
    x, ticks = 0.0, []
    for name, models in groups.items():
        start = x
        for values, target in models:
            y = np.asarray(values, float)
            rest = [k for k in range(len(y)) if k != target]
            ax.plot([x] * len(rest), y[rest], "o", color=OTHER, ms=3.5, alpha=0.7)
            if target is not None:
                ax.plot([x], [y[target]], "D", color=TARGET, ms=5)
            x += 1
        ticks.append(((start + x - 1) / 2, name))
        x += 1
    ax.set_xticks([t for t, _ in ticks], [n for _, n in ticks])
    ax.set_ylabel(label)
    return _open(ax)


def trajectory(path: Mapping[str, Tensor], target: int, other: int) -> Figure:
    """How does L-RED come to its weights? Q, T, their entropy and ||v|| over the steps.

    path: of a scan that recorded its steps.
    target, other: the true target and one other class, a line each.
    """
    figure, panels = plt.subplots(1, 4, figsize=(10, 2.5))
    for k, colour, name in ((target, TARGET, f"target {target}"), (other, OTHER, f"class {other}")):
        w = path["w"][:, k].double()
        entropy = -(w * w.clamp_min(1e-12).log()).sum(-1)
        t = path["T"][:, k].clone()
        t[t.isinf()] = float("nan")
        for ax, y in zip(panels, (path["Q"][:, k], t, entropy, path["norm"][:, k]), strict=True):
            ax.plot(y, color=colour, label=name)
    for ax, title in zip(panels, ("share Q", "temperature T", "entropy of w", "norm of v"), strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("step")
        _open(ax)
    panels[0].axhline(0.9, color=LINE, lw=0.8, ls=":")
    panels[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def gamma_null(
    statistics: Tensor | Sequence[float], ax: Axes | None = None, *, target: int | None = None
) -> Axes:
    """Is the largest statistic one of the rest? All of them, on the density fitted to the rest."""
    from scipy.stats import gamma

    from .anomaly import fit_gamma

    ax = ax or axes(4.5, 2.6)
    r = np.asarray(statistics, float)
    shape, scale = fit_gamma(np.sort(r)[:-1])
    x = np.linspace(0, 1.15 * max(r.max(), float(gamma.ppf(0.999, shape, scale=scale))), 400)
    y = gamma.pdf(x, shape, scale=scale)
    ax.fill_between(x, y, color=OTHER, alpha=0.25, lw=0)
    ax.plot(x, y, color=OTHER)
    for k, value in enumerate(r):
        ax.plot(
            [value],
            [0.04 * y.max()],
            "D" if k == target else "o",
            color=TARGET if k == target else OTHER,
            ms=6,
            clip_on=False,
        )
    ax.set_xlabel("statistic 1 / ||v||")
    ax.set_yticks([])
    ax.set_ylim(0)
    return _open(ax, "left")


def rates(groups: Mapping[str, Mapping[str, Rate]], ax: Axes | None = None, *, label: str = "share") -> Axes:
    """Which method is right how often? Shares with Wilson intervals, one cluster per group.

    groups: name -> {method: Rate}, a mark each.
    """
    ax = ax or axes(7)
    methods = list(dict.fromkeys(m for row in groups.values() for m in row))
    colours = plt.get_cmap("tab10")
    for j, method in enumerate(methods):
        xs = [
            i + (j - (len(methods) - 1) / 2) * 0.17 for i, row in enumerate(groups.values()) if method in row
        ]
        rs = [row[method] for row in groups.values() if method in row]
        y = np.array([r.value for r in rs])
        low, high = np.array([r.interval for r in rs]).T
        error = np.clip([y - low, high - y], 0, None)
        ax.errorbar(xs, y, error, fmt="o", ms=5, capsize=2, lw=1, color=colours(j), label=method)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set_ylim(-0.04, 1.04)
    ax.set_ylabel(label)
    ax.legend(fontsize=8, ncols=len(methods), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _open(ax)


def weights(
    w: Tensor, ax: Axes | None = None, *, sources: Sequence[int] = (), label: str = "final weight"
) -> Axes:
    """Do the weights find the sources? Weights (K,), a bar per class; true sources in green."""
    ax = ax or axes(4.5, 2.4)
    y = np.asarray(w, float)
    ax.bar(range(len(y)), y, color=[SOURCE if k in sources else OTHER for k in range(len(y))])
    ax.set_xticks(range(len(y)))
    ax.set_xlabel("class")
    ax.set_ylabel(label)
    return _open(ax)
