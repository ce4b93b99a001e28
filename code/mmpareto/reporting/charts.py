"""Figures as Vega-Lite views (https://vega.github.io/vega-lite): one description for the page and for all files.

A figure is a list of panels and the data that they share. The page draws each panel as wide as its column; the files
hold the panels side by side. Names are data, never parts of an expression.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vl_convert

from mmpareto.escape import on_one_line, shortened
from mmpareto.reporting.comparison import Row
from mmpareto.reporting.histories import History

MOST_LINES = 8  # rows that are drawn at first; the page has a switch for each of the others
MOST_POINTS = 200  # positions along the x axis; more are averaged in bins of equal width
MOST_CHARACTERS = 60  # of a name
SCALE = 1.5  # pixels of a PNG per unit of the drawing
WIDTHS = {1: 640, 2: 300, 3: 200}  # of a panel, by the number of columns; for files
HEIGHT = 190  # of a panel
COLOURS = (
    *("#3b78c3", "#e07b1a", "#2f9e6e", "#cf4a4a", "#8b63c6", "#a0734b", "#d566a8", "#1f9fb4", "#8a9a2b", "#7f7f8c"),
)
DASHES: tuple[list[int], ...] = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])  # each time that all colours are used
CONFIG: dict[str, Any] = {  # the page replaces its colours by those of its theme
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "#454d59",
        "titleColor": "#454d59",
        "gridColor": "#e6e8ec",
        "domainColor": "#b4bac4",
        "tickColor": "#b4bac4",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "labelOverlap": True,
        "tickCount": 5,
    },
    # one face of a font alone: vl-convert writes several in another order each time, and files must be the same again
    "title": {"anchor": "start", "fontSize": 12, "fontWeight": "normal", "color": "#1b2027"},
    "legend": {"title": None, "labelFontSize": 11, "labelLimit": 420, "labelColor": "#1b2027", "symbolOpacity": 1},
    "axisY": {"labelFlush": True},
    "range": {"heatmap": ["#f1f5fb", "#9dbfe6", "#3b78c3", "#12335f"]},
}
SHOWN: list[dict[str, Any]] = [  # rows that are switched on, with their names
    {"filter": "indexof(hidden, datum.row) < 0"},
    {"calculate": "names[datum.row]", "as": "method"},
]
RING = {"type": "point", "size": 24, "strokeWidth": 1.2}  # a single seed; opacity would make PDFs large
METHOD = {"field": "method", "title": "method"}
BAND = "A line is the mean over seeds, its band one sample standard deviation to either side."
RUN = ({"field": "run", "title": "run"}, {"field": "seed", "title": "seed"})

View = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """A Vega-Lite view without data and width; row: of the table, if it is about that row alone."""

    view: View
    row: int | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of a dataset.

    name, title, alt, caption   for the file, the heading, screen readers, and below it
    datasets   {name: values} that the panels refer to
    names      of the lines, if they are no rows of the table; then the page gives the figure switches of its own
    """

    name: str
    title: str
    alt: str
    caption: str
    panels: Sequence[Panel]
    datasets: Mapping[str, Sequence[Mapping[str, Any]]]
    columns: int = 2
    names: Sequence[str] = ()

    def specification(self, names: Sequence[str], hidden: Sequence[int]) -> View:
        """The whole figure for a file. names: of the rows; hidden: rows that are not drawn."""
        names, hidden = (self.names, []) if self.names else (names, hidden)
        # where every panel is that of a hidden row, the first ones are drawn
        views = [panel.view for panel in self.panels if panel.row not in hidden] or [
            panel.view for panel in self.panels[: self.columns]
        ]
        columns = min(self.columns, len(views))
        still = [
            view | {"layer": [layer for layer in view["layer"] if "params" not in layer]} if "layer" in view else view
            for view in views
        ]  # without what answers the pointer
        return {
            "params": parameters(names, hidden),
            "datasets": self.datasets,
            "concat": [{**view, "width": WIDTHS[columns]} for view in still],
            "columns": columns,
            "resolve": {"scale": {"color": "shared", "strokeDash": "shared"}, "legend": {"color": "shared"}},
            "background": "white",
            "padding": 12,
            "config": CONFIG,
        }


