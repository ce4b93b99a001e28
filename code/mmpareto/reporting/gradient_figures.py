"""Figures of the gradients that training measured, a dataset's rows side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mmpareto.escape import figure_text
from mmpareto.reporting.drawing import PANEL_HEIGHT, Curves, Drawing, Panels, collect, curve_drawings, listed

MOST_TENSORS = 32  # names along an axis
BAND = "A line is the mean over seeds, its band one sample standard deviation to either side."


def drawings(dataset: str, curves: Sequence[Curves]) -> Iterator[Drawing]:
    """All of them, one at a time; none if nothing was measured."""
    steps = collect(curves, lambda history: history.steps)
    if not steps.empty:
        steps = steps.rename(columns={"encoder": "panel"})
        for draw in (cosine, norms, joint_weight, conflict_rate):
            yield from draw(dataset, curves, steps)
    layers = collect(curves, lambda history: history.layers)
    if not layers.empty:
        yield from conflict_in_layers(dataset, curves, layers)


def _panels(steps: pd.DataFrame, curves: Sequence[Curves], ylabel: str) -> Panels:
    """A panel per encoder over the steps; many lines can only be told apart if they are smooth."""
    return Panels(list(steps["panel"].unique()), "step", ylabel, most=200 if len(curves) <= 3 else 60)


def _binned(panels: Panels) -> str:
    return f"Steps are averaged in at most {panels.most} bins, first within a run, then over seeds"


def cosine(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Iterator[Drawing]:
    """Cosine of joint and unimodal gradient over the steps, conflict shaded.

    steps  `panel` (encoder), `place`, `run` and the columns of gradients.csv.
    """

    def shade(axes: Axes, _: str) -> None:
        low, high = axes.get_ylim()
        low = min(low, -0.1)
        axes.axhspan(low, 0, color="C3", alpha=0.09, zorder=0)
        axes.axhline(0, color="0.5", linewidth=0.8, zorder=1)
        axes.text(0.99, 0.02, "conflict", transform=axes.transAxes, ha="right", color="#a02020", fontsize=9)
        axes.set_ylim(low, high)

    panels = _panels(steps, curves, "cosine")
    yield from curve_drawings(
        "cosine",
        "Cosine of the joint and the unimodal gradient",
        f"Cosine of joint and unimodal gradient over the training steps on {dataset}, a panel each for the encoders "
        f"{listed(panels.names)}; the region below zero is shaded as conflict.",
        "Cosine of the angle between the gradient of the joint loss and that of the modality's own loss, over all "
        f"parameters of an encoder. Below 0, shaded, the two are in conflict. {_binned(panels)}. {BAND} Lines join "
        "the steps that a method measures.",
        curves,
        steps.rename(columns={"step": "x", "cosine": "value"}),
        replace(panels, limits=(-1, 1), finish=shade),
    )


def norms(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Iterator[Drawing]:
    """Norms of both gradients and their ratio, a row of panels per encoder."""
    panels = _panels(steps, curves, "Euclidean norm, or ratio")
    quantities = {
        "joint gradient": steps["joint_norm"],
        "unimodal gradient": steps["unimodal_norm"],
        "joint / unimodal": steps["joint_norm"] / steps["unimodal_norm"].where(steps["unimodal_norm"] > 0),
    }
    values = pd.concat(
        steps[["place", "run"]].assign(panel=steps["panel"] + f": {name}", x=steps["step"], value=quantity)
        for name, quantity in quantities.items()
    )
    names = [f"{encoder}: {name}" for encoder in panels.names for name in quantities]
    yield from curve_drawings(
        "norms",
        "Gradient norms",
        f"Norms of the joint and the unimodal gradient and their ratio over the training steps on {dataset}, for the "
        f"encoders {listed(panels.names)}; logarithmic scale.",
        "Euclidean norm of the joint and of the unimodal gradient over all parameters of an encoder, before they are "
        "integrated, and joint norm divided by unimodal norm. The scale is logarithmic: means are geometric, the band "
        f"is one sample standard deviation of the logarithm. {_binned(panels)}.",
        curves,
        values,
        replace(panels, names=names, columns=3, logarithmic=True),
    )


def joint_weight(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Iterator[Drawing]:
    """The joint gradient's share of the weights at steps in conflict."""
    panels = _panels(steps, curves, "share of the joint gradient")
    last = steps["step"].max()

    def full_range(axes: Axes, _: str) -> None:
        axes.set(xlim=(-0.03 * last - 0.5, 1.03 * last + 0.5), ylim=(-0.03, 1.03))

    yield from curve_drawings(
        "joint-weight",
        "Weight of the joint gradient in conflict",
        f"Share of the joint gradient in the integrated gradient at steps in conflict on {dataset}, a panel each for "
        f"the encoders {listed(panels.names)}.",
        "The joint gradient's coefficient as a share of both coefficients, at the steps where the two gradients of an "
        "encoder are in conflict: 0.5 is a plain sum, 1 leaves the unimodal gradient out. Only bins with conflicts "
        f"have a point. {_binned(panels)}; a point is the mean over seeds, its bar one sample standard deviation to "
        "either side.",
        curves,
        steps[steps["conflict"] > 0].rename(columns={"step": "x", "joint_weight": "value"}),
        replace(panels, limits=(0, 1), joined=False, finish=full_range, empty="no conflict was measured"),
    )


