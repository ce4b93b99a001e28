"""Figures of a dataset's rows side by side; every row keeps its colour in all of them."""

import math
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from mmpareto.escape import counted
from mmpareto.reporting import gradient_figures
from mmpareto.reporting.charts import (
    BAND,
    HEIGHT,
    METHOD,
    RING,
    RUN,
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
from mmpareto.reporting.histories import METHOD as METHOD_COLUMN
from mmpareto.reporting.histories import Confusion
from mmpareto.reporting.ranking import Ranking
from mmpareto.reporting.sweeps import Sweep, sweeps
from mmpareto.runs import RunError

MOST_CLASSES = 60  # of a confusion matrix
STEP = 40  # height of a row with its name above it
PERCENT = (0.0, 100.0)


def figures(dataset: str, curves: Sequence[Curves], modalities: Sequence[str]) -> Iterator[Figure]:
    """All figures of a dataset, one at a time; what was not measured has none."""
    yield accuracies(dataset, curves)
    if all(line.row.seconds for line in curves):
        yield accuracy_over_time(dataset, curves)
    for flag, sweep in sweeps([line.row for line in curves]).items():
        yield accuracy_over_values(dataset, flag, sweep, modalities)
    yield learning_curves(dataset, curves, modalities)
    scored = {line.place: pooled for line in curves if (pooled := _pooled(line)) is not None}
    if scored:
        yield confusion(dataset, curves, scored)
    missing = collect(curves, lambda history: history.missing)
    if len(missing):
        yield missing_modalities(dataset, curves, missing)
    yield from gradient_figures.figures(dataset, curves)
    recorded = dict.fromkeys(
        name for line in curves for h in line.histories for name in h.epochs if METHOD_COLUMN in name
    )
    if recorded:
        yield method_figures(dataset, curves, list(recorded))


def accuracies(dataset: str, curves: Sequence[Curves]) -> Figure:
    """Joint test accuracy of the rows."""
    return joint_accuracies(
        dataset, [(line.row.label, list(zip(line.described, line.row.joint, strict=True))) for line in curves]
    )


def joint_accuracies(dataset: str, rows: Sequence[tuple[str, Sequence[tuple[View, float]]]]) -> Figure:
    """Joint test accuracy: every seed a point, the mean and one standard deviation to either side.

    rows  (label, a run's name and seed with its accuracy in percent, for each run)
    """
    means, single = [], []
    for place, (_, runs) in enumerate(rows):
        scores = pd.Series([score for _, score in runs], dtype=float)
        mean, deviation = scores.mean(), scores.std()
        edges = numbers([mean, deviation, mean - deviation, mean + deviation])
        values = dict(zip(("mean", "deviation", "low", "high"), edges, strict=True))
        means.append({"row": place, "runs": len(runs)} | values)
        single += [{"row": place, "value": score} | described for described, score in runs]
    count = quantity("runs", "seeds", "d")
    of_mean = [METHOD, quantity("mean", "mean", ".2f"), quantity("deviation", "± deviation", ".2f"), count]
    of_run = [METHOD, *RUN, quantity("value", "joint accuracy", ".2f")]
    x = {"type": "quantitative", "title": "joint test accuracy in percent", "scale": {"zero": False, "padding": 8}}
    marks: list[tuple[str, View, View]] = [
        ("means", {"type": "rule", "strokeWidth": 2}, {"x": x | {"field": "low"}, "x2": {"field": "high"}}),
        (
            "means",
            {"type": "tick", "thickness": 4, "size": 16},
            {"x": x | {"field": "mean"}, "tooltip": of_mean},
        ),
        (
            "single",
            RING | {"size": 45},
            {"x": x | {"field": "value"}, "tooltip": of_run},
        ),
    ]
    view = _by_row(len(rows), marks)
    said = "; ".join(
        f"{label}: {statistics.mean(score for _, score in runs):.1f} over {counted(len(runs), 'seed')}"
        for label, runs in rows
    )
    return Figure(
        "joint-accuracy",
        "Joint test accuracy",
        f"Joint test accuracy in percent on {dataset}. {said}.",
        "Accuracy in percent of the joint head on the test split, with the selected checkpoint. A ring is one seed, "
        "the upright stroke the mean, the line one sample standard deviation to either side (none for a single seed). "
        "The axis does not begin at 0.",
        [Panel(view)],
        {"means": means, "single": single},
        columns=1,
    )


def accuracy_over_time(dataset: str, curves: Sequence[Curves]) -> Figure:
    """Mean joint test accuracy against the mean training time."""
    means = []
    for line in curves:
        values = numbers([line.row.mean, float(np.mean(line.row.seconds))])
        means.append({"row": line.place} | dict(zip(("accuracy", "seconds"), values, strict=True)))
    accuracy, seconds = "joint test accuracy in percent", "training time in seconds"
    encoding = {
        "x": quantity("seconds", seconds) | {"axis": {"format": "~s"}, "scale": {"zero": False, "padding": 14}},
        "y": quantity("accuracy", accuracy) | {"axis": {"format": "~g"}, "scale": {"zero": False, "padding": 14}},
        "color": colour(len(curves)),
        "tooltip": [METHOD, quantity("accuracy", "accuracy", ".2f"), quantity("seconds", "seconds", ".1f")],
    }
    mark = {"type": "point", "filled": True, "size": 120, "opacity": 0.9}
    view = {"data": {"name": "means"}, "transform": SHOWN, "mark": mark, "encoding": encoding, "height": HEIGHT + 30}
    return Figure(
        "accuracy-over-time",
        "Accuracy and training time",
        f"Mean joint test accuracy on {dataset} against the mean training time of a run.",
        "A point is a row of the table: mean joint test accuracy over seeds, and mean time of a run's epochs, "
        "scoring on the validation split included. Times of different machines cannot be compared.",
        [Panel(view)],
        {"means": means},
        columns=1,
    )


def accuracy_over_values(dataset: str, flag: str, sweep: Sweep, modalities: Sequence[str]) -> Figure:
    """Test accuracy against the values of a flag, a panel for the joint head and each modality's own."""
    names = ["joint", *(f"{name} alone" for name in modalities)]
    runs, lines = dict[tuple[int, int], View](), []
    for place, curve in enumerate(sweep.values()):
        members = [(x, row, described) for x, row in curve for described in Curves(row, [], place).described]
        runs |= {(place, number): described for number, (_, _, described) in enumerate(members)}
        first = 0
        for x, row in curve:
            scores: list[Sequence[float]] = [row.joint, *map(row.accuracies, modalities)]
            for panel, values in zip(names, scores, strict=True):
                lines += [(panel, place, first + number, x, value) for number, value in enumerate(values)]
            first += len(row.runs)
    values = pd.DataFrame(lines, columns=["panel", "place", "run", "x", "value"])
    low, high = values["x"].min(), values["x"].max()
    return curve_figure(
        f"over-{flag.replace(' ', '-')}",
        f"Accuracy over {flag}",
        f"Test accuracy in percent over the values of {flag} on {dataset}, a line for each of {listed(list(sweep))}; "
        f"panels: {listed(names)}.",
        f"Test accuracy in percent with the selected checkpoint, of rows that differ in {flag} alone. A ring is "
        f"one seed. {BAND}",
        runs,
        values,
        Axes(
            names,
            text(flag),
            "test accuracy in percent",
            columns=3 if len(names) == 3 else 2,
            limits=PERCENT,
            points=True,
            logarithmic_x=low > 0 and high / low >= 10,
        ),
        names=list(sweep),
    )


def learning_curves(dataset: str, curves: Sequence[Curves], modalities: Sequence[str]) -> Figure:
    """Validation accuracy over the epochs, a panel for the joint head and each modality's own."""
    columns = {"val_accuracy_joint": "joint"} | {f"val_accuracy_{name}": f"{name} alone" for name in modalities}
    names = list(columns.values())
    return curve_figure(
        "learning-curves",
        "Learning curves",
        f"Validation accuracy over the epochs on {dataset}, a line per row of the table; panels: {listed(names)}.",
        "Accuracy in percent on the validation split after every epoch, of the joint head and of each modality's own "
        f"head. {BAND} If runs stopped at different epochs, an epoch's mean is over the runs that reached it.",
        described_runs(curves),
        _over_epochs(curves, columns),
        Axes(names, "epoch", "validation accuracy in percent", columns=3 if len(names) == 3 else 2, limits=PERCENT),
    )


def method_figures(dataset: str, curves: Sequence[Curves], recorded: Sequence[str]) -> Figure:
    """What methods record of their own state over the epochs, a panel for each of these columns of metrics.csv."""
    columns = {name: name.removeprefix(METHOD_COLUMN).replace("_", " ") for name in recorded}
    names = list(columns.values())
    return curve_figure(
        "method-figures",
        "The methods' own figures",
        f"What methods wrote of their own state over the epochs on {dataset}; panels: {listed(names)}.",
        "Weights of losses, factors of learning rates and the like after every epoch, of the methods that record them; "
        f"docs/methods.md explains them. {BAND}",
        described_runs(curves),
        _over_epochs(curves, columns),
        Axes(names, "epoch", "value", columns=min(3, len(names))),
    )


def confusion(dataset: str, curves: Sequence[Curves], scored: dict[int, Confusion]) -> Figure:
    """A confusion matrix per row, summed over its scored seeds and normalised by class.

    Of many classes, the MOST_CLASSES with the most errors of all rows together.
    """
    errors = pd.concat(
        pd.Series(pooled.counts.sum(1) - pooled.counts.diagonal(), pooled.classes) for pooled in scored.values()
    )
    errors = errors.groupby(level=0, sort=False).sum()
    kept = set(errors.nlargest(MOST_CLASSES).index)
    cells, panels = [], []
    for line in (line for line in curves if line.place in scored):
        counts, classes = scored[line.place].counts, scored[line.place].classes
        places = [place for place, name in enumerate(classes) if name in kept]
        labels = unique([text(classes[place]) for place in places])
        totals = counts.sum(1)
        for i, j in np.argwhere(counts[np.ix_(places, places)] > 0):
            number = counts[places[i], places[j]]
            share = float(f"{100 * number / totals[places[i]]:.4g}")
            cell = {"row": line.place, "class": labels[i], "predicted": labels[j]}
            cells.append(cell | {"share": share, "samples": int(number)})
        panels.append(Panel(_confusion_view(line, labels), line.place))
    seeds = "; ".join(
        f"{line.row.label}: {sum(h.confusion is not None for h in line.histories)} of "
        + counted(len(line.row.runs), "seed")
        for line in curves
        if line.place in scored
    )
    part = f" The {len(kept)} classes of {len(errors)} with the most errors are shown." * (len(kept) < len(errors))
    return Figure(
        "confusion",
        "Confusion matrices",
        f"Confusion matrices of the joint head on {dataset}'s test split, a panel per row of the table.",
        "Of the samples of each class, the percentage that the joint head predicted as each class; summed over the "
        f"seeds that evaluate.py has scored ({seeds}).{part}",
        panels,
        {"cells": cells},
        columns=3,
    )


def missing_modalities(dataset: str, curves: Sequence[Curves], values: pd.DataFrame) -> Figure:
    """Accuracy over the part of the samples that lack a modality, a panel for each.

    values  `History.missing` of all runs, see `collect`.
    """
    values = values.rename(columns={"modality": "panel", "rate": "x", "accuracy": "value"})
    names = list(dict.fromkeys(values["panel"]))
    return curve_figure(
        "missing-modalities",
        "Modalities missing",
        f"Joint test accuracy in percent on {dataset} over the percentage of samples that lack a modality; "
        f"panels: {listed(names)}.",
        "Accuracy in percent of the joint head on the test split where a modality is dropped from a part of the "
        "samples (any: each modality on its own; a sample keeps one at least), of the seeds that evaluate.py has "
        f"scored. A ring is one seed. {BAND}",
        described_runs(curves),
        values,
        Axes(
            names,
            "samples that lack it, percent",
            "joint test accuracy in percent",
            columns=min(3, len(names)),
            limits=PERCENT,
            points=True,
        ),
    )


def missing_table(dataset: str, curves: Sequence[Curves]) -> pd.DataFrame:
    """A line per row, modality and rate: mean and sample standard deviation of the joint accuracy, number of seeds."""
    values = collect(curves, lambda history: history.missing)
    labels = {line.place: line.row.label for line in curves}
    groups = values.groupby(["place", "modality", "rate"], sort=False)["accuracy"]
    table = groups.agg(["mean", "std", "count"]).reset_index()
    table.insert(0, "method", table.pop("place").map(labels))
    table.insert(0, "dataset", dataset)
    return table.rename(columns={"rate": "missing_percent", "count": "seeds"})


def critical_difference(ranking: Ranking) -> Figure:
    """Mean ranks over datasets; bars join the methods that do not differ significantly."""
    ranks = ranking.ranks
    names = [text(name) for name in ranks.index]
    points = [{"row": row, "rank": float(f"{rank:.5g}")} for row, rank in enumerate(ranks)]
    bars = [
        {"place": number, "first": first, "last": last, "joined": ", ".join(names[first : last + 1])}
        for number, (first, last) in enumerate(ranking.groups)
    ]
    x = {"type": "quantitative", "title": "mean rank, 1 is the best"}
    most = len(ranks) + 0.35 * (len(bars) + 0.5)
    scale = {"domain": [1, most], "nice": False, "padding": 10}
    marks: list[tuple[str, View, View]] = [
        (
            "points",
            {"type": "point", "filled": True, "size": 110, "opacity": 1},
            {"x": x | {"field": "rank", "scale": scale}, "tooltip": [METHOD, quantity("rank", "mean rank", ".3f")]},
        )
    ]
    view = _by_row(len(ranks), marks)
    bar = {
        "data": {"name": "bars"},
        "transform": [{"calculate": f"{len(ranks)} + 0.35 * (1 + datum.place)", "as": "x"}],
        "mark": {"type": "rule", "strokeWidth": 5, "strokeCap": "round", "color": "#7f7f8c"},
        "encoding": {
            "x": x | {"field": "x"},
            "y": {"field": "first", "type": "nominal"},
            "y2": {"field": "last"},
            "tooltip": [{"field": "joined", "title": "do not differ"}],
        },
    }
    view["layer"].append(bar)
    said = "; ".join(f"{name}: {rank:.2f}" for name, rank in ranks.items())
    return Figure(
        "critical-difference",
        "Critical-difference diagram",
        f"Mean ranks over datasets. {said}.",
        "A method's rank on a dataset is its place by mean joint test accuracy, 1 the highest; a point is the mean "
        "over datasets. An upright bar at the right joins methods whose mean ranks differ by less than the "
        f"critical difference, {ranking.critical_difference:.2f} (Nemenyi's test at 0.05; Demšar, 2006).",
        [Panel(view)],
        {"points": points, "bars": bars},
        columns=1,
        names=names,
    )


def _by_row(rows: int, marks: Sequence[tuple[str, View, View]]) -> View:
    """A view with a line per row, its name above it; marks: data, mark and encoding of each layer."""
    above = {"labelAlign": "left", "labelBaseline": "bottom", "labelPadding": -2, "labelOffset": -9, "labelLimit": 500}
    axis = {"labelExpr": "names[datum.value]", "ticks": False, "domain": False, "grid": False} | above
    y = {"field": "row", "type": "nominal", "title": None, "sort": "ascending", "axis": axis}
    shared = {"color": colour(rows, legend=False), "y": y}
    layers = [
        {"data": {"name": data}, "transform": SHOWN, "mark": mark, "encoding": shared | encoding}
        for data, mark, encoding in marks
    ]
    return {"height": {"step": STEP}, "layer": layers}


def _confusion_view(line: Curves, labels: Sequence[str]) -> View:
    """The confusion matrix of a row; labels: of the classes, no two of them alike."""

    def axis(field: str, angle: int) -> View:
        ticks = {"labelAngle": angle, "labelLimit": 70, "values": labels[:: math.ceil(len(labels) / 20)]}
        ticks |= {"grid": False, "labelFontSize": 10, "labelOverlap": False}
        return {"field": field, "type": "nominal", "title": field, "axis": ticks, "scale": {"domain": labels}}

    share = quantity("share", "percent of the class", ".3~g")
    legend = {"orient": "bottom", "title": "percent of the class", "gradientLength": 160}
    return {
        "title": text(line.row.label),
        "height": 220,
        "data": {"name": "cells"},
        "transform": [{"filter": {"field": "row", "equal": line.place}}],
        "mark": "rect",
        "encoding": {
            "x": axis("predicted", -90),
            "y": axis("class", 0),
            "color": share | {"scale": {"domain": [0, 100], "range": "heatmap"}, "legend": legend},
            "tooltip": [{"field": "class"}, {"field": "predicted"}, share, quantity("samples", "samples", "d")],
        },
    }


def _over_epochs(curves: Sequence[Curves], columns: dict[str, str]) -> pd.DataFrame:
    """Columns of metrics.csv over the epochs, {column: panel}, as `curve_figure` takes them."""
    epochs = collect(curves, lambda history: history.epochs.reindex(columns=["epoch", *columns]))
    return (
        epochs.rename(columns={"epoch": "x", **columns})
        .melt(["place", "run", "x"], var_name="panel")
        .dropna(subset=["value"])
    )


def _pooled(line: Curves) -> Confusion | None:
    """The sum of a row's confusion matrices; None if there is none."""
    matrices = [history.confusion for history in line.histories if history.confusion is not None]
    if not matrices:
        return None
    if len({matrix.classes for matrix in matrices}) > 1:
        raise RunError(f"{line.row.label}: its runs were made on data with other classes; report them one by one")
    return Confusion(np.sum([matrix.counts for matrix in matrices], axis=0), matrices[0].classes)