def parameters(names: Sequence[str], hidden: Sequence[int]) -> list[View]:
    """The parameters of every specification: the rows' names, those not drawn, whether single seeds are drawn."""
    shown = [row for row in range(len(names)) if row not in hidden]
    values = {"names": list(names), "hidden": list(hidden), "shown": shown, "seeds": False}
    return [{"name": name, "value": value} for name, value in values.items()]


def files(specification: View) -> dict[str, bytes]:
    """{suffix: content} of a figure as SVG, PDF and PNG."""
    svg = vl_convert.vegalite_to_svg(specification)
    return {
        "svg": svg.encode(),
        "pdf": in_order(vl_convert.svg_to_pdf(svg)),
        "png": vl_convert.svg_to_png(svg, scale=SCALE),
    }


def in_order(pdf: bytes) -> bytes:
    """A PDF with its resources in the order of their names: vl-convert lists them in another order each time."""
    resources = rb"(/(?:XObject|ExtGState|Font|Pattern|Shading) <<\n)((?: +/\w+ \d+ 0 R\n)+)"
    return re.sub(resources, lambda match: match[1] + b"".join(sorted(match[2].splitlines(keepends=True))), pdf)


@functools.cache
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; takes some seconds."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


@dataclass(frozen=True)
class Curves:
    """A row of the comparison with the histories of its runs.

    place      of the row in the table, from 0
    run_names  of the runs by their folders, as a reader sees them
    """

    row: Row
    histories: Sequence[History]
    place: int
    run_names: Mapping[Path, str] = field(default_factory=dict)

    @property
    def described(self) -> list[View]:
        """For each run its name and its seed."""
        names = [self.run_names.get(run.path, "/".join(run.path.parts[-2:])) for run in self.row.runs]
        return [{"run": text(name), "seed": run.seed} for name, run in zip(names, self.row.runs, strict=True)]


def described_runs(curves: Sequence[Curves]) -> dict[tuple[int, int], View]:
    """{(place, number of the run): its name and its seed}."""
    return {(line.place, run): described for line in curves for run, described in enumerate(line.described)}


def text(name: str) -> str:
    """A name for a figure: one line, not too long."""
    return shortened(on_one_line(name), MOST_CHARACTERS)


def unique(names: Sequence[str]) -> list[str]:
    """Names, with a number added to those that an earlier one is equal to."""
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def colour(rows: int, legend: bool = True) -> View:
    """The colour of a row, the same in all figures."""
    shown = {"orient": "bottom", "columns": 3, "labelExpr": "names[datum.value]", "values": {"expr": "shown"}}
    palette = [COLOURS[row % len(COLOURS)] for row in range(rows)]
    scale = {"domain": list(range(rows)), "range": palette}
    return {"field": "row", "type": "nominal", "scale": scale, "legend": shown if legend else None}


