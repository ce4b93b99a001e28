"""What the figures of a report have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpareto.reporting.comparison import Row
from mmpareto.reporting.histories import Columns, History

__all__ = [
    "PANEL_HEIGHT",
    "WIDTH",
    "Curve",
    "CurveOf",
    "Curves",
    "Drawing",
    "colour",
    "epoch_edges",
    "line_style",
    "listed",
    "panels",
    "plt",
    "short",
]

WIDTH, PANEL_HEIGHT = 9.0, 3.1  # inches
Curve = tuple[np.ndarray, ...]  # position, mean, deviation
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
    """A row of the comparison with the histories of its runs."""

    row: Row
    histories: Sequence[History]

    def steps(self, encoder: str) -> list[Columns]:
        """The measured steps of every run that has some of this encoder."""
        return [history.steps[encoder] for history in self.histories if encoder in history.steps]


CurveOf = Callable[[Curves], Curve | None]


def colour(place: int) -> str:
    """The colour of a row of the table, by its place."""
    return f"C{place % 10}"


def line_style(place: int) -> str:
    """The style of a row's lines, another one where colours are used up."""
    return _STYLES[place // 10 % len(_STYLES)]


def short(label: str, most: int = 60) -> str:
    """A label cut to a length that a legend can hold."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def epoch_edges(epochs: Iterable[np.ndarray]) -> np.ndarray:
    """Edges of a bin per epoch."""
    last = max(float(values.max()) for values in epochs if len(values))
    return np.arange(0.5, last + 1)


def panels(
    curves: Sequence[Curves],
    titled: Mapping[str, CurveOf],
    xlabel: str,
    ylabel: str,
    *,
    columns: int = 2,
    marker: str = "",
    scattered: bool = False,
    logarithmic: bool = False,
    extra_height: float = 0.0,
    finish: Callable[[Axes], Any] | None = None,
    empty: str = "nothing was measured",
) -> Figure:
    """A grid of titled panels with a line per row, one legend below; for logarithmic ones curves are logarithms."""
    columns = min(columns, len(titled))
    lines = math.ceil(len(titled) / columns)
    legend_columns = 3 if max(len(short(each.row.label)) for each in curves) < 36 else 1
    height = (PANEL_HEIGHT + extra_height) * lines + 0.25 * math.ceil(len(curves) / legend_columns) + 0.2
    figure, grid = plt.subplots(lines, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
    for axes in grid.flat[len(titled) :]:
        axes.set_visible(False)
    handles: dict[int, Any] = {}
    for number, (title, curve) in enumerate(titled.items()):
        axes, drawn = grid.flat[number], False
        for place, each in enumerate(curves):
            points = curve(each)
            if points is None or len(points[0]) == 0:
                continue
            position, mean, deviation = points
            low, high = mean - deviation, mean + deviation
            if logarithmic:
                mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
            (handles[place],) = axes.plot(
                position,
                mean,
                color=colour(place),
                linestyle="" if scattered else line_style(place),
                linewidth=1.3,
                marker=marker or ("." if scattered or len(position) == 1 else ""),
            )
            if scattered:
                axes.vlines(position, low, high, color=colour(place), alpha=0.3)
            else:
                axes.fill_between(position, low, high, color=colour(place), alpha=0.15, linewidth=0)
            drawn = True
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(xlabel)
        if number % columns == 0:
            axes.set_ylabel(ylabel)
        if not drawn:
            axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", color="0.4")
        elif logarithmic:
            axes.set_yscale("log")
        if xlabel == "epoch":
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if finish is not None:
            finish(axes)
    if handles:
        places = sorted(handles)
        figure.legend(
            [handles[place] for place in places],
            [short(curves[place].row.label) for place in places],
            loc="outside lower center",
            ncols=min(legend_columns, len(places)),
            fontsize=9,
            frameon=False,
        )
    return figure
