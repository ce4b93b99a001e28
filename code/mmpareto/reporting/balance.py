"""Measures of balance of finished runs: quality of each encoder, and use of the modalities by the joint head."""

from collections.abc import Sequence

import pandas as pd

from mmpareto.config import ModelConfig
from mmpareto.registries import ALONE, METHODS, architecture_of
from mmpareto.reporting.comparison import Row
from mmpareto.reporting.finished import RETRAIN, FinishedRun
from mmpareto.reporting.histories import current_evaluation, stand_in
from mmpareto.runs import EVALUATION, RESULTS, RunError

# beginnings of the measures' names
PROBE, GAP = "probe, ", "probe less alone, "
MEASURES = (GAP, PROBE, "Shapley share", "without ", "right only jointly", "conflict, ")
LATE = ModelConfig.architecture  # the one whose encoders do not see one another
LEAST_SUM = 10.0  # points that all modalities together must be worth for shares of it to say something
# settings that a run must share with one of encoders trained alone for the difference of their probes to say something
_OF_ENCODERS = ("dataset_options", "missing", "model", "encoder", "encoder_options", "augment")


def balance(run: FinishedRun) -> dict[str, float]:
    """Measures of balance, as far as they are known: of the run, its probes and its evaluation_test.json.

    By modality: steps in conflict in percent; the linear probe, and where the run knows it the same less that of an
    encoder trained alone; the part of the Shapley values' sum in percent, where that is LEAST_SUM or more; joint
    accuracy without it. And "right only jointly", see `evaluation.synergy`. A name says where something else than zeros
    stood for absent modalities.
    """
    values: dict[str, float] = {}
    for name in run.modalities:
        if (rate := run.conflict_rate(name)) is not None:
            values[f"conflict, {name}"] = 100 * rate
    probe = {"unimodal": {}} if run.results.get("probe") is None else run.results["probe"]
    try:
        for name, probed in probe["unimodal"].items():
            if probed is not None:
                values[PROBE + name] = float(probed["accuracy"])
                if probe.get("alone"):
                    values[GAP + name] = probed["accuracy"] - probe["alone"]["unimodal"][name]["accuracy"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file = run.path / RESULTS
        raise RunError(f"the probe of {file} is damaged ({type(error).__name__}: {error}); {RETRAIN}") from error
    evaluation = current_evaluation(run)
    if evaluation is None:
        return values
    by = stand_in(evaluation)
    try:
        shapley = evaluation.get("shapley") or {"contributions": {}}
        for name, value in shapley["contributions"].items():
            if shapley["sum"] >= LEAST_SUM:
                values[f"Shapley share{by}, {name}"] = 100 * value / shapley["sum"]
        for subset in evaluation.get("subsets") or []:
            lacking = [name for name in run.modalities if name not in subset["present"]]
            if len(lacking) == 1:
                values[f"without {lacking[0]}{by}"] = float(subset["accuracy"])
        if "synergy" in evaluation:
            values["right only jointly"] = float(evaluation["synergy"]["joint_only"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file = run.path / EVALUATION.format("test")
        raise RunError(f"{file} is damaged ({type(error).__name__}: {error}); run evaluate.py again") from error
    return values


def with_gaps(runs: pd.DataFrame) -> pd.DataFrame:
    """Fill in probes less those of encoders trained alone: of the run of `unimodal` with the same seed.

    Not of architectures in which an encoder sees the other modalities: their encoders are never alone. Several runs of
    `unimodal` with one seed are no reference.

    Args:
        runs: of one dataset: columns `method`, `seed`, `architecture` and measures, and `encoders` where runs differ in
            data or encoders: alike in those that can be compared.
    """
    runs = runs.copy()
    same = ["seed", "encoders"] if "encoders" in runs else ["seed"]
    alone = runs[(runs["method"] == ALONE) & (runs["architecture"] == LATE)].drop_duplicates(same, keep=False)
    reference = runs[same].merge(alone, on=same, how="left").set_index(runs.index)
    brings = runs["method"].map(lambda method: method in METHODS and architecture_of(method) is not None)
    compared = (runs["method"] != ALONE) & (runs["architecture"] == LATE) & ~brings
    for column in [name for name in runs if name.startswith(PROBE)]:
        gap = (runs[column] - reference[column]).where(compared)
        known = GAP + column.removeprefix(PROBE)
        runs[known] = runs[known].fillna(gap) if known in runs else gap
    return runs


def balance_of_rows(rows: Sequence[Row]) -> pd.DataFrame:
    """A line per row, as text: means over its runs of the measures that they have."""
    runs = [
        {
            "row": row.label,
            "method": run.method,
            "seed": run.seed,
            "architecture": run.config.get("architecture", LATE),
            "encoders": _encoders(run),
        }
        | balance(run)
        for row in rows
        for run in row.runs
    ]
    table = with_gaps(pd.DataFrame(runs)).drop(columns=["method", "seed", "architecture", "encoders"])
    means = table.groupby("row", sort=False).mean()
    means = means.dropna(axis=1, how="all")
    text = means.map(lambda value: "n/a" if pd.isna(value) else f"{value:.1f}").rename_axis("method").reset_index()
    return text[["method", *sorted(means.columns, key=place)]]


def _encoders(run: FinishedRun) -> str:
    """What a run shares with those whose encoders can be compared with its own."""
    settings = {key: run.config.get(key) for key in _OF_ENCODERS}
    return repr(settings | {"augment": settings["augment"] == "none"})


def place(name: str) -> int:
    """Where the column of a measure belongs among those of others."""
    return next(number for number, beginning in enumerate(MEASURES) if name.startswith(beginning))
