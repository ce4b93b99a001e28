"""Figures of the gradients that training measured, a dataset's rows side by side."""

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from mmpareto.reporting.charts import (
    BAND,
    METHOD,
    MOST_POINTS,
    SHOWN,
    Axes,
    Curves,
    Figure,
    Panel,
    View,
    collect,
    colour,
    curve_figure,
    described_runs,
    listed,
    numbers,
    quantity,
    text,
    unique,
)


def figures(dataset: str, curves: Sequence[Curves]) -> Iterator[Figure]:
    """All of them, one at a time; none if nothing was measured."""
    steps = collect(curves, lambda history: history.steps)
    if not steps.empty:
        steps = steps.rename(columns={"encoder": "panel"})
        for draw in (cosine, norms, joint_weight, conflict_rate):
            yield draw(dataset, curves, steps)
    layers = collect(curves, lambda history: history.layers)
    if not layers.empty:
        yield conflict_in_layers(dataset, curves, layers)


def _most(curves: Sequence[Curves]) -> int:
    """Bins of steps; many lines can only be told apart if they are smooth."""
    return MOST_POINTS if len(curves) <= 3 else 60


def _binned(curves: Sequence[Curves]) -> str:
    return f"Steps are averaged in at most {_most(curves)} bins, first within a run, then over seeds"