def conflict_rate(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Iterator[Drawing]:
    """Share of the measured steps in conflict, epoch by epoch."""
    names = list(steps["panel"].unique())
    yield from curve_drawings(
        "conflict-rate",
        "Conflict rate",
        f"Percentage of steps in conflict over the epochs on {dataset}, a panel each for the encoders {listed(names)}.",
        "Measured steps of an epoch at which the cosine of joint and unimodal gradient is below 0, in percent of the "
        f"measured steps. {BAND}",
        curves,
        steps.assign(x=steps["epoch"], value=100.0 * (steps["conflict"] > 0)),
        Panels(names, "epoch", "steps in conflict in percent", limits=(0, 100), marker="."),
    )


def conflict_in_layers(dataset: str, curves: Sequence[Curves], layers: pd.DataFrame) -> Iterator[Drawing]:
    """Share of the measured steps in conflict, parameter tensor by parameter tensor, a panel per encoder.

    layers  `encoder`, `layer`, `rate`, `place` and `run`.
    """
    tensors = {name: list(table["layer"].unique()) for name, table in layers.groupby("encoder", sort=False)}
    places = {(name, tensor): i for name, each in tensors.items() for i, tensor in enumerate(each)}
    positions = [places[pair] for pair in zip(layers["encoder"], layers["layer"], strict=True)]

    def name_tensors(axes: Axes, encoder: str) -> None:
        names = [figure_text(tensor_label(tensor), 32) for tensor in tensors[encoder]]
        every = math.ceil(len(names) / MOST_TENSORS)
        axes.set_xticks(np.arange(0, len(names), every), names[::every], rotation=90, fontsize=8)

    yield from curve_drawings(
        "conflict-in-layers",
        "Conflict rate per layer",
        f"Percentage of steps in conflict for every parameter tensor on {dataset}, a panel each for the encoders "
        f"{listed(list(tensors))}.",
        "Measured steps of the whole training at which the cosine of the two gradients of one parameter tensor is "
        "below 0, in percent of the measured steps; tensors are in the order of the model, and not all of them are "
        f"named if there are many. {BAND}",
        curves,
        layers.assign(panel=layers["encoder"], x=positions, value=100 * layers["rate"]),
        Panels(
            list(tensors),
            "",
            "steps in conflict in percent",
            columns=2 if max(map(len, tensors.values())) <= MOST_TENSORS // 2 else 1,
            limits=(0, 100),
            marker=".",
            height=PANEL_HEIGHT + 1,
            finish=name_tensors,
        ),
    )


def tensor_label(name: str) -> str:
    """The name of a parameter tensor for a reader: "0.weight" of a `torch.nn.Sequential` is "layer 0 weight"."""
    return re.sub(r"^(\d+(\.\d+)*)\.", r"layer \1 ", name)
