"""Figures of a dataset's rows side by side; every row keeps its colour through all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmpareto.reporting.comparison import Row
from mmpareto.reporting.drawing import PANEL_HEIGHT, WIDTH, Drawing, colour, listed, plt, short
from mmpareto.reporting.histories import Columns, Confusion, History, across, step_edges

Curve = tuple[np.ndarray, ...]  # position, mean, deviation
_STYLES = ("-", "--", "-.", ":")
MOST_TENSORS, MOST_CLASSES = 32, 16  # names along an axis


@dataclass(frozen=True)
class Curves:
    """A row of the comparison with the histories of its runs."""

    row: Row
    histories: Sequence[History]

    def steps(self, encoder: str) -> list[Columns]:
        """The measured steps of every run that has some of this encoder."""
        return [history.steps[encoder] for history in self.histories if encoder in history.steps]


CurveOf = Callable[[Curves], Curve | None]


def drawings(dataset: str, curves: Sequence[Curves], modalities: Sequence[str]) -> Iterator[Drawing]:
    """All figures of a dataset, one at a time; those of the gradients only where some were measured."""
    yield accuracy_bars(dataset, [each.row for each in curves])
    yield learning_curves(dataset, curves, modalities)
    encoders = list(dict.fromkeys(name for each in curves for history in each.histories for name in history.steps))
    if encoders:
        yield cosine(dataset, curves, encoders)
        yield norms(dataset, curves, encoders)
        yield joint_weight(dataset, curves, encoders)
        yield conflict_rate(dataset, curves, encoders)
    if any(history.layers for each in curves for history in each.histories):
        yield conflict_in_layers(dataset, curves)
    scored = [(place, each, pooled) for place, each in enumerate(curves) if (pooled := _pooled(each)) is not None]
    if scored:
        yield confusion(dataset, scored)


def accuracy_bars(dataset: str, rows: Sequence[Row]) -> Drawing:
    """Bars of mean joint test accuracy, every seed a point."""
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.42 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        mean = float(np.mean(row.joint))
        axes.barh(place, mean, color=colour(place), alpha=0.45, height=0.68)
        if len(row.runs) > 1:
            axes.errorbar(mean, place, xerr=float(np.std(row.joint, ddof=1)), color="0.25", capsize=4, linewidth=1.2)
        offsets = np.linspace(-0.2, 0.2, len(row.joint)) if len(row.joint) > 1 else np.zeros(1)
        axes.plot(
            row.joint, place + offsets, "o", color=colour(place), markersize=5, markeredgecolor="black", linestyle=""
        )
    axes.set_yticks(range(len(rows)), [short(row.label) for row in rows])
    axes.set(xlabel="joint test accuracy in percent", xlim=(0, None))
    axes.invert_yaxis()  # in the table's order
    axes.grid(alpha=0.3, axis="x")
    said = "; ".join(f"{row.label}: {np.mean(row.joint):.1f} over {len(row.runs)} seeds" for row in rows)
    return Drawing(
        "joint-accuracy",
        "Joint test accuracy",
        figure,
        f"Bars of joint test accuracy in percent on {dataset}. {said}.",
        "Accuracy in percent of the joint head on the test split, with the selected checkpoint. A bar is the mean over "
        "seeds, a point one seed, a whisker the sample standard deviation to either side (none for a single seed).",
    )


def learning_curves(dataset: str, curves: Sequence[Curves], modalities: Sequence[str]) -> Drawing:
    """Validation accuracy over the epochs, a panel for the joint head and each modality's own."""

    def curve(each: Curves, name: str) -> Curve | None:
        column = f"val_accuracy_{name}"
        series = [(h.epochs["epoch"], h.epochs[column]) for h in each.histories if column in h.epochs]
        return across(series, epoch_edges) if series else None

    epoch_edges = _epoch_edges(history.epochs["epoch"] for each in curves for history in each.histories)
    names = ["joint", *modalities]
    figure = _panels(
        curves,
        {name if name == "joint" else f"{name} alone": partial(curve, name=name) for name in names},
        "epoch",
        "validation accuracy in percent",
        columns=3 if len(names) == 3 else 2,
    )
    return Drawing(
        "learning-curves",
        "Learning curves",
        figure,
        f"Validation accuracy over the epochs on {dataset}, a line per row of the table; panels: {listed(names)}.",
        "Accuracy in percent on the validation split after every epoch, of the joint head and of each modality's own "
        "head. A line is the mean over seeds, its band one sample standard deviation to either side. Where runs "
        "stopped at different epochs, an epoch's mean is over the runs that reached it.",
    )


