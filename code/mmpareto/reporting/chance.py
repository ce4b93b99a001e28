"""Modalities that learned nothing: heads that guess on the data that they are trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mmpareto import runs
from mmpareto.escape import counted
from mmpareto.reporting.comparison import Row
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.histories import read_table

MARGIN = 5.0  # points above 100 / classes that count as guessing


def at_chance(run: FinishedRun) -> dict[str, float]:
    """{modality: accuracy of its own head on the training data, in percent} of the modalities that guess.

    In the selected epoch; an accuracy up to MARGIN points above 100 / classes is a guess. Empty if the run does not
    record its classes or these accuracies.
    """
    classes, selected = run.config.get("classes"), run.results.get("selected_epoch")
    if not classes or selected is None:
        return {}
    metrics = read_table(run.path / runs.METRICS).apply(pd.to_numeric, errors="coerce")
    epoch = metrics[metrics.get("epoch") == selected].head(1)
    columns = {name: f"train_accuracy_{name}" for name in run.modalities}
    accuracies = {name: float(epoch[column].mean()) for name, column in columns.items() if column in epoch}
    return {name: value for name, value in accuracies.items() if value <= 100 / len(classes) + MARGIN}


def notes(rows: Sequence[Row], guesses: Mapping[Path, dict[str, float]]) -> list[str]:
    """A sentence for each row and modality of which some runs learned nothing. guesses: see `at_chance`, by folder."""
    sentences = []
    for row in rows:
        for name, column in pd.DataFrame([guesses[run.path] for run in row.runs]).items():
            low, high, count = column.min(), column.max(), column.count()
            span = f"{low:.1f}" + (f" to {high:.1f}" if count > 1 else "")
            sentences.append(
                f"{row.label}: {name} learned nothing in {count} of {counted(len(row.runs), 'run')}: in the selected "
                f"epoch its own head guesses on the training data ({span} % right)"
            )
    return sentences
