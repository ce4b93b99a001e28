"""What evaluate.py prints: the content of evaluation_<split>.json as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmpareto.escape import on_one_line
from mmpareto.json_files import json_text
from mmpareto.reporting.tables import text_table
from mmpareto.selection import COMBINATIONS

MOST_CLASSES = 50  # in the table of classes
MOST_SUBSETS = 32  # in the table of subsets; of more, only those of none, one, all but one and all modalities
MEASURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mean_average_precision": "mAP",
    "auroc": "AUROC",
    "calibration_error": "ECE",
}


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """All tables, one under the other; scores in percent."""
    tables = [scores_table(evaluation), class_table(evaluation)]
    if evaluation["probe"] is not None:
        tables.append(probe_table(evaluation))
    tables.append(subset_table(evaluation))
    if evaluation["missing_rates"]:
        tables.append(rate_table(evaluation))
    return "\n\n".join([*tables, shapley_table(evaluation)])


def scores_table(evaluation: Mapping[str, Any]) -> str:
    """A row for the joint head, each modality's own and all heads together; below it what joint adds."""
    heads = {"joint": evaluation["joint"]} | {f"{name} alone": head for name, head in evaluation["unimodal"].items()}
    heads |= {COMBINATIONS[rule]: head for rule, head in evaluation["all_heads"].items()}
    rows = [[name, *_numbers(head, MEASURES)] for name, head in heads.items()]
    table = text_table([f"{evaluation['split']}, percent", *MEASURES.values()], rows)
    best = max(evaluation["unimodal"], key=lambda name: evaluation["unimodal"][name]["accuracy"])
    lead = evaluation["joint"]["accuracy"] - evaluation["unimodal"][best]["accuracy"]
    return (
        f"{table}\nbest single modality: {on_one_line(best)}; joint - best single: {lead:+.2f} points\n"
        "joint head right, all unimodal heads wrong: {joint_only:.2f} % of the samples; a unimodal head right, joint "
        "head wrong: {single_only:.2f} %".format(**evaluation["synergy"])
    )


def class_table(evaluation: Mapping[str, Any]) -> str:
    """A row per class for the joint head; of many classes, those with the lowest F1."""
    classes, note = evaluation["joint"]["per_class"], ""
    if len(classes) > MOST_CLASSES:
        with_samples = [row for row in classes if row["f1"] is not None]
        lowest = sorted(with_samples, key=lambda row: row["f1"])[:MOST_CLASSES]
        file = f"evaluation_{evaluation['split']}.json"
        note = f"\nthe {len(lowest)} classes with the lowest F1 of {len(classes)}; all are in {file}"
        classes = lowest
    rows = [[row["class"], str(row["samples"]), *_numbers(row, ("recall", "precision", "f1"))] for row in classes]
    return text_table(["joint head, class", "samples", "recall", "precision", "F1"], rows) + note


def probe_table(evaluation: Mapping[str, Any]) -> str:
    """A row per modality, and one for all features side by side."""
    probes = evaluation["probe"]["unimodal"] | {"all features": evaluation["probe"]["concatenated"]}
    rows = []
    for name, probe in probes.items():
        if probe is None:  # no samples to fit it to
            continue
        label = name if probe["converged"] else f"{name} (not converged)"
        rows.append([label, f"{probe['C']:g}", *_numbers(probe, ("val_accuracy", "accuracy"))])
    return text_table(["linear probe", "C", "val", evaluation["split"]], rows)


def subset_table(evaluation: Mapping[str, Any]) -> str:
    """A row per subset of the modalities (see `shown_subsets`)."""
    rows = [[subset_name(row["present"]), *_numbers(row, ["accuracy"])] for row in shown_subsets(evaluation["subsets"])]
    return text_table([f"joint head, present modalities (others: {evaluation['missing']})", "accuracy"], rows)


def rate_table(evaluation: Mapping[str, Any]) -> str:
    """A row per modality, and one for any of them; a column per fraction of the samples that lack it."""
    curves = missing_curves(evaluation)
    rates = next(iter(curves.values())).keys()
    rows = [[name, *(f"{accuracy:.2f}" for accuracy in curve.values())] for name, curve in curves.items()]
    return text_table(["joint head, share of samples without", *(f"{100 * rate:g} %" for rate in rates)], rows)


def missing_curves(evaluation: Mapping[str, Any]) -> dict[str, dict[float, float]]:
    """{modality, or "any": {fraction of the samples that lack it: accuracy in percent}}; 0 is the first fraction."""
    whole = max(evaluation["subsets"], key=lambda row: len(row["present"]))
    curves: dict[str, dict[float, float]] = {}
    for row in evaluation["missing_rates"]:
        curve = curves.setdefault(row["modality"], {0.0: whole["accuracy"]})
        curve[row["rate"]] = row["accuracy"]
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def shapley_table(evaluation: Mapping[str, Any]) -> str:
    """A row per modality, their sum, and the imbalance below."""
    shapley = evaluation["shapley"]
    values = shapley["contributions"] | {"sum: all - none": shapley["sum"]}
    imbalance = "none contributes" if shapley["imbalance"] is None else f"{shapley['imbalance']:.2f}"
    table = text_table(["Shapley value", "points"], [[name, f"{value:+.2f}"] for name, value in values.items()])
    return f"{table}\nimbalance, 0 to 1: {imbalance}"


def subset_name(present: Sequence[str]) -> str:
    """A subset in words."""
    return " + ".join(present) or "none"


def shown_subsets(subsets: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All subsets if they are few, else those of none, one, all but one and all modalities."""
    most = max(len(row["present"]) for row in subsets)
    few = len(subsets) <= MOST_SUBSETS
    return [row for row in subsets if few or len(row["present"]) in (0, 1, most - 1, most)]


def _numbers(row: Mapping[str, Any], measures: Sequence[str] | Mapping[str, str]) -> list[str]:
    return ["-" if row[measure] is None else f"{row[measure]:.2f}" for measure in measures]


def evaluation_json(evaluation: dict[str, Any]) -> bytes:
    """The content of evaluation_<split>.json.

    On one line: with a line for each cell, confusion matrices of 1,000 classes are larger than `json_files` reads.
    """
    return json_text(evaluation, indent=None).encode()