def cosine(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Figure:
    """Cosine of joint and unimodal gradient over the steps, conflict shaded.

    steps  `panel` (encoder), `place`, `run` and the columns of gradients.csv.
    """
    names = list(steps["panel"].unique())
    return curve_figure(
        "cosine",
        "Cosine of the joint and the unimodal gradient",
        f"Cosine of joint and unimodal gradient over the training steps on {dataset}, a panel each for the encoders "
        f"{listed(names)}; the region below zero is shaded as conflict.",
        "Cosine of the angle between the gradient of the joint loss and that of the modality's own loss, over all "
        f"parameters of an encoder. Below 0, shaded, the two are in conflict. {_binned(curves)}. {BAND} Lines join "
        "the steps that a method measures.",
        described_runs(curves),
        steps.rename(columns={"step": "x", "cosine": "value"}),
        Axes(names, "step", "cosine", limits=(-1, 1), most=_most(curves), conflict=True),
    )


def norms(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Figure:
    """Norms of both gradients and their ratio, three panels per encoder."""
    encoders = list(steps["panel"].unique())
    quantities = {
        "joint gradient": steps["joint_norm"],
        "unimodal gradient": steps["unimodal_norm"],
        "joint / unimodal": steps["joint_norm"] / steps["unimodal_norm"].where(steps["unimodal_norm"] > 0),
    }
    values = pd.concat(
        steps[["place", "run"]].assign(panel=steps["panel"] + f": {name}", x=steps["step"], value=values)
        for name, values in quantities.items()
    )
    names = [f"{encoder}: {name}" for encoder in encoders for name in quantities]
    return curve_figure(
        "norms",
        "Gradient norms",
        f"Norms of the joint and the unimodal gradient and their ratio over the training steps on {dataset}, for the "
        f"encoders {listed(encoders)}; logarithmic scale.",
        "Euclidean norm of the joint and of the unimodal gradient over all parameters of an encoder, before they are "
        "integrated, and joint norm divided by unimodal norm. The scale is logarithmic: means are geometric, the band "
        f"is one sample standard deviation of the logarithm. {_binned(curves)}.",
        described_runs(curves),
        values,
        Axes(names, "step", "Euclidean norm, or ratio", columns=3, most=_most(curves), logarithmic=True),
    )


def joint_weight(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Figure:
    """The joint gradient's share of the weights at steps in conflict."""
    names = list(steps["panel"].unique())
    return curve_figure(
        "joint-weight",
        "Weight of the joint gradient in conflict",
        f"Share of the joint gradient in the integrated gradient at steps in conflict on {dataset}, a panel each for "
        f"the encoders {listed(names)}.",
        "The joint gradient's coefficient as a share of both coefficients, at the steps where the two gradients of an "
        "encoder are in conflict: 0.5 is a plain sum, 1 leaves the unimodal gradient out. Only bins with conflicts "
        f"have a point. {_binned(curves)}; a point is the mean over seeds, its bar one sample standard deviation to "
        "either side.",
        described_runs(curves),
        steps[steps["conflict"] > 0].rename(columns={"step": "x", "joint_weight": "value"}),
        Axes(names, "step", "share of the joint gradient", limits=(0, 1), most=_most(curves), joined=False),
    )


def conflict_rate(dataset: str, curves: Sequence[Curves], steps: pd.DataFrame) -> Figure:
    """Share of the measured steps in conflict, epoch by epoch."""
    names = list(steps["panel"].unique())
    return curve_figure(
        "conflict-rate",
        "Conflict rate",
        f"Percentage of steps in conflict over the epochs on {dataset}, a panel each for the encoders {listed(names)}.",
        "Measured steps of an epoch at which the cosine of joint and unimodal gradient is below 0, in percent of the "
        f"measured steps. {BAND}",
        described_runs(curves),
        steps.assign(x=steps["epoch"], value=100.0 * (steps["conflict"] > 0)),
        Axes(names, "epoch", "steps in conflict in percent", limits=(0, 100)),
    )


def conflict_in_layers(dataset: str, curves: Sequence[Curves], layers: pd.DataFrame) -> Figure:
    """Share of the measured steps in conflict, parameter tensor by parameter tensor, a panel per encoder.

    layers  `encoder`, `layer`, `rate`, `place` and `run`.
    """
    cells, panels = list[View](), list[Panel]()
    for encoder, table in layers.groupby("encoder", sort=False):
        tensors = list(table["layer"].unique())
        labels = unique([text(tensor_label(tensor)) for tensor in tensors])
        means = table.groupby(["place", "layer"], sort=False)["rate"].agg(["mean", "std", "count"])
        for (place, tensor), mean, deviation, count in means.itertuples():
            values = dict(zip(("rate", "deviation"), numbers([100 * mean, 100 * deviation]), strict=True))
            cell = {"panel": len(panels), "row": place, "tensor": labels[tensors.index(tensor)], "runs": count}
            cells.append(cell | values)
        x = quantity("rate", "steps in conflict in percent", ".3~g")
        y = {"field": "tensor", "type": "nominal", "title": None, "scale": {"domain": labels}}
        deviation = quantity("deviation", "± deviation", ".3~g")
        tooltip = [METHOD, {"field": "tensor"}, x, deviation, quantity("runs", "seeds", "d")]
        view = {
            "title": text(str(encoder)),
            "height": {"step": 15},
            "data": {"name": "cells"},
            "transform": [{"filter": {"field": "panel", "equal": len(panels)}}, *SHOWN],
            "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1},
            "encoding": {
                "x": x | {"axis": {"format": "~g"}},
                "y": y | {"axis": {"labelLimit": 130, "grid": True, "labelOverlap": False}},
                "color": colour(len(curves)),
                "tooltip": tooltip,
            },
        }
        panels.append(Panel(view))
    return Figure(
        "conflict-in-layers",
        "Conflict rate per layer",
        f"Percentage of steps in conflict for every parameter tensor on {dataset}, a panel for each encoder.",
        "Measured steps of the whole training at which the cosine of the two gradients of one parameter tensor is "
        "below 0, in percent of the measured steps; a point is the mean over seeds, tensors are in the order of the "
        "model.",
        panels,
        {"cells": cells},
    )


def tensor_label(name: str) -> str:
    """The name of a parameter tensor for a reader: "0.weight" of a `torch.nn.Sequential` is "layer 0 weight"."""
    return re.sub(r"^(\d+(\.\d+)*)\.", r"layer \1 ", name)
