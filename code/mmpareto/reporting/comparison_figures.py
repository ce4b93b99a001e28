"""Figures of a dataset's rows side by side; every row keeps its colour through all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from mmpareto.escape import figure_text
from mmpareto.reporting import gradient_figures
from mmpareto.reporting.drawing import (
    WIDTH,
    Curve,
    CurveOf,
    Curves,
    Drawing,
    epoch_edges,
    listed,
    panels,
    plt,
    split,
)
from mmpareto.reporting.histories import METHOD, Confusion, across
from mmpareto.reporting.sweeps import Sweep, sweeps

MOST_CLASSES = 16  # names along an axis
MOST_INCHES = 200  # of a figure; matplotlib draws no more than 65,536 pixels
MARGIN = 1.2  # beside what an axis holds: points in percent; a factor where it is logarithmic


def drawings(
    dataset: str, curves: Sequence[Curves], modalities: Sequence[str], baseline: str | None = None
) -> Iterator[Drawing]:
    """All figures of a dataset, one at a time; of what was not measured there is none. baseline: a method's name."""
    yield accuracy_bars(dataset, curves)
    for flag, sweep in sweeps([each.row for each in curves]).items():
        yield from accuracy_over_values(dataset, flag, sweep, modalities, baseline)
    yield from learning_curves(dataset, curves, modalities)
    scored = [(each, pooled) for each in curves if (pooled := _pooled(each)) is not None]
    if scored:
        yield confusion(dataset, scored)
    yield from gradient_figures.drawings(dataset, curves)
    yield from method_figures(dataset, curves)


def accuracy_bars(dataset: str, curves: Sequence[Curves]) -> Drawing:
    """Bars of mean joint test accuracy, every seed a point."""
    rows = [each.row for each in curves]
    figure, axes = plt.subplots(figsize=(WIDTH, min(1.1 + 0.42 * len(rows), MOST_INCHES)), layout="constrained")
    for place, (row, each) in enumerate(zip(rows, curves, strict=True)):
        mean = float(np.mean(row.joint))
        axes.barh(place, mean, color=each.colour, alpha=0.25 if each.reference else 0.45, height=0.68)
        if len(row.runs) > 1:
            axes.errorbar(mean, place, xerr=float(np.std(row.joint, ddof=1)), color="0.25", capsize=4, linewidth=1.2)
        offsets = np.linspace(-0.2, 0.2, len(row.joint)) if len(row.joint) > 1 else np.zeros(1)
        axes.plot(
            row.joint, place + offsets, "o", color=each.colour, markersize=5, markeredgecolor="black", linestyle=""
        )
    axes.set_yticks(range(len(rows)), [figure_text(row.label) for row in rows])
    axes.set(xlabel="joint test accuracy in percent", xlim=(0, None), ylim=(len(rows) - 0.4, -0.6))  # as in the table
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


def accuracy_over_values(
    dataset: str, flag: str, sweep: Sweep, modalities: Sequence[str], baseline: str | None
) -> Iterator[Drawing]:
    """Test accuracy against the values of a flag, a panel for the joint head and each modality's own."""
    points = list(sweep.values())
    values = [value for curve in points for value, _ in curve]
    reference = [place for place, curve in enumerate(points) if curve[0][1].runs[0].method == baseline]
    lines = [
        Curves(replace(curve[0][1], label=label), [], place, reference == [place])
        for place, (label, curve) in enumerate(sweep.items())
    ]

    def over(each: Curves, name: str) -> Curve | None:
        scores = [(x, row.joint if name == "joint" else row.accuracies(name)) for x, row in points[each.place]]
        found = [(x, np.mean(own), np.std(own, ddof=1) if len(own) > 1 else 0.0) for x, own in scores if own]
        single = [(x, value) for x, own in scores for value in own]
        return (*np.array(found).T, *np.array(single).T) if found else None

    def scale(axes: Axes, _: str) -> None:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -MARGIN), min(high, 100 + MARGIN))  # a band may leave what is possible
        least, most = min(values), max(values)
        if least > 0 and most / least >= 10:
            axes.set_xscale("log")
            axes.set_xlim(least / MARGIN, most * MARGIN)

    names = ["joint", *modalities]
    figures = panels(
        lines,
        {name if name == "joint" else f"{name} alone": partial(over, name=name) for name in names},
        flag,
        "test accuracy in percent",
        columns=3 if len(names) == 3 else 2,
        marker="o",
        finish=scale,
    )
    yield from split(
        f"over-{flag.replace(' ', '-')}",
        f"Accuracy over {flag}",
        figures,
        f"Test accuracy in percent over the values of {flag} on {dataset}, a line for each of {listed(list(sweep))}; "
        f"panels: {listed(names)}.",
        f"Test accuracy in percent with the selected checkpoint, of rows that differ in {flag} alone. A line is the "
        "mean over seeds, a point one seed, the band one sample standard deviation to either side of the mean.",
    )


