"""Figures of evaluate.py: confusion, subsets of modalities with their Shapley values, reliability."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmpareto.escape import figure_text
from mmpareto.reporting.evaluation_tables import missing_curves, shown_subsets, subset_name
from mmpareto.reporting.rendering import plt

MOST = 24  # characters of a name
MOST_CLASSES = 60  # names along an axis
MOST_NUMBERS = 12  # classes up to which a confusion matrix shows its numbers


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """A confusion matrix normalised by row: of each class's samples, the percentage predicted as each class.

    confusion  [C, C] counts; row the class, column the prediction. Rows without samples stay empty.
    """
    size = min(12.0, 3.5 + 0.3 * len(classes))
    figure, axes = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    fontsize = max(4, min(9, 200 // min(len(classes), MOST_CLASSES)))
    counts = np.array(confusion, dtype=float)
    totals = counts.sum(1, keepdims=True)
    share = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    every = math.ceil(len(classes) / MOST_CLASSES)
    image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
    names = [figure_text(name, MOST) for name in classes[::every]]
    ticks = np.arange(0, len(classes), every)
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=fontsize)
    axes.set_yticks(ticks, names, fontsize=fontsize)
    if len(classes) <= MOST_NUMBERS:
        for row, column in np.argwhere(share > 0):
            colour = "white" if share[row, column] > 60 else "black"
            axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, label="percent of the class")
    axes.set(xlabel="predicted", ylabel="class", title=figure_text(title))
    return figure


def subset_figure(subsets: Sequence[Mapping[str, Any]], contributions: Mapping[str, float], title: str) -> Figure:
    """Bars: accuracy for each subset of the modalities, and each modality's Shapley value.

    subsets  {"present": names, "accuracy": percent}; contributions {modality: points}.
    """
    shown = shown_subsets(subsets)
    height = max(3.0, 0.9 + 0.32 * len(shown))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, height), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
    )
    bars = left.barh(range(len(shown)), [row["accuracy"] for row in shown], color="C0")
    left.set_yticks(range(len(shown)), [figure_text(subset_name(row["present"]), 2 * MOST) for row in shown])
    left.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    left.set(xlabel="accuracy in percent", xlim=(0, 109), title=figure_text(title))
    bars = right.barh(range(len(contributions)), list(contributions.values()), color="C1")
    right.set_yticks(range(len(contributions)), [figure_text(name, MOST) for name in contributions])
    right.bar_label(bars, fmt="%+.1f", padding=2, fontsize=8)
    right.axvline(0, color="0.5", linewidth=0.8)
    right.margins(x=0.2)
    right.set(xlabel="points of accuracy", title="Shapley value")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    return figure


def missing_figure(evaluation: Mapping[str, Any], title: str) -> Figure:
    """Curves: accuracy against the fraction of the samples that lack a modality (see `missing_curves`)."""
    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for name, curve in missing_curves(evaluation).items():
        axes.plot([100 * rate for rate in curve], list(curve.values()), marker="o", label=figure_text(name, MOST))
    axes.set(xlabel="samples that lack the modality, percent", ylabel="accuracy in percent", title=figure_text(title))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def reliability_figure(heads: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy against confidence, bin by bin, a panel per head; on the dashed line a head knows how sure it may be.

    heads  {name: metrics of `evaluation.metrics.head_metrics`}.
    """
    figure, panels = plt.subplots(
        2,
        len(heads),
        figsize=(3.6 * len(heads), 4.6),
        layout="constrained",
        squeeze=False,
        sharex=True,
        gridspec_kw={"height_ratios": [3, 1]},
    )
    for column, (name, metrics) in enumerate(heads.items()):
        top, bottom = panels[0, column], panels[1, column]
        bins = metrics["reliability"]
        low = [100 * part["low"] for part in bins]
        width = 100 / len(bins)
        filled = [part for part in bins if part["samples"]]
        top.bar(
            [100 * part["low"] for part in filled],
            [part["accuracy"] for part in filled],
            width,
            align="edge",
            color="C0",
            edgecolor="white",
            label="accuracy",
        )
        top.plot(
            [part["confidence"] for part in filled],
            [part["accuracy"] for part in filled],
            "o",
            color="C3",
            markersize=3,
            label="at mean confidence",
        )
        top.plot([0, 100], [0, 100], "--", color="0.4", linewidth=0.8)
        top.set(
            ylim=(0, 101), xlim=(0, 100), title=f"{figure_text(name, MOST)}: ECE {metrics['calibration_error']:.1f}"
        )
        bottom.bar(low, [part["samples"] for part in bins], width, align="edge", color="0.6", edgecolor="white")
        bottom.set(xlabel="confidence in percent")
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
    panels[0, 0].set(ylabel="accuracy in percent")
    panels[1, 0].set(ylabel="samples")
    panels[0, 0].legend(fontsize=8, loc="upper left")
    return figure
