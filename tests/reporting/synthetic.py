"""Run folders as train.py leaves them, made of numbers that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from settings import write_settings

from mmpareto.escape import write_csv_rows

MODALITIES = ("gray", "colour")
GRADIENT_COLUMNS = "epoch,step,encoder,cosine,joint_norm,unimodal_norm,joint_weight,conflict"


def make_run(
    folder: Path,
    method: str = "mmpareto",
    seed: int = 0,
    joint: float = 50.0,
    alone: Sequence[float] = (60.0, 40.0),
    *,
    dataset: str = "digits",
    val: float | None = None,
    epochs: int = 3,
    steps: int = 4,
    finished: bool = True,
    cosines: Mapping[str, Sequence[float]] | None = None,
    trained: Sequence[float] | None = None,
    loss: float = 1.0,
    modalities: Sequence[str] = MODALITIES,
    **config: Any,
) -> Path:
    """Writes a run; steps per epoch; cosines {encoder: a value per step}, else drawn; config: further flags.

    val, loss: joint validation accuracy, that of test unless given, and loss; trained: accuracies on the training data.
    """
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {
        "dataset": dataset,
        "dataset_options": {},
        "method": method,
        "method_options": {},
        "selected_on": "val",
        "epochs": epochs,
        "learning_rate": 0.01,
        "random_seed": seed,
        **config,
    }
    write_settings(folder, settings)
    if not finished:
        return folder
    generator = np.random.default_rng(seed)
    scores = dict(zip(modalities, alone, strict=True))
    results = {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "selected_on": settings["selected_on"],
        "selected_epoch": epochs,
        "epochs_trained": epochs,
        "test": {
            "joint": {"loss": 1.0, "accuracy": joint},
            "unimodal": {name: {"loss": 1.0, "accuracy": value} for name, value in scores.items()},
        },
        "val": {"joint": {"loss": loss, "accuracy": joint if val is None else val}},
        "integration": {name: {"conflict_rate": 0.25, "mean_cosine": 0.1} for name in modalities},
    }
    (folder / "results.json").write_text(json.dumps(results))
    header = [f"{split}_accuracy_{name}" for split in ("val", "train") for name in ("joint", *modalities)]
    trained = (joint, *alone) if trained is None else trained
    lines: list[list[Any]] = [["epoch", *header]]
    for epoch in range(1, epochs + 1):
        share = epoch / epochs
        scores_then = [value * share for value in (joint, *alone, *trained)]
        lines.append([epoch, *scores_then])
    write_rows(folder / "metrics.csv", lines)
    lines = [GRADIENT_COLUMNS.split(",")]
    for step in range(epochs * steps):
        for name in modalities:
            cosine = cosines[name][step] if cosines else float(np.tanh(generator.normal(0.3, 0.4)))
            joint_norm, unimodal_norm = np.exp(generator.normal(size=2))
            weight = float(generator.uniform(0.5, 1.0)) if cosine < 0 else 0.5
            cells = (1 + step // steps, step, name, cosine, joint_norm, unimodal_norm, weight, float(cosine < 0))
            lines.append(list(cells))
    write_rows(folder / "gradients.csv", lines)
    return folder


def write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        write_csv_rows(file, rows)
