"""Figures of a dataset's rows side by side; every row keeps its colour in all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from mmpareto.escape import figure_text
from mmpareto.reporting import gradient_figures
from mmpareto.reporting.drawing import WIDTH, Curves, Drawing, Panels, collect, curve_drawings, listed
from mmpareto.reporting.evaluation_figures import draw_confusion
from mmpareto.reporting.histories import METHOD, Confusion
from mmpareto.reporting.rendering import plain_log_ticks, plt
from mmpareto.reporting.sweeps import Sweep, sweeps

MOST_CLASSES = 16  # names along an axis
MOST_INCHES = 200  # of a figure; matplotlib draws no more than 65,536 pixels
MARGIN = 1.2  # factor beside the values of a logarithmic axis
PERCENT = (0.0, 100.0)


def drawings(
    dataset: str, curves: Sequence[Curves], modalities: Sequence[str], baseline: str | None = None
) -> Iterator[Drawing]:
    """All figures of a dataset, one at a time; what was not measured has none. baseline: a method's name."""
    yield accuracy_bars(dataset, curves)
    for flag, sweep in sweeps([each.row for each in curves]).items():
        yield from accuracy_over_values(dataset, flag, sweep, modalities, baseline)
    yield from learning_curves(dataset, curves, modalities)
    scored = [(each, pooled) for each in curves if (pooled := _pooled(each)) is not None]
    if scored:
        yield confusion(dataset, scored)
    yield from missing_modalities(dataset, curves)
    yield from gradient_figures.drawings(dataset, curves)
    yield from method_figures(dataset, curves)


def accuracy_bars(dataset: str, curves: Sequence[Curves]) -> Drawing:
    """Bars of mean joint test accuracy, every seed a point."""
    height = min(1.1 + 0.42 * len(curves), MOST_INCHES)
    figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    values = pd.DataFrame(
        [(place, accuracy) for place, each in enumerate(curves) for accuracy in each.row.joint],
        columns=["place", "accuracy"],
    )
    shared = {"data": values, "x": "accuracy", "y": "place", "hue": "place", "orient": "h", "legend": False, "ax": axes}
    palette = {place: each.colour for place, each in enumerate(curves)}
    sns.barplot(**shared, palette=palette, errorbar="sd", alpha=0.45, capsize=0.2, err_kws={"linewidth": 1.2})
    sns.stripplot(**shared, palette=palette, jitter=False, edgecolor="black", linewidth=0.8)
    axes.set_yticks(range(len(curves)), [figure_text(each.row.label) for each in curves])
    axes.set(xlabel="joint test accuracy in percent", ylabel="", xlim=(0, None))
    axes.grid(alpha=0.3, axis="x")
    means = "; ".join(f"{each.row.label}: {each.row.mean:.1f} over {len(each.row.runs)} seeds" for each in curves)
    return Drawing(
        "joint-accuracy",
        "Joint test accuracy",
        figure,
        f"Bars of joint test accuracy in percent on {dataset}. {means}.",
        "Accuracy in percent of the joint head on the test split, with the selected checkpoint. A bar is the mean over "
        "seeds, a point one seed, a whisker the sample standard deviation to either side (none for a single seed).",
    )