def learning_curves(dataset: str, curves: Sequence[Curves], modalities: Sequence[str]) -> Iterator[Drawing]:
    """Validation accuracy over the epochs, a panel for the joint head and each modality's own."""

    names = ["joint", *modalities]
    figures = panels(
        curves,
        {name if name == "joint" else f"{name} alone": _over_epochs(curves, f"val_accuracy_{name}") for name in names},
        "epoch",
        "validation accuracy in percent",
        columns=3 if len(names) == 3 else 2,
    )
    yield from split(
        "learning-curves",
        "Learning curves",
        figures,
        f"Validation accuracy over the epochs on {dataset}, a line per row of the table; panels: {listed(names)}.",
        "Accuracy in percent on the validation split after every epoch, of the joint head and of each modality's own "
        "head. A line is the mean over seeds, its band one sample standard deviation to either side. Where runs "
        "stopped at different epochs, an epoch's mean is over the runs that reached it.",
    )


def method_figures(dataset: str, curves: Sequence[Curves]) -> Iterator[Drawing]:
    """What methods told of themselves over the epochs, a panel for each number; none where no method told anything."""
    telling = {each.place: [n for h in each.histories for n in h.epochs if n.startswith(METHOD)] for each in curves}
    told = list(dict.fromkeys(name for names in telling.values() for name in names))
    if not told:
        return
    curves = [each for each in curves if telling[each.place]]
    if len({each.colour for each in curves}) < len(curves):  # rows far apart in the table, side by side here
        curves = [replace(each, place=place) for place, each in enumerate(curves)]
    titles = [name.removeprefix(METHOD).replace("_", " ") for name in told]
    yield from split(
        "method-figures",
        "The methods' own figures",
        panels(
            curves,
            {title: _over_epochs(curves, name) for title, name in zip(titles, told, strict=True)},
            "epoch",
            "value",
            columns=min(3, len(told)),
        ),
        f"What methods wrote of their own state over the epochs on {dataset}; panels: {listed(titles)}.",
        "Weights of losses, factors of learning rates and the like after every epoch, of the methods that have such; "
        "docs/methods.md says what they are. A line is the mean over seeds, its band one sample standard deviation to "
        "either side.",
    )


def confusion(dataset: str, scored: Sequence[tuple[Curves, Confusion]]) -> Drawing:
    """A confusion matrix per row, summed over its scored seeds and normalised by class."""
    columns = min(3, len(scored))
    lines = math.ceil(len(scored) / columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(WIDTH, (WIDTH / 3 + 0.3) * lines), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(scored) :]:
        axes.set_visible(False)
    for axes, (each, pooled) in zip(grid.flat, scored, strict=False):
        totals = pooled.counts.sum(1, keepdims=True)
        share = np.divide(100 * pooled.counts, totals, out=np.full_like(pooled.counts, np.nan), where=totals > 0)
        image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
        every = math.ceil(len(pooled.classes) / MOST_CLASSES)
        ticks, names = range(0, len(pooled.classes), every), [figure_text(name, 12) for name in pooled.classes[::every]]
        axes.set_xticks(ticks, names, fontsize=7, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(ticks, names, fontsize=7)
        axes.set_title(figure_text(each.row.label, 36), fontsize=9, color=each.colour)
    figure.colorbar(image, ax=grid, shrink=0.7, label="percent of the class")
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("class", fontsize=10)
    seeds = "; ".join(
        f"{each.row.label}: {sum(history.confusion is not None for history in each.histories)} of "
        f"{len(each.row.runs)} seeds"
        for each, _ in scored
    )
    return Drawing(
        "confusion",
        "Confusion matrices",
        figure,
        f"Confusion matrices of the joint head on {dataset}'s test split, a panel per row of the table.",
        "Of the samples of each class, the percentage that the joint head took for each class; summed over the seeds "
        f"that evaluate.py has scored ({seeds}).",
    )


def _over_epochs(curves: Sequence[Curves], column: str) -> CurveOf:
    """The curve of a column of metrics.csv."""
    edges = epoch_edges(history.epochs["epoch"] for each in curves for history in each.histories)

    def curve(each: Curves) -> Curve | None:
        series = [(h.epochs["epoch"], h.epochs[column]) for h in each.histories if column in h.epochs]
        return across(series, edges) if series else None

    return curve


def _pooled(each: Curves) -> Confusion | None:
    """The sum of a row's confusion matrices; None where there is none."""
    matrices = [history.confusion for history in each.histories if history.confusion is not None]
    if not matrices:
        return None
    return Confusion(np.sum([matrix.counts for matrix in matrices], axis=0), matrices[0].classes)
