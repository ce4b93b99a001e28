"""What the figures of a report have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpareto.escape import figure_text
from mmpareto.reporting.comparison import Row
from mmpareto.reporting.histories import Columns, History
from mmpareto.reporting.rendering import plt

__all__ = [
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
    "parts",
    "plt",
    "split",
]

WIDTH, PANEL_HEIGHT = 9.0, 3.1  # inches
MOST_LINES = 8  # rows in one figure of curves; of more there are several figures
Curve = tuple[np.ndarray, ...]  # position, mean, deviation; positions and values of single points, where there are some
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
    reference  whether it is the baseline, black, and in every figure where rows are split over several
    """

    row: Row
    histories: Sequence[History]
    place: int
    reference: bool = False

    @property
    def colour(self) -> str:
        """The row's colour in all figures; rows that share a figure of curves have colours of their own."""
        return "black" if self.reference else colour(self.place)

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


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def epoch_edges(epochs: Iterable[np.ndarray]) -> np.ndarray:
    """Edges of a bin per epoch."""
    last = max(float(values.max()) for values in epochs if len(values))
    return np.arange(0.5, last + 1)


def parts(curves: Sequence[Curves]) -> list[list[Curves]]:
    """Rows by the figure in which they are: one where they are few, else several of about equal size, with the
    reference, first, in each.
    """
    if len(curves) <= MOST_LINES:
        return [list(curves)]
    reference = [each for each in curves if each.reference]
    others = [each for each in curves if not each.reference]
    size = math.ceil(len(others) / math.ceil(len(others) / MOST_LINES))
    return [[*reference, *others[start : start + size]] for start in range(0, len(others), size)]


def split(name: str, title: str, figures: Sequence[Figure], alt: str, caption: str) -> Iterator[Drawing]:
    """What `panels` made as one drawing, or several with a number each; the caption stands below the last."""
    if len(figures) == 1:
        yield Drawing(name, title, figures[0], alt, caption)
        return
    for number, figure in enumerate(figures, 1):
        part = f"{number} of {len(figures)}"
        said = f"{caption} The rows of the table are split over {len(figures)} figures with the same axes; a baseline, "
        yield Drawing(
            f"{name}-{number}",
            f"{title}, {part}",
            figure,
            f"{alt} Part {part}.",
            f"{said}black, is in each of them." if number == len(figures) else "",
        )


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
    finish: Callable[[Axes, str], Any] | None = None,
    empty: str = "nothing was measured",
) -> list[Figure]:
    """A grid of titled panels with a line per row, one legend below; for logarithmic ones curves are logarithms.

    Rows of which there is nothing are left out. Of more than MOST_LINES rows there are several figures (see `parts`);
    a panel has the same axes in all of them.

    finish  called with every panel and its title.
    """
    points = {
        title: [(each, found) for each in curves if _some(found := curve(each))] for title, curve in titled.items()
    }
    there = {each.place for found in points.values() for each, _ in found}
    drawn_parts = [part for part in parts(curves) if any(e.place in there and not e.reference for e in part)]
    made = []
    for part in drawn_parts or parts(curves)[:1]:
        places = {each.place for each in part}
        chosen = {title: [pair for pair in found if pair[0].place in places] for title, found in points.items()}
        made.append(_grid(chosen, columns, marker, scattered, logarithmic, extra_height))
    for number, title in enumerate(titled):
        same = [grid.flat[number] for _, grid in made]
        drawn = [axes for axes in same if axes.lines]
        limits = [(axes.get_xlim(), axes.get_ylim()) for axes in drawn]
        for axes in same:
            axes.set_title(figure_text(title), fontsize=10)
            axes.set_xlabel(figure_text(xlabel) if xlabel else "")
            if number % min(columns, len(titled)) == 0:
                axes.set_ylabel(ylabel)
            if drawn:
                for limit, own in zip((axes.set_xlim, axes.set_ylim), zip(*limits, strict=True), strict=True):
                    limit(min(low for low, _ in own), max(high for _, high in own))
            if axes not in drawn:
                axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", color="0.4")
            if xlabel == "epoch":
                axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            if finish is not None:
                finish(axes, title)
    return [figure for figure, _ in made]


def _grid(
    points: Mapping[str, Sequence[tuple[Curves, Curve]]],
    columns: int,
    marker: str,
    scattered: bool,
    logarithmic: bool,
    extra_height: float,
) -> tuple[Figure, np.ndarray]:
    """A figure with its lines and legend, and its panels."""
    columns = min(columns, len(points))
    lines = math.ceil(len(points) / columns)
    rows = {each.place: each.row for found in points.values() for each, _ in found}
    legend_columns = 3 if max((len(figure_text(row.label)) for row in rows.values()), default=0) < 36 else 1
    height = (PANEL_HEIGHT + extra_height) * lines + 0.25 * math.ceil(len(rows) / legend_columns) + 0.2
    figure, grid = plt.subplots(lines, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
    for axes in grid.flat[len(points) :]:
        axes.set_visible(False)
    handles: dict[int, Any] = {}
    for axes, found in zip(grid.flat, points.values(), strict=False):
        for each, (position, mean, deviation, *single) in found:
            low, high = mean - deviation, mean + deviation
            if logarithmic:
                mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
            (handles[each.place],) = axes.plot(
                position,
                mean,
                color=each.colour,
                linestyle="" if scattered else "-",
                linewidth=1.3,
                marker=marker or ("." if scattered or len(position) == 1 else ""),
            )
            if single:
                axes.plot(*single, ".", color=each.colour, markersize=4, alpha=0.6)
            if scattered:
                axes.vlines(position, low, high, color=each.colour, alpha=0.3)
            else:
                axes.fill_between(position, low, high, color=each.colour, alpha=0.15, linewidth=0)
        if logarithmic and found:
            axes.set_yscale("log")
    if rows:
        places = sorted(rows)
        figure.legend(
            [handles[place] for place in places],
            [figure_text(rows[place].label) for place in places],
            loc="outside lower center",
            ncols=min(legend_columns, len(places)),
            fontsize=9,
            frameon=False,
        )
    return figure, grid


def _some(curve: Curve | None) -> TypeGuard[Curve]:
    return curve is not None and len(curve[0]) > 0