def accuracy_over_values(
    dataset: str, flag: str, sweep: Sweep, modalities: Sequence[str], baseline: str | None
) -> Iterator[Drawing]:
    """Test accuracy against the values of a flag, a panel for the joint head and each modality's own."""
    references = [place for place, curve in enumerate(sweep.values()) if curve[0][1].method == baseline]
    curves = [
        Curves(replace(curve[0][1], label=label), [], place, references == [place])
        for place, (label, curve) in enumerate(sweep.items())
    ]
    names = ["joint", *(f"{name} alone" for name in modalities)]
    lines = [
        (name, place, run, x, accuracy)
        for place, curve in enumerate(sweep.values())
        for x, row in curve
        for name, accuracies in zip(names, [row.joint, *map(row.accuracies, modalities)], strict=True)
        for run, accuracy in enumerate(accuracies)
    ]
    values = pd.DataFrame(lines, columns=["panel", "place", "run", "x", "value"])

    def scale(axes: Axes, _: str) -> None:
        low, high = values["x"].min(), values["x"].max()
        if low > 0 and high / low >= 10:
            axes.set_xscale("log")
            axes.set_xlim(low / MARGIN, high * MARGIN)
            plain_log_ticks(axes.xaxis)

    yield from curve_drawings(
        f"over-{flag.replace(' ', '-')}",
        f"Accuracy over {flag}",
        f"Test accuracy in percent over the values of {flag} on {dataset}, a line for each of {listed(list(sweep))}; "
        f"panels: {listed(names)}.",
        f"Test accuracy in percent with the selected checkpoint, of rows that differ in {flag} alone. A line is the "
        "mean over seeds, a point one seed, the band one sample standard deviation to either side of the mean.",
        curves,
        values,
        Panels(
            names,
            flag,
            "test accuracy in percent",
            columns=3 if len(names) == 3 else 2,
            limits=PERCENT,
            points=True,
            marker="o",
            finish=scale,
        ),
    )


def learning_curves(dataset: str, curves: Sequence[Curves], modalities: Sequence[str]) -> Iterator[Drawing]:
    """Validation accuracy over the epochs, a panel for the joint head and each modality's own."""
    columns = {"val_accuracy_joint": "joint"} | {f"val_accuracy_{name}": f"{name} alone" for name in modalities}
    names = list(columns.values())
    yield from curve_drawings(
        "learning-curves",
        "Learning curves",
        f"Validation accuracy over the epochs on {dataset}, a line per row of the table; panels: {listed(names)}.",
        "Accuracy in percent on the validation split after every epoch, of the joint head and of each modality's own "
        "head. A line is the mean over seeds, its band one sample standard deviation to either side. If runs "
        "stopped at different epochs, an epoch's mean is over the runs that reached it.",
        curves,
        _over_epochs(curves, columns),
        Panels(
            names,
            "epoch",
            "validation accuracy in percent",
            columns=3 if len(names) == 3 else 2,
            limits=PERCENT,
        ),
    )


def method_figures(dataset: str, curves: Sequence[Curves]) -> Iterator[Drawing]:
    """What methods record of their own state over the epochs, a panel for each number; none if they record nothing."""
    recorded = {each.place: [name for h in each.histories for name in h.epochs if METHOD in name] for each in curves}
    columns = {name: name.removeprefix(METHOD).replace("_", " ") for names in recorded.values() for name in names}
    if not columns:
        return
    curves = [each for each in curves if recorded[each.place]]
    if len({each.colour for each in curves}) < len(curves):  # rows that are far apart in the table may share a colour
        curves = [replace(each, place=place) for place, each in enumerate(curves)]
    names = list(columns.values())
    yield from curve_drawings(
        "method-figures",
        "The methods' own figures",
        f"What methods wrote of their own state over the epochs on {dataset}; panels: {listed(names)}.",
        "Weights of losses, factors of learning rates and the like after every epoch, of the methods that record them; "
        "docs/methods.md explains them. A line is the mean over seeds, its band one sample standard deviation to "
        "either side.",
        curves,
        _over_epochs(curves, columns),
        Panels(names, "epoch", "value", columns=min(3, len(names))),
    )


