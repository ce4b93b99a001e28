"""Measures of balance of finished runs: what each encoder is worth, and what the joint head makes of the modalities."""

from collections.abc import Sequence

import pandas as pd

from mmpareto.registries import ALONE, METHODS, architecture_of
from mmpareto.reporting.comparison import Row
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.histories import current_evaluation
from mmpareto.runs import EVALUATION, RunError

# beginnings of the measures' names
PROBE, GAP = "probe, ", "probe less alone, "
MEASURES = (GAP, PROBE, "Shapley share", "without ", "right only jointly", "conflict, ")


def balance(run: FinishedRun) -> dict[str, float]:
    """Measures of balance, as far as they are known: of the run, its probes and its evaluation_test.json.

    By modality: steps in conflict in percent; the linear probe, and where the run knows it the same less that of an
    encoder trained alone; the part of the Shapley values' sum in percent; joint accuracy without it. And "right only
    jointly", see `evaluation.synergy`.
    """
    values: dict[str, float] = {}
    for name in run.modalities:
        if (rate := run.conflict_rate(name)) is not None:
            values[f"conflict, {name}"] = 100 * rate
    probe = run.results.get("probe") or {"unimodal": {}}
    for name, probed in probe["unimodal"].items():
        values[PROBE + name] = probed["accuracy"]
        if probe.get("alone"):
            values[GAP + name] = probed["accuracy"] - probe["alone"]["unimodal"][name]["accuracy"]
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


def with_gaps(runs: pd.DataFrame) -> pd.DataFrame:
    """Fill in probes less those of encoders trained alone: of the run of `unimodal` with the same seed.

    Not of methods that bring an architecture of their own. Several runs of `unimodal` with one seed are no reference.

    Args:
        runs: of one dataset: columns `method`, `seed` and measures.
    """
    runs = runs.copy()
    alone = runs[runs["method"] == ALONE].drop_duplicates("seed", keep=False).set_index("seed")
    compared = runs["method"].map(
        lambda method: method != ALONE and not (method in METHODS and architecture_of(method))
    )
    for column in [name for name in runs if name.startswith(PROBE)]:
        gap = (runs[column] - runs["seed"].map(alone[column])).where(compared)
        known = GAP + column.removeprefix(PROBE)
        runs[known] = runs[known].fillna(gap) if known in runs else gap
    return runs


def balance_of_rows(rows: Sequence[Row]) -> pd.DataFrame:
    """A line per row, as text: means over its runs of the measures that they have."""
    runs = [
        {"row": row.label, "method": run.method, "seed": run.seed} | balance(run) for row in rows for run in row.runs
    ]
    means = with_gaps(pd.DataFrame(runs)).drop(columns=["method", "seed"]).groupby("row", sort=False).mean()
    means = means.dropna(axis=1, how="all")
    text = means.map(lambda value: "n/a" if pd.isna(value) else f"{value:.1f}").rename_axis("method").reset_index()
    return text[["method", *sorted(means.columns, key=place)]]


def place(name: str) -> int:
    """Where the column of a measure belongs among those of others."""
    return next(number for number, beginning in enumerate(MEASURES) if name.startswith(beginning))
