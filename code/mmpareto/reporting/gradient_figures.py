"""Figures of the gradients that training saw, a dataset's rows side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from mmpareto.escape import figure_text
from mmpareto.reporting.drawing import Curve, CurveOf, Curves, Drawing, epoch_edges, listed, panels, split
from mmpareto.reporting.histories import Columns, across, step_edges

MOST_TENSORS = 32  # names along an axis
FEW_ROWS = 3


def _bins(curves: Sequence[Curves]) -> int:
    """Bins of steps at most: many lines beside one another can only be told apart where they are smooth."""
    return 200 if len(curves) <= FEW_ROWS else 60


def _averaged(curves: Sequence[Curves]) -> str:
    """What a line over the steps is."""
    return (
        f"Steps are averaged in at most {_bins(curves)} bins, first within a run, then over seeds; a line is the mean "
        "over seeds, its band one sample standard deviation to either side. Of a method that measures only some steps, "
        "lines join these."
    )


def drawings(dataset: str, curves: Sequence[Curves]) -> Iterator[Drawing]:
    """All of them, one at a time; none where nothing was measured."""
    encoders = list(dict.fromkeys(name for each in curves for history in each.histories for name in history.steps))
    if encoders:
        yield from cosine(dataset, curves, encoders)
        yield from norms(dataset, curves, encoders)
        yield from joint_weight(dataset, curves, encoders)
        yield from conflict_rate(dataset, curves, encoders)
    if any(history.layers for each in curves for history in each.histories):
        yield from conflict_in_layers(dataset, curves)


def cosine(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Iterator[Drawing]:
    """Cosine of joint and unimodal gradient over the steps, conflict shaded."""

    def shade(axes: Axes, _: str) -> None:
        low, high = axes.get_ylim()
        low, high = max(-1.0, min(low, -0.1)), min(1.0, high)
        axes.axhspan(low, 0, color="C3", alpha=0.09, zorder=0)
        axes.axhline(0, color="0.5", linewidth=0.8, zorder=1)
        axes.text(0.99, 0.02, "conflict", transform=axes.transAxes, ha="right", color="#a02020", fontsize=9)
        axes.set_ylim(low, high)

    figures = panels(
        curves,
        {encoder: _over_steps(curves, encoder, lambda steps: steps["cosine"]) for encoder in encoders},
        "step",
        "cosine",
        finish=shade,
    )
    yield from split(
        "cosine",
        "Cosine of the joint and the unimodal gradient",
        figures,
        f"Cosine of joint and unimodal gradient over the training steps on {dataset}, a panel each for the encoders "
        f"{listed(encoders)}; the region below zero is shaded as conflict.",
        "Cosine of the angle between the gradient of the joint loss and that of the modality's own loss, over all "
        f"parameters of an encoder. Below 0, shaded, the two are in conflict. {_averaged(curves)}",
    )


def norms(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Iterator[Drawing]:
    """Norms of both gradients and their ratio, a row of panels per encoder."""

    def joint(steps: Columns) -> np.ndarray:
        return _log(steps["joint_norm"])

    def unimodal(steps: Columns) -> np.ndarray:
        return _log(steps["unimodal_norm"])

    def ratio(steps: Columns) -> np.ndarray:
        return joint(steps) - unimodal(steps)

    shown = {"joint gradient": joint, "unimodal gradient": unimodal, "joint / unimodal": ratio}
    titled = {
        f"{encoder}: {what}": _over_steps(curves, encoder, value)
        for encoder in encoders
        for what, value in shown.items()
    }
    figures = panels(curves, titled, "step", "Euclidean norm, or ratio", columns=3, logarithmic=True)
    yield from split(
        "norms",
        "Gradient norms",
        figures,
        f"Norms of the joint and the unimodal gradient and their ratio over the training steps on {dataset}, for the "
        f"encoders {listed(encoders)}; logarithmic scale.",
        "Euclidean norm of the joint and of the unimodal gradient over all parameters of an encoder, before they are "
        "integrated, and joint norm divided by unimodal norm. The scale is logarithmic: means are geometric, the band "
        f"is one sample standard deviation of the logarithm. {_averaged(curves)}",
    )


def joint_weight(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Iterator[Drawing]:
    """The joint gradient's share of the weights at steps in conflict."""

    last = max(float(steps["step"].max()) for each in curves for encoder in encoders for steps in each.steps(encoder))

    def full_range(axes: Axes, _: str) -> None:
        axes.set(xlim=(-0.03 * last - 0.5, 1.03 * last + 0.5), ylim=(-0.03, 1.03))

    def at_conflict(steps: Columns) -> np.ndarray:
        return np.where(steps["conflict"] > 0, steps["joint_weight"], np.nan)

    figures = panels(
        curves,
        {encoder: _over_steps(curves, encoder, at_conflict) for encoder in encoders},
        "step",
        "share of the joint gradient",
        scattered=True,
        finish=full_range,
        empty="no conflict was measured",
    )
    yield from split(
        "joint-weight",
        "Weight of the joint gradient in conflict",
        figures,
        f"Share of the joint gradient in the integrated gradient at steps in conflict on {dataset}, a panel each for "
        f"the encoders {listed(encoders)}.",
        "The joint gradient's coefficient as a share of both coefficients, at the steps where the two gradients of an "
        "encoder are in conflict: 0.5 is a plain sum, 1 leaves the unimodal gradient out. Only bins with such steps "
        f"have a point. Steps are averaged in at most {_bins(curves)} bins, first within a run, then over seeds; a "
        "point is the mean over seeds, its bar one sample standard deviation to either side.",
    )