def cosine(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Drawing:
    """Cosine of joint and unimodal gradient over the steps, conflict shaded."""

    def shade(axes: Axes) -> None:
        low, high = axes.get_ylim()
        low, high = max(-1.0, min(low, -0.1)), min(1.0, high)
        axes.axhspan(low, 0, color="C3", alpha=0.09, zorder=0)
        axes.axhline(0, color="0.5", linewidth=0.8, zorder=1)
        axes.text(0.99, 0.02, "conflict", transform=axes.transAxes, ha="right", color="#a02020", fontsize=9)
        axes.set_ylim(low, high)

    figure = _panels(
        curves,
        {encoder: _over_steps(curves, encoder, lambda steps: steps["cosine"]) for encoder in encoders},
        "step",
        "cosine",
        finish=shade,
    )
    return Drawing(
        "cosine",
        "Cosine of the joint and the unimodal gradient",
        figure,
        f"Cosine of joint and unimodal gradient over the training steps on {dataset}, a panel each for the encoders "
        f"{listed(encoders)}; the region below zero is shaded as conflict.",
        "Cosine of the angle between the gradient of the joint loss and that of the modality's own loss, over all "
        f"parameters of an encoder. Below 0, shaded, the two are in conflict. {_BINS}",
    )


def norms(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Drawing:
    """Norms of both gradients and their ratio, a row of panels per encoder."""

    def joint(steps: Columns) -> np.ndarray:
        return _log(steps["joint_norm"])

    def unimodal(steps: Columns) -> np.ndarray:
        return _log(steps["unimodal_norm"])

    def ratio(steps: Columns) -> np.ndarray:
        return joint(steps) - unimodal(steps)

    shown = {"joint gradient": joint, "unimodal gradient": unimodal, "joint / unimodal": ratio}
    panels = {
        f"{encoder}: {what}": _over_steps(curves, encoder, value)
        for encoder in encoders
        for what, value in shown.items()
    }
    figure = _panels(curves, panels, "step", "Euclidean norm, or ratio", columns=3, logarithmic=True)
    return Drawing(
        "norms",
        "Gradient norms",
        figure,
        f"Norms of the joint and the unimodal gradient and their ratio over the training steps on {dataset}, for the "
        f"encoders {listed(encoders)}; logarithmic scale.",
        "Euclidean norm of the joint and of the unimodal gradient over all parameters of an encoder, before they are "
        "integrated, and joint norm divided by unimodal norm. The scale is logarithmic: means are geometric, the band "
        f"is one sample standard deviation of the logarithm. {_BINS}",
    )


def joint_weight(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Drawing:
    """The joint gradient's share of the weights at steps in conflict."""

    last = max(float(steps["step"].max()) for each in curves for encoder in encoders for steps in each.steps(encoder))

    def full_range(axes: Axes) -> None:
        axes.set(xlim=(-0.03 * last - 0.5, 1.03 * last + 0.5), ylim=(-0.03, 1.03))

    def at_conflict(steps: Columns) -> np.ndarray:
        return np.where(steps["conflict"] > 0, steps["joint_weight"], np.nan)

    figure = _panels(
        curves,
        {encoder: _over_steps(curves, encoder, at_conflict) for encoder in encoders},
        "step",
        "share of the joint gradient",
        scattered=True,
        finish=full_range,
        empty="no conflict was measured",
    )
    return Drawing(
        "joint-weight",
        "Weight of the joint gradient in conflict",
        figure,
        f"Share of the joint gradient in the integrated gradient at steps in conflict on {dataset}, a panel each for "
        f"the encoders {listed(encoders)}.",
        "The joint gradient's coefficient as a share of both coefficients, at the steps where the two gradients of an "
        "encoder are in conflict: 0.5 is a plain sum, 1 leaves the unimodal gradient out. Only bins with such steps "
        "have a point. Steps are averaged in at most 200 bins, first within a run, then over seeds; a point is the "
        "mean over seeds, its bar one sample standard deviation to either side.",
    )


def conflict_rate(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Drawing:
    """Share of the measured steps in conflict, epoch by epoch."""
    epoch_edges = _epoch_edges(
        steps["epoch"] for each in curves for history in each.histories for steps in history.steps.values()
    )

    def curve(each: Curves, encoder: str) -> Curve | None:
        series = [(steps["epoch"], 100.0 * (steps["conflict"] > 0)) for steps in each.steps(encoder)]
        return across(series, epoch_edges) if series else None

    figure = _panels(
        curves,
        {encoder: partial(curve, encoder=encoder) for encoder in encoders},
        "epoch",
        "steps in conflict in percent",
        finish=lambda axes: axes.set_ylim(-2, max(10.0, min(102.0, axes.get_ylim()[1]))),
        marker=".",
    )
    return Drawing(
        "conflict-rate",
        "Conflict rate",
        figure,
        f"Percentage of steps in conflict over the epochs on {dataset}, a panel each for the encoders "
        f"{listed(encoders)}.",
        "Measured steps of an epoch at which the cosine of joint and unimodal gradient is below 0, in percent of the "
        "measured steps. A line is the mean over seeds, its band one sample standard deviation to either side.",
    )


def conflict_in_layers(dataset: str, curves: Sequence[Curves]) -> Drawing:
    """Share of the measured steps in conflict, parameter tensor by parameter tensor, a panel per encoder."""
    tensors: dict[str, list[str]] = {}
    for each in curves:
        for history in each.histories:
            for encoder, own in history.layers.items():
                tensors[encoder] = list(dict.fromkeys([*tensors.get(encoder, []), *own]))

    def curve(each: Curves, encoder: str) -> Curve | None:
        place = {tensor: float(number) for number, tensor in enumerate(tensors[encoder])}
        series = [
            (np.array([place[tensor] for tensor in own]), 100.0 * np.array(list(own.values())))
            for history in each.histories
            if (own := history.layers.get(encoder))
        ]
        return across(series, np.arange(len(place) + 1) - 0.5) if series else None

    def name_tensors(axes: Axes) -> None:
        names = tensors[axes.get_title()]
        every = math.ceil(len(names) / MOST_TENSORS)
        axes.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=8)
        axes.set_ylim(-2, max(10.0, min(102.0, axes.get_ylim()[1])))

    figure = _panels(
        curves,
        {encoder: partial(curve, encoder=encoder) for encoder in tensors},
        "",
        "steps in conflict in percent",
        columns=2 if max(map(len, tensors.values())) <= MOST_TENSORS // 2 else 1,
        finish=name_tensors,
        marker=".",
        extra_height=1.0,
    )
    return Drawing(
        "conflict-in-layers",
        "Conflict rate per layer",
        figure,
        f"Percentage of steps in conflict for every parameter tensor on {dataset}, a panel each for the encoders "
        f"{listed(list(tensors))}.",
        "Measured steps of the whole training at which the cosine of the two gradients of one parameter tensor is "
        "below 0, in percent of the measured steps; tensors stand in the order of the model, not all of them named "
        "where there are many. A line is the mean over seeds, its band one sample standard deviation to either side.",
    )


def confusion(dataset: str, scored: Sequence[tuple[int, Curves, Confusion]]) -> Drawing:
    """A confusion matrix per row, summed over its scored seeds and normalised by class."""
    columns = min(3, len(scored))
    lines = math.ceil(len(scored) / columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(WIDTH, (WIDTH / 3 + 0.3) * lines), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(scored) :]:
        axes.set_visible(False)
    for axes, (place, each, pooled) in zip(grid.flat, scored, strict=False):
        totals = pooled.counts.sum(1, keepdims=True)
        share = np.divide(100 * pooled.counts, totals, out=np.full_like(pooled.counts, np.nan), where=totals > 0)
        image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
        every = math.ceil(len(pooled.classes) / MOST_CLASSES)
        ticks, names = range(0, len(pooled.classes), every), [short(name, 12) for name in pooled.classes[::every]]
        axes.set_xticks(ticks, names, fontsize=7, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(ticks, names, fontsize=7)
        axes.set_title(short(each.row.label, 36), fontsize=9, color=colour(place))
    figure.colorbar(image, ax=grid, shrink=0.7, label="percent of the class")
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("class", fontsize=10)
    seeds = "; ".join(
        f"{each.row.label}: {sum(history.confusion is not None for history in each.histories)} of "
        f"{len(each.row.runs)} seeds"
        for _, each, _ in scored
    )
    return Drawing(
        "confusion",
        "Confusion matrices",
        figure,
        f"Confusion matrices of the joint head on {dataset}'s test split, a panel per row of the table.",
        "Of the samples of each class, the percentage that the joint head took for each class; summed over the seeds "
        f"that evaluate.py has scored ({seeds}).",
    )


def _pooled(each: Curves) -> Confusion | None:
    """The sum of a row's confusion matrices; None where there is none."""
    matrices = [history.confusion for history in each.histories if history.confusion is not None]
    if not matrices:
        return None
    return Confusion(np.sum([matrix.counts for matrix in matrices], axis=0), matrices[0].classes)


_BINS = (
    "Steps are averaged in at most 200 bins, first within a run, then over seeds; a line is the mean over seeds, its "
    "band one sample standard deviation to either side. Methods that measure only some steps have points at those."
)


def _over_steps(curves: Sequence[Curves], encoder: str, value: Callable[[Columns], np.ndarray]) -> CurveOf:
    """What gives the curve of a row: a value of an encoder's steps in bins that all rows share."""
    edges = step_edges([steps["step"] for each in curves for steps in each.steps(encoder)])

    def curve(each: Curves) -> Curve | None:
        series = [(steps["step"], value(steps)) for steps in each.steps(encoder)]
        return across(series, edges) if series else None

    return curve


def _panels(
    curves: Sequence[Curves],
    panels: Mapping[str, CurveOf],
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
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    legend_columns = 3 if max(len(short(each.row.label)) for each in curves) < 36 else 1
    height = (PANEL_HEIGHT + extra_height) * lines + 0.25 * math.ceil(len(curves) / legend_columns) + 0.2
    figure, grid = plt.subplots(lines, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    handles: dict[int, Any] = {}
    for number, (title, curve) in enumerate(panels.items()):
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
                linestyle="" if scattered else _STYLES[place // 10 % len(_STYLES)],
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


def _epoch_edges(epochs: Any) -> np.ndarray:
    last = max(float(values.max()) for values in epochs if len(values))
    return np.arange(0.5, last + 1)


def _log(values: np.ndarray) -> np.ndarray:
    """Natural logarithm; NaN where there is none."""
    return np.log(values, out=np.full(len(values), np.nan), where=values > 0)
