"""Modalities that learned nothing: heads that guess on the very data that they are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmpareto import runs
from mmpareto.reporting.comparison import Row
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.histories import table

MARGIN = 5.0  # points above 100 / classes that count as guessing


def at_chance(run: FinishedRun) -> dict[str, float]:
    """{modality: accuracy of its own head on the training data}, in percent, of those that guess.

    In the epoch whose checkpoint was selected; an accuracy up to MARGIN points above 100 / classes is a guess. Nothing
    is said of a run that does not tell its classes or these accuracies.
    """
    classes, selected = run.config.get("classes"), run.results.get("selected_epoch")
    if not classes or selected is None:
        return {}
    header, lines = table(run.path / runs.METRICS)
    rows = (dict(zip(header, line, strict=False)) for line in lines)
    row = next((row for row in rows if row.get("epoch") == str(selected)), {})
    found = {name: _number(row.get(f"train_accuracy_{name}")) for name in run.modalities}
    return {name: value for name, value in found.items() if value <= 100 / len(classes) + MARGIN}


def notes(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row and modality of which some runs learned nothing."""
    said = []
    for row in rows:
        guesses = [at_chance(run) for run in row.runs]
        for name in dict.fromkeys(name for own in guesses for name in own):
            values = [own[name] for own in guesses if name in own]
            span = f"{min(values):.1f}" + (f" to {max(values):.1f}" if len(values) > 1 else "")
            said.append(
                f"{row.label}: {name} learned nothing in {len(values)} of {len(row.runs)} runs: in the selected epoch "
                f"its own head guesses on the training data ({span} % right)"
            )
    return said


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
