"""Figures of curves: a panel per quantity, a line per row of the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpareto.escape import figure_text
from mmpareto.reporting.comparison import Row
from mmpareto.reporting.histories import History
from mmpareto.reporting.rendering import plain_log_ticks, plt

WIDTH, PANEL_HEIGHT = 9.0, 3.1  # inches
MOST_LINES = 8  # rows in one figure of curves; of more there are several figures
MARGIN = 0.02  # beside the limits of values, as a part of their range
_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Drawing:
    """A figure, what it shows in words, and what each mark in it is."""

    name: str
    title: str
    figure: Figure
    alt: str
    caption: str


@dataclass(frozen=True)
class Curves:
    """A row of the comparison with the histories of its runs.

    place      of the row in the table, from 0
    reference  whether it is the baseline, black, and in every figure if rows are split over several
    """

    row: Row
    histories: Sequence[History]
    place: int
    reference: bool = False

    @property
    def colour(self) -> str:
        """The row's colour in all figures; rows that share a figure of curves have different colours."""
        return "black" if self.reference else colour(self.place)


@dataclass(frozen=True)
class Panels:
    """The panels of a figure of curves.

    names    the panels' titles
    limits   possible values: bands end there
    most     positions along the x axis at most; more are averaged in bins of equal width
    points   whether the values of single runs are drawn, beside their mean
    joined   whether the means are joined by lines
    finish   called with every panel and its name
    """

    names: Sequence[str]
    xlabel: str
    ylabel: str
    columns: int = 2
    limits: tuple[float, float] = (-math.inf, math.inf)
    most: float = math.inf
    logarithmic: bool = False
    points: bool = False
    joined: bool = True
    marker: str = ""
    height: float = PANEL_HEIGHT
    finish: Callable[[Axes, str], Any] | None = None
    empty: str = "nothing was measured"


def colour(place: int) -> str:
    """The colour of a row of the table, by its place."""
    return f"C{place % 10}"


def line_style(place: int) -> str:
    """The style of a row's lines, another one if all colours are used."""
    return _STYLES[place // 10 % len(_STYLES)]


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def collect(curves: Sequence[Curves], table: Callable[[History], pd.DataFrame]) -> pd.DataFrame:
    """A table of every run's history, one below the other, with the columns `place` and `run` added."""
    tables = [
        table(history).assign(place=each.place, run=run)
        for each in curves
        for run, history in enumerate(each.histories)
    ]
    return pd.concat(tables, ignore_index=True)


def averaged(values: pd.DataFrame, most: float = math.inf) -> pd.DataFrame:
    """Mean and sample standard deviation over runs, each run by its mean in a bin.

    values  columns `panel`, `place`, `run`, `x`, `value`; NaN is left out
    most    bins at most; each position is a bin of its own if there are few enough

    Returns `x` (mean position), `mean` and `deviation` (NaN for a single run) by panel, place and bin.
    """
    values = values.dropna(subset=["value"])
    positions = np.unique(values["x"])
    bins = values["x"]
    if len(positions) > most:
        bins = pd.cut(values["x"], np.linspace(positions[0] - 0.5, positions[-1] + 0.5, int(most) + 1), labels=False)
    by_run = values.assign(bin=bins).groupby(["panel", "place", "bin", "run"])[["x", "value"]].mean()
    over_runs = by_run.groupby(["panel", "place", "bin"])
    return over_runs.agg(x=("x", "mean"), mean=("value", "mean"), deviation=("value", "std"))


def curve_drawings(
    name: str, title: str, alt: str, caption: str, curves: Sequence[Curves], values: pd.DataFrame, panels: Panels
) -> Iterator[Drawing]:
    """A figure of curves, or several with a number each; the caption stands below the last.

    values  see `averaged`; of logarithmic panels, positive values alone are drawn, and means are geometric

    Rows without values are left out. More than MOST_LINES rows make several figures; a panel has the same axes in all.
    """
    values = values.dropna(subset=["value"])
    if panels.logarithmic:
        values = values[values["value"] > 0].assign(value=lambda table: np.log(table["value"]))
    with_values = set(values["place"])
    parts = [part for part in _parts(curves) if any(e.place in with_values and not e.reference for e in part)]
    means = averaged(values, panels.most)
    drawn = [_grid(part, values, means, panels) for part in parts or _parts(curves)[:1]]
    for i, panel in enumerate(panels.names):
        _finish([grid.flat[i] for _, grid in drawn], panel, panels, labelled=i % panels.columns == 0)
    if len(drawn) == 1:
        yield Drawing(name, title, drawn[0][0], alt, caption)
        return
    caption += (
        f" The rows of the table are split over {len(drawn)} figures with the same axes; a baseline, black, is in each "
        "of them."
    )
    for number, (figure, _) in enumerate(drawn, 1):
        part = f"{number} of {len(drawn)}"
        last = caption if number == len(drawn) else ""
        yield Drawing(f"{name}-{number}", f"{title}, {part}", figure, f"{alt} Part {part}.", last)


def _parts(curves: Sequence[Curves]) -> list[list[Curves]]:
    """Rows by the figure in which they are, several figures of about equal size with the reference in each."""
    if len(curves) <= MOST_LINES:
        return [list(curves)]
    reference = [each for each in curves if each.reference]
    others = [each for each in curves if not each.reference]
    size = math.ceil(len(others) / math.ceil(len(others) / MOST_LINES))
    parts = [[*reference, *others[start : start + size]] for start in range(0, len(others), size)]
    return [sorted(part, key=lambda each: each.place) for part in parts]


def _grid(
    curves: Sequence[Curves], values: pd.DataFrame, means: pd.DataFrame, panels: Panels
) -> tuple[Figure, np.ndarray]:
    """A figure with the lines of these rows and a legend, and its panels."""
    columns = min(panels.columns, len(panels.names))
    lines = math.ceil(len(panels.names) / columns)
    legend_columns = 3 if max(len(figure_text(each.row.label)) for each in curves) < 36 else 1
    height = panels.height * lines + 0.25 * math.ceil(len(curves) / legend_columns) + 0.2
    figure, grid = plt.subplots(lines, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels.names) :]:
        axes.set_visible(False)
    handles: dict[int, Any] = {}
    for axes, name in zip(grid.flat, panels.names, strict=False):
        if panels.logarithmic:
            axes.set_yscale("log")
        for each in curves:
            if (name, each.place) in means.index:
                handles[each.place] = _draw(axes, means.loc[(name, each.place)], panels, each.colour)
                if panels.points:
                    single = values[(values["panel"] == name) & (values["place"] == each.place)]
                    axes.plot(single["x"], single["value"], ".", color=each.colour, markersize=4, alpha=0.6)
    labels = {each.place: figure_text(each.row.label) for each in curves if each.place in handles}
    if labels:
        figure.legend(
            [handles[place] for place in labels],
            labels.values(),
            loc="outside lower center",
            ncols=min(legend_columns, len(labels)),
            fontsize=9,
            frameon=False,
        )
    return figure, grid


