"""Measures of balance of finished runs: what each encoder is worth, and what the joint head makes of the modalities."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pandas as pd

from mmpareto.reporting.comparison import Row
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.histories import current_evaluation
from mmpareto.runs import EVALUATION, RunError

# beginnings of the measures' names
MEASURES = ("probe less alone", "Shapley share", "without ", "right only jointly", "conflict, ")


def balance(run: FinishedRun) -> dict[str, float]:
    """Measures of balance, as far as they are known: of the run, its probes and its evaluation_test.json.

    By modality: steps in conflict in percent; the linear probe less that of an encoder trained alone; the part of the
    Shapley values' sum in percent; joint accuracy without it. And "right only jointly", see `evaluation.synergy`.
    """
    values: dict[str, float] = {}
    for name in run.modalities:
        if (rate := run.conflict_rate(name)) is not None:
            values[f"conflict, {name}"] = 100 * rate
    probe = run.results.get("probe") or {}
    if probe.get("alone"):
        for name, probed in probe["unimodal"].items():
            values[f"probe less alone, {name}"] = probed["accuracy"] - probe["alone"]["unimodal"][name]["accuracy"]
    evaluation = current_evaluation(run)
    if evaluation is None:
        return values
    try:
        shapley = evaluation.get("shapley") or {"contributions": {}}
        for name, value in shapley["contributions"].items():
            if shapley["sum"] > 0:
                values[f"Shapley share, {name}"] = 100 * value / shapley["sum"]
        for subset in evaluation.get("subsets") or []:
            lacking = [name for name in run.modalities if name not in subset["present"]]
            if len(lacking) == 1:
                values[f"without {lacking[0]}"] = float(subset["accuracy"])
        if "synergy" in evaluation:
            values["right only jointly"] = float(evaluation["synergy"]["joint_only"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file = run.path / EVALUATION.format("test")
        raise RunError(f"{file} is damaged ({type(error).__name__}: {error}); run evaluate.py again") from error
    return values


def balance_of_rows(rows: Sequence[Row]) -> pd.DataFrame:
    """A line per row, as text: means over its runs of the measures that they have."""
    lines = []
    for row in rows:
        measured = [balance(run) for run in row.runs]
        names = dict.fromkeys(name for values in measured for name in values)
        means = {name: statistics.mean(values[name] for values in measured if name in values) for name in names}
        lines.append({"method": row.label} | {name: f"{mean:.1f}" for name, mean in means.items()})
    table = pd.DataFrame(lines).fillna("n/a")
    return table[["method", *sorted(table.columns.drop("method"), key=_place)]]


def _place(name: str) -> int:
    return next(place for place, beginning in enumerate(MEASURES) if name.startswith(beginning))
