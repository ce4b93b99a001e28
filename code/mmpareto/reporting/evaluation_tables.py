"""What evaluate.py prints: the content of evaluation_<split>.json as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmpareto.reporting.tables import text_table

MOST_CLASSES = 50  # to be shown
MOST_SUBSETS = 32  # to be shown; of more only those of none, one, all but one and all modalities


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """All tables, one under the other; scores in percent."""
    parts = [scores_table(evaluation), class_table(evaluation)]
    if evaluation["probe"] is not None:
        parts.append(probe_table(evaluation))
    parts += [subset_table(evaluation), shapley_table(evaluation)]
    return "\n\n".join(parts)


def scores_table(evaluation: Mapping[str, Any]) -> str:
    """A row for the joint head and each modality's own."""
    measures = {
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
        "mean_average_precision": "mAP",
        "auroc": "AUROC",
        "calibration_error": "ECE",
    }
    heads = {"joint": evaluation["joint"]} | {f"{n} alone": v for n, v in evaluation["unimodal"].items()}
    rows = [[name, *(_number(head[measure]) for measure in measures)] for name, head in heads.items()]
    return text_table([f"{evaluation['split']}, percent", *measures.values()], rows)


def class_table(evaluation: Mapping[str, Any]) -> str:
    """A row per class: the joint head; of many classes, those of the lowest F1."""
    classes = evaluation["joint"]["per_class"]
    shown, note = classes, ""
    if len(classes) > MOST_CLASSES:
        with_samples = [row for row in classes if row["f1"] is not None]
        shown = sorted(with_samples, key=lambda row: row["f1"])[:MOST_CLASSES]
        file = f"evaluation_{evaluation['split']}.json"
        note = f"\nthe {len(shown)} classes with the lowest F1 of {len(classes)}; all are in {file}"
    rows = [
        [row["class"], str(row["samples"]), *(_number(row[measure]) for measure in ("recall", "precision", "f1"))]
        for row in shown
    ]
    return text_table(["joint head, class", "samples", "recall", "precision", "F1"], rows) + note


def probe_table(evaluation: Mapping[str, Any]) -> str:
    """A row per modality, and one for all features side by side."""
    probes = evaluation["probe"]["unimodal"] | {"all features": evaluation["probe"]["concatenated"]}
    rows = [
        [
            name + ("" if probe["converged"] else " (not converged)"),
            f"{probe['C']:g}",
            f"{probe['val_accuracy']:.2f}",
            f"{probe['accuracy']:.2f}",
        ]
        for name, probe in probes.items()
    ]
    return text_table(["linear probe", "C", "val", evaluation["split"]], rows)


def subset_table(evaluation: Mapping[str, Any]) -> str:
    """A row per subset of the modalities; of many, the telling ones."""
    rows = [[subset_name(row["present"]), _number(row["accuracy"])] for row in shown_subsets(evaluation["subsets"])]
    return text_table([f"joint head, missing by {evaluation['missing']}", "accuracy"], rows)


def shapley_table(evaluation: Mapping[str, Any]) -> str:
    """A row per modality, their sum, and the imbalance below."""
    found = evaluation["shapley"]
    rows = [[name, f"{value:+.2f}"] for name, value in found["contributions"].items()]
    rows.append(["sum: all - none", f"{found['sum']:+.2f}"])
    imbalance = "none contributes" if found["imbalance"] is None else f"{found['imbalance']:.2f}"
    return text_table(["Shapley value", "points"], rows) + f"\nimbalance, 0 to 1: {imbalance}"


def subset_name(present: Sequence[str]) -> str:
    """A subset in words."""
    return " + ".join(present) or "none"


def shown_subsets(subsets: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All of them where they are few, else those of none, one, all but one and all modalities."""
    most = max(len(row["present"]) for row in subsets)
    few = len(subsets) <= MOST_SUBSETS
    return [row for row in subsets if few or len(row["present"]) in (0, 1, most - 1, most)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