def _draw(axes: Axes, means: pd.DataFrame, panels: Panels, colour: str) -> Any:
    """A line of means with a band of one standard deviation to either side; returns the line."""
    low = (means["mean"] - means["deviation"]).clip(lower=panels.limits[0])
    high = (means["mean"] + means["deviation"]).clip(upper=panels.limits[1])
    x, mean = means["x"], means["mean"]
    if panels.logarithmic:
        low, mean, high = np.exp(low), np.exp(mean), np.exp(high)
    marker = panels.marker or ("." if len(means) == 1 or not panels.joined else "")
    (line,) = axes.plot(x, mean, "-" if panels.joined else "", color=colour, linewidth=1.3, marker=marker)
    if panels.joined:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, alpha=0.3)
    return line


def _finish(same: Sequence[Axes], name: str, panels: Panels, labelled: bool) -> None:
    """Titles, labels, and the same axes for one panel in all figures."""
    drawn = [axes for axes in same if axes.lines]
    for axes in same:
        axes.set_title(figure_text(name), fontsize=10)
        axes.set_xlabel(figure_text(panels.xlabel) if panels.xlabel else "")
        axes.set_ylabel(panels.ylabel if labelled else "")
        axes.grid(alpha=0.3)
        if axes not in drawn:
            axes.text(0.5, 0.5, panels.empty, transform=axes.transAxes, ha="center", color="0.4")
    if drawn:
        (lefts, rights), (lows, highs) = (
            zip(*limits, strict=True)
            for limits in ([axes.get_xlim() for axes in drawn], [axes.get_ylim() for axes in drawn])
        )
        margin = MARGIN * (panels.limits[1] - panels.limits[0])
        low, high = max(min(lows), panels.limits[0] - margin), min(max(highs), panels.limits[1] + margin)
        for axes in same:
            axes.set(xlim=(min(lefts), max(rights)), ylim=(low, high))
    for axes in same:
        if panels.xlabel in ("epoch", "step"):
            axes.locator_params(axis="x", integer=True)
        if panels.logarithmic:
            plain_log_ticks(axes.yaxis)
        if panels.finish is not None:
            panels.finish(axes, name)