def confusion(dataset: str, scored: Sequence[tuple[Curves, Confusion]]) -> Drawing:
    """A confusion matrix per row, summed over its scored seeds and normalised by class."""
    columns = min(3, len(scored))
    lines = math.ceil(len(scored) / columns)
    size = (WIDTH, (WIDTH / 3 + 0.3) * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[len(scored) :]:
        axes.set_visible(False)
    for axes, (each, pooled) in zip(grid.flat, scored, strict=False):
        image = draw_confusion(axes, pooled.counts, pooled.classes, most_names=MOST_CLASSES, length=12)
        axes.set_title(figure_text(each.row.label, 36), fontsize=9, color=each.colour)
    figure.colorbar(image, ax=grid, shrink=0.7, label="percent of the class")
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("class", fontsize=10)
    counts = [sum(history.confusion is not None for history in each.histories) for each, _ in scored]
    seeds = "; ".join(
        f"{each.row.label}: {count} of {len(each.row.runs)} seeds"
        for count, (each, _) in zip(counts, scored, strict=True)
    )
    return Drawing(
        "confusion",
        "Confusion matrices",
        figure,
        f"Confusion matrices of the joint head on {dataset}'s test split, a panel per row of the table.",
        "Of the samples of each class, the percentage that the joint head predicted as each class; summed over the "
        f"seeds that evaluate.py has scored ({seeds}).",
    )


def missing_modalities(dataset: str, curves: Sequence[Curves]) -> Iterator[Drawing]:
    """Accuracy over the part of the samples that lack a modality, a panel for each; none without an evaluation."""
    values = collect(curves, lambda history: history.missing)
    if values.empty:
        return
    values = values.rename(columns={"modality": "panel", "rate": "x", "accuracy": "value"})
    names = list(dict.fromkeys(values["panel"]))
    means = values.groupby(["place", "panel", "x"], sort=False)["value"].mean()
    labels = {each.place: each.row.label for each in curves}
    said = "; ".join(f"{labels[place]}, {panel} {x:g} %: {mean:.1f}" for (place, panel, x), mean in means.items())
    yield from curve_drawings(
        "missing-modalities",
        "Modalities missing",
        f"Joint test accuracy in percent on {dataset} over the percentage of samples that lack a modality; "
        f"panels: {listed(names)}. {said}.",
        "Accuracy in percent of the joint head on the test split where a modality is dropped from a part of the "
        "samples (any: each modality on its own; a sample keeps one at least), of the seeds that evaluate.py has "
        "scored. A line is the mean over seeds, its band one sample standard deviation to either side.",
        [each for each in curves if any(len(history.missing) for history in each.histories)],
        values,
        Panels(
            names,
            "samples that lack it, percent",
            "joint test accuracy in percent",
            columns=min(3, len(names)),
            limits=PERCENT,
            points=True,
            marker="o",
        ),
    )


def missing_table(dataset: str, curves: Sequence[Curves]) -> pd.DataFrame:
    """A line per row, modality and rate: mean and sample standard deviation of the joint accuracy, number of seeds."""
    values = collect(curves, lambda history: history.missing)
    labels = {each.place: each.row.label for each in curves}
    groups = values.groupby(["place", "modality", "rate"], sort=False)["accuracy"]
    table = groups.agg(["mean", "std", "count"]).reset_index()
    table.insert(0, "method", table.pop("place").map(labels))
    table.insert(0, "dataset", dataset)
    return table.rename(columns={"rate": "missing_percent", "count": "seeds"})


def _over_epochs(curves: Sequence[Curves], columns: dict[str, str]) -> pd.DataFrame:
    """Columns of metrics.csv over the epochs, {column: panel}, as `curve_drawings` takes them."""
    epochs = collect(curves, lambda history: history.epochs.reindex(columns=["epoch", *columns]))
    return (
        epochs.rename(columns={"epoch": "x", **columns})
        .melt(["place", "run", "x"], var_name="panel")
        .dropna(subset=["value"])
    )


def _pooled(each: Curves) -> Confusion | None:
    """The sum of a row's confusion matrices; None if there is none."""
    matrices = [history.confusion for history in each.histories if history.confusion is not None]
    if not matrices:
        return None
    return Confusion(np.sum([matrix.counts for matrix in matrices], axis=0), matrices[0].classes)
