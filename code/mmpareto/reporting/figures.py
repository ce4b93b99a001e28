"""Figures of one run: learning curves, and what integration saw of the gradients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmpareto.escape import counted, figure_text
from mmpareto.reporting.rendering import plt, png
from mmpareto.runs import GRADIENTS, RunDirectory
from mmpareto.writing import atomically

MOST = 24  # characters of a name


def learning_curves(
    history: Sequence[Mapping[str, Any]], modalities: Sequence[str], selected: int, split: str
) -> Figure:
    """Losses and accuracies over the epochs, for the joint head and each modality's own.

    history   rows of metrics.csv.
    selected  epoch of the selected checkpoint; split: where it was selected.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for position, name in enumerate(["joint", *modalities]):
        colour, shown = f"C{position}", figure_text(name, MOST)
        left.plot(epochs, [row[f"train_loss_{name}"] for row in history], color=colour, label=f"{shown}, training")
        left.plot(
            epochs,
            [row[f"val_loss_{name}"] for row in history],
            color=colour,
            linestyle="--",
            label=f"{shown}, validation",
        )
        right.plot(epochs, [row[f"val_accuracy_{name}"] for row in history], color=colour, label=shown)
    left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title="Losses")
    right.set(xlabel="epoch", ylabel="accuracy in percent", ylim=(0, 101), title="Validation accuracy")
    right.axvline(selected, color="0.6", linestyle=":", label=f"selected on {split}")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def gradient_figure(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Cosine of joint and unimodal gradient and both norms over training, a column per encoder, conflict marked.

    rows  of gradients.csv; None is returned where there are none (a one-pass method that measured nothing).
    """
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    if not encoders:
        return None
    figure, axes = plt.subplots(2, len(encoders), figsize=(5 * len(encoders), 5.6), layout="constrained", squeeze=False)
    for column, encoder in enumerate(encoders):
        steps = [row for row in rows if row["encoder"] == encoder]
        step = np.array([float(row["step"]) for row in steps])
        cosine = np.array([float(row["cosine"]) for row in steps])
        conflict = np.array([float(row["conflict"]) for row in steps]) > 0
        top, bottom = axes[0, column], axes[1, column]
        top.axhspan(-1, 0, color="C3", alpha=0.08)
        top.axhline(0, color="0.5", linewidth=0.8)
        top.plot(step, cosine, color="C0", linewidth=0.8)
        top.plot(step[conflict], cosine[conflict], ".", color="C3", markersize=4, label="conflict")
        lowest, highest = float(np.nanmin(cosine, initial=0.0)), float(np.nanmax(cosine, initial=0.0))
        share = f"{100 * conflict.mean():.1f} % of {counted(len(step), 'step')}"
        top.set(
            ylim=(max(-1.0, lowest - 0.1), min(1.0, highest + 0.1)),
            ylabel="cosine" if column == 0 else "",
            title=f"{figure_text(encoder, MOST)}: conflict in {share}",
        )
        for name, colour in (("joint_norm", "C1"), ("unimodal_norm", "C2")):
            values = np.array([float(row[name]) for row in steps])
            bottom.plot(step, values, color=colour, linewidth=0.8, label=name.replace("_norm", " gradient"))
        bottom.set(xlabel="step", ylabel="norm" if column == 0 else "", yscale="log")
        if conflict.any():
            top.legend(fontsize=8)
        bottom.legend(fontsize=8)
        for part in (top, bottom):
            part.grid(alpha=0.3)
    return figure


def draw_run(
    run: RunDirectory, history: Sequence[Mapping[str, Any]], modalities: Sequence[str], selected: int, split: str
) -> dict[str, Path]:
    """Draw a run's figures into its directory; the result are the files, by name. See `learning_curves`."""
    drawn = {
        "learning_curves": learning_curves(history, modalities, selected, split),
        "gradients": gradient_figure(run.read_csv(GRADIENTS)),
    }
    paths = {}
    for name, figure in drawn.items():
        if figure is not None:
            paths[name] = run / f"{name}.png"
            save(figure, paths[name])
    return paths


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and free it."""
    with atomically(path) as file:
        file.write(png(figure))
