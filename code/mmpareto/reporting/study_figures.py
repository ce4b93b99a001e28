"""Figures of study.py: noise of gradients, the loss around the weights, its sharpness; runs side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmpareto.escape import counted, figure_text
from mmpareto.reporting.rendering import plt

_STYLES = ("-", "--", "-.", ":")  # of lines; another one each time that all colours are used


def noise_figure(study: Mapping[str, Any]) -> Figure:
    """Mean norm and trace of the covariance of both gradients, logarithmic, a row of panels per encoder."""
    encoders = list(dict.fromkeys(name for run in study["runs"] for name in run["noise"]))
    labels = [figure_text(run["label"], 30) for run in study["runs"]]
    figure, grid = plt.subplots(
        len(encoders), 2, figsize=(9, 2.8 * len(encoders) + 0.3), layout="constrained", squeeze=False
    )
    places = np.arange(len(labels))
    for row, encoder in enumerate(encoders):
        for axes, key, title in zip(
            grid[row], ("mean_norm", "covariance_trace"), ("mean norm", "trace of the covariance"), strict=True
        ):
            values = []
            for side, which in enumerate(("joint", "unimodal")):
                # a run whose encoder is frozen has none
                values += [run["noise"].get(encoder, {which: {key: np.nan}})[which][key] for run in study["runs"]]
                # points, not bars: on a logarithmic axis a bar's length means nothing
                axes.plot(places, values[-len(places) :], "os"[side], color=f"C{side}", label=f"{which} gradient")
            axes.set_xticks(places, labels, fontsize=8, rotation=20 if len(labels) > 2 else 0)
            axes.set_title(f"{figure_text(encoder, 24)}: {title}", fontsize=10)
            positive = [value for value in values if value > 0]
            if positive:
                axes.set_yscale("log")
                axes.set_ylim(10 ** np.floor(np.log10(min(positive))), 10 ** np.ceil(np.log10(1.01 * max(positive))))
            axes.set_xlim(-0.6, len(labels) - 0.4)
            axes.grid(axis="y", alpha=0.3)
    grid[0, 0].legend(fontsize=8)
    return figure


def loss_figure(study: Mapping[str, Any]) -> Figure:
    """Joint loss and accuracy along the directions: their mean, and from the least to the greatest of them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for place, run in enumerate(study["runs"]):
        for axes, key in ((left, "losses"), (right, "accuracies")):
            rows = np.array(run["loss"][key])
            style = {"color": f"C{place % 10}", "linestyle": _STYLES[place // 10 % len(_STYLES)]}
            axes.plot(run["loss"]["alphas"], rows.mean(0), label=figure_text(run["label"], 40), **style)
            axes.fill_between(run["loss"]["alphas"], rows.min(0), rows.max(0), color=f"C{place % 10}", alpha=0.15)
    left.set(ylabel="joint cross-entropy", title=f"{counted(study['samples'], 'sample')} of {study['split']}")
    right.set(ylabel="accuracy in percent", title=f"{study['directions']} random directions, least to greatest")
    for axes in (left, right):
        axes.set(xlabel="distance, in lengths of the weights' filters")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure


def sharpness_figure(study: Mapping[str, Any]) -> Figure:
    """Bars: the largest eigenvalue of the Hessian of the joint loss."""
    labels = [figure_text(run["label"], 40) + ("" if run["sharpness"]["converged"] else " *") for run in study["runs"]]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.45 * len(labels)), layout="constrained")
    bars = axes.barh(range(len(labels)), [run["sharpness"]["value"] for run in study["runs"]], color="C0")
    axes.set_yticks(range(len(labels)), labels)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    marked = "" if all(run["sharpness"]["converged"] for run in study["runs"]) else " (* not converged)"
    axes.set(xlabel=f"largest eigenvalue of the Hessian of the joint loss{marked}")
    axes.grid(axis="x", alpha=0.3)
    return figure