def conflict_rate(dataset: str, curves: Sequence[Curves], encoders: Sequence[str]) -> Iterator[Drawing]:
    """Share of the measured steps in conflict, epoch by epoch."""
    edges = epoch_edges(
        steps["epoch"] for each in curves for history in each.histories for steps in history.steps.values()
    )

    def curve(each: Curves, encoder: str) -> Curve | None:
        series = [(steps["epoch"], 100.0 * (steps["conflict"] > 0)) for steps in each.steps(encoder)]
        return across(series, edges) if series else None

    figures = panels(
        curves,
        {encoder: partial(curve, encoder=encoder) for encoder in encoders},
        "epoch",
        "steps in conflict in percent",
        finish=lambda axes, _: axes.set_ylim(-2, max(10.0, min(102.0, axes.get_ylim()[1]))),
        marker=".",
    )
    yield from split(
        "conflict-rate",
        "Conflict rate",
        figures,
        f"Percentage of steps in conflict over the epochs on {dataset}, a panel each for the encoders "
        f"{listed(encoders)}.",
        "Measured steps of an epoch at which the cosine of joint and unimodal gradient is below 0, in percent of the "
        "measured steps. A line is the mean over seeds, its band one sample standard deviation to either side.",
    )


def conflict_in_layers(dataset: str, curves: Sequence[Curves]) -> Iterator[Drawing]:
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

    def name_tensors(axes: Axes, encoder: str) -> None:
        names = [figure_text(name, 32) for name in tensors[encoder]]
        every = math.ceil(len(names) / MOST_TENSORS)
        axes.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=8)
        axes.set_ylim(-2, max(10.0, min(102.0, axes.get_ylim()[1])))

    figures = panels(
        curves,
        {encoder: partial(curve, encoder=encoder) for encoder in tensors},
        "",
        "steps in conflict in percent",
        columns=2 if max(map(len, tensors.values())) <= MOST_TENSORS // 2 else 1,
        finish=name_tensors,
        marker=".",
        extra_height=1.0,
    )
    yield from split(
        "conflict-in-layers",
        "Conflict rate per layer",
        figures,
        f"Percentage of steps in conflict for every parameter tensor on {dataset}, a panel each for the encoders "
        f"{listed(list(tensors))}.",
        "Measured steps of the whole training at which the cosine of the two gradients of one parameter tensor is "
        "below 0, in percent of the measured steps; tensors stand in the order of the model, not all of them named "
        "where there are many. A line is the mean over seeds, its band one sample standard deviation to either side.",
    )


def _over_steps(curves: Sequence[Curves], encoder: str, value: Callable[[Columns], np.ndarray]) -> CurveOf:
    """What gives the curve of a row: a value of an encoder's steps in bins that all rows share."""
    edges = step_edges([steps["step"] for each in curves for steps in each.steps(encoder)], _bins(curves))

    def curve(each: Curves) -> Curve | None:
        series = [(steps["step"], value(steps)) for steps in each.steps(encoder)]
        return across(series, edges) if series else None

    return curve


def _log(values: np.ndarray) -> np.ndarray:
    """Natural logarithm; NaN where there is none."""
    return np.log(values, out=np.full(len(values), np.nan), where=values > 0)