def dash(rows: int) -> View:
    """The dashes of a row's lines; empty while there are enough colours."""
    if rows <= len(COLOURS):
        return {}
    styles = [DASHES[row // len(COLOURS) % len(DASHES)] for row in range(rows)]
    scale = {"domain": list(range(rows)), "range": styles}
    return {"strokeDash": {"field": "row", "type": "nominal", "scale": scale, "legend": None}}


def quantity(name: str, title: str, number: str = ".4~g") -> View:
    """A line of a tooltip with a number."""
    return {"field": name, "type": "quantitative", "title": title, "format": number}


def numbers(values: Sequence[float] | pd.Series) -> list[float | None]:
    """Five digits of each number; None for NaN, which JSON lacks."""
    return [None if math.isnan(value) else float(f"{value:.5g}") for value in values]


def collect(curves: Sequence[Curves], table: Callable[[History], pd.DataFrame]) -> pd.DataFrame:
    """A table of every run's history, one below the other, with the columns `place` and `run` (its number) added."""
    tables = [
        table(history).assign(place=line.place, run=run)
        for line in curves
        for run, history in enumerate(line.histories)
    ]
    return pd.concat(tables, ignore_index=True)


def averaged(values: pd.DataFrame, most: float = math.inf) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means in bins: of each run, and over runs.

    values  columns `panel`, `place`, `run`, `x`, `value`; NaN is left out
    most    bins at most; each position is a bin of its own if there are few enough

    Returns `x` (mean position) and `value` by panel, place, run and bin; `x`, `mean`, `deviation` (sample standard
    deviation, NaN for a single run) and `runs` (their number) by panel, place and bin.
    """
    values = values.dropna(subset=["value"])
    positions = np.unique(values["x"])
    bins = values["x"]
    if len(positions) > most:
        bins = pd.cut(values["x"], np.linspace(positions[0] - 0.5, positions[-1] + 0.5, int(most) + 1), labels=False)
    of_runs = values.assign(bin=bins).groupby(["panel", "place", "run", "bin"])[["x", "value"]].mean()
    over_runs = of_runs.groupby(["panel", "place", "bin"]).agg(
        x=("x", "mean"), mean=("value", "mean"), deviation=("value", "std"), runs=("value", "count")
    )
    return of_runs, over_runs


@dataclass(frozen=True)
class Axes:
    """What the panels of curves show.

    names        the panels' titles
    limits       possible values: bands end there
    logarithmic  means and bands of the logarithm; values of 0 and below are left out
    points       whether the values of single runs are drawn from the start, beside their mean
    joined       whether the means are joined by lines
    conflict     whether values below 0 are shaded
    """

    names: Sequence[str]
    xlabel: str
    ylabel: str
    columns: int = 2
    limits: tuple[float, float] = (-math.inf, math.inf)
    most: float = MOST_POINTS
    logarithmic: bool = False
    logarithmic_x: bool = False
    points: bool = False
    joined: bool = True
    conflict: bool = False


def curve_figure(
    name: str,
    title: str,
    alt: str,
    caption: str,
    runs: Mapping[tuple[int, int], View],
    values: pd.DataFrame,
    axes: Axes,
    names: Sequence[str] = (),
) -> Figure:
    """Lines of means with a band of one standard deviation to either side.

    runs    {(place, number of the run): its name and its seed}
    values  see `averaged`
    names   see `Figure`
    """
    if axes.logarithmic:
        values = values[values["value"] > 0].assign(value=lambda table: np.log(table["value"]))
    of_runs, over_runs = averaged(values, axes.most)
    over_runs["low"] = (over_runs["mean"] - over_runs["deviation"]).clip(lower=axes.limits[0])
    over_runs["high"] = (over_runs["mean"] + over_runs["deviation"]).clip(upper=axes.limits[1])
    if axes.logarithmic:
        of_runs["value"] = np.exp(of_runs["value"])
        over_runs[["mean", "low", "high"]] = np.exp(over_runs[["mean", "low", "high"]])
        over_runs = over_runs.drop(columns="deviation")
    means, single = [], []
    for (panel, place), table in over_runs.groupby(["panel", "place"], sort=False):
        series = {column: numbers(table[column]) for column in table}
        means.append({"panel": axes.names.index(panel), "row": place} | series)
    for (panel, place, run), table in of_runs.groupby(["panel", "place", "run"], sort=False):
        series = {column: numbers(table[column]) for column in table}
        single.append({"panel": axes.names.index(panel), "row": place} | runs[place, run] | series)
    rows = len({place for place, _ in runs})
    floor = min(-0.1, over_runs["low"].min(), over_runs["mean"].min()) if axes.conflict else 0.0
    ticks = 8 if axes.logarithmic and over_runs["mean"].max() < 50 * over_runs["mean"].min() else 3
    panels = [
        Panel(_curve_view(number, rows, axes, list(over_runs), floor, ticks)) for number in range(len(axes.names))
    ]
    datasets = {"means": means, "single": single}
    return Figure(name, title, alt, caption, panels, datasets, axes.columns, [text(label) for label in names])


def _curve_view(number: int, rows: int, axes: Axes, columns: Sequence[str], floor: float, ticks: int) -> View:
    """A panel of `curve_figure`. floor: of the shaded region of conflict; ticks: on a logarithmic axis."""

    def layer(data: str, mark: View, unfolded: Sequence[str], **encoding: Any) -> View:
        encoding = {"color": colour(rows), **(dash(rows) if mark["type"] == "line" else {}), **encoding}
        where = {"filter": {"field": "panel", "equal": number}}
        return {
            "data": {"name": data},
            "transform": [where, *SHOWN, {"flatten": list(unfolded)}],
            "mark": mark,
            "encoding": {"x": x, "y": y | {"field": "value" if data == "single" else "mean"}, **encoding},
        }

    def when(condition: str, view: View) -> View:
        return view | {"transform": [{"filter": condition}, *view["transform"]]}

    def hover(view: View, name: str, *fields: str) -> View:
        select = {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": fields}
        opacity = {"condition": {"param": name, "empty": False, "value": 1}, "value": 0}
        return view | {
            "params": [{"name": name, "select": select}],
            "encoding": view["encoding"] | {"opacity": opacity},
        }

    x: View = {"field": "x", "type": "quantitative", "title": axes.xlabel, "scale": {"zero": False, "nice": False}}
    if axes.logarithmic_x:
        x |= {"scale": {"type": "log", "nice": False, "padding": 8}, "axis": {"format": "~g", "tickCount": 3}}
    elif axes.xlabel in ("epoch", "step"):
        x |= {"axis": {"format": "~s" if axes.xlabel == "step" else "d", "tickMinStep": 1}}
    y: View = {"type": "quantitative", "title": axes.ylabel, "scale": {"zero": False}}
    if axes.logarithmic:
        y |= {"scale": {"type": "log", "nice": False}, "axis": {"format": "~g", "tickCount": ticks}}
    position = quantity("x", axes.xlabel)
    spread = [quantity("deviation", "± deviation")] if "deviation" in columns else []
    if axes.logarithmic:
        spread = [quantity("low", "from"), quantity("high", "to")]
    of_mean = [METHOD, position, quantity("mean", "mean"), *spread, quantity("runs", "seeds", "d")]
    of_run = [METHOD, *RUN, position, quantity("value", "value")]
    dot = {"type": "point", "filled": True, "opacity": 1}
    target = dot | {"size": 140}  # not seen until the pointer is on it
    band = {"y": y | {"field": "low"}, "y2": {"field": "high"}}
    layers = []
    if axes.conflict:
        shade = {"type": "rect", "color": "#cf4a4a", "opacity": 0.1}
        region = {"y": {"datum": floor}, "y2": {"datum": 0}}
        layers = [{"data": {"values": [{}]}, "mark": shade, "encoding": region}]
    if axes.joined:
        layers.append(layer("means", {"type": "area", "opacity": 0.14}, columns, **band))
        layers.append(
            when(
                "seeds",
                layer(
                    "single",
                    {"type": "line", "strokeWidth": 1, "opacity": 0.6},
                    ("x", "value"),
                    detail={"field": "run"},
                ),
            )
        )
        line = {"type": "line", "strokeWidth": 2, "point": {"size": 22} if axes.points else False}
        layers.append(layer("means", line, columns))
    else:
        layers.append(layer("means", {"type": "rule", "strokeWidth": 0.7}, columns, **band))
        layers.append(layer("means", dot | {"size": 24}, columns))
    if axes.points:
        layers.append(layer("single", RING, ("x", "value")))
    layers.append(hover(when("!seeds", layer("means", target, columns, tooltip=of_mean)), "at_mean", "row", "x"))
    layers.append(hover(when("seeds", layer("single", target, ("x", "value"), tooltip=of_run)), "at_run", "run", "x"))
    return {"title": text(axes.names[number]), "height": HEIGHT, "layer": layers}
