"""Model selection: accuracy, then loss, then the first; in the rule, in runs that are resumed, in tuned reports."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from entries.command import inside
from reporting.synthetic import make_run

from mmpareto.cli import train as entry
from mmpareto.reporting.finished import find
from mmpareto.reporting.sweeps import tuned
from mmpareto.selection import rank


@pytest.mark.parametrize(
    ("candidates", "best"),
    [
        ([(50.0, 1.0), (60.0, 9.0), (55.0, 0.1)], 1),  # accuracy first
        ([(60.0, 2.0), (60.0, 1.0), (60.0, 1.5)], 1),  # then loss
        ([(60.0, 1.0), (60.0, 1.0)], 0),  # then the first
        ([(60.0, math.nan), (60.0, 5.0)], 1),
        ([(60.0, math.inf), (60.0, math.nan), (60.0, -math.inf)], 0),  # none of these is a loss
        ([(60.0, None), (60.0, 5.0)], 1),
        ([(math.nan, 0.1), (0.0, 5.0)], 1),
        ([(100 / 3 * 2, 2.0), (200 / 3, 1.0), (66.66666666666669, 3.0)], 1),  # equal but for rounding
    ],
)
def test_accuracy_then_loss_then_the_first(candidates: list[tuple[float, float | None]], best: int) -> None:
    assert max(range(len(candidates)), key=lambda index: rank(*candidates[index])) == best


def data_with_one_validation_sample(root: Path) -> None:
    """Its accuracy is 0 or 100 and ties; its loss falls for as long as training goes on, since it is far out."""
    generator = np.random.default_rng(0)
    lines = ["id,split,label,left,right"]
    for name in ("left", "right"):
        (root / name).mkdir(parents=True)
    for clip in range(42):
        split, label = ("val", 1) if clip == 40 else ("test", 1) if clip == 41 else ("train", clip % 2)
        centre = 8.0 if split == "val" else 4.0 * label - 2.0
        for name in ("left", "right"):
            np.save(root / name / f"{clip}.npy", generator.normal(centre, 0.1, 6).astype(np.float32))
        lines.append(f"c{clip},{split},{'ab'[label]},left/{clip}.npy,right/{clip}.npy")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")


def test_a_run_selects_the_lowest_loss_among_ties_also_when_resumed(tmp_path: Path) -> None:
    data_with_one_validation_sample(tmp_path / "data")
    flags = ("--dataset", "manifest", "--data_root", tmp_path / "data", "--batch_size", "40", "--num_workers", "0")
    flags = (*flags, "--gpu_ids", "cpu", "--method", "uniform", "--learning_rate", "0.001", "--epochs")
    for folder, *flags_of_run in (("whole", "6"), ("parted", "4"), ("resumed", "6", "--resume")):
        if folder == "resumed":  # a copy, since this process keeps the folder of its first run locked
            shutil.copytree(tmp_path / "parted", tmp_path / "resumed")
        done = inside(entry.main, *flags, *flags_of_run, "--ckpt_path", tmp_path / folder)
        assert done.returncode == 0, done.stderr
    with open(tmp_path / "whole" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    accuracies, losses = ([float(row[f"val_{name}_joint"]) for row in rows] for name in ("accuracy", "loss"))
    best = 1 + losses.index(min(losses))
    assert accuracies[-2:] == [100.0, 100.0]  # a tie, and the loss decides it
    assert best == 6
    for folder in ("whole", "resumed"):
        assert json.loads((tmp_path / folder / "results.json").read_text())["selected_epoch"] == best


def test_a_tuned_report_breaks_ties_by_loss(tmp_path: Path) -> None:
    for rate, losses in ((0.01, (1.0, 2.0)), (0.02, (0.5, 2.0)), (0.03, (0.1, 9.0)), (0.04, (0.1, math.nan))):
        for seed, loss in enumerate(losses):
            folder = make_run(tmp_path / f"{rate}" / f"{seed}", seed=seed, val=(70.0, 80.0)[seed], learning_rate=rate)
            results = json.loads((folder / "results.json").read_text())
            results["val"]["joint"]["loss"] = loss
            (folder / "results.json").write_text(json.dumps(results))
    kept, _ = tuned(find([tmp_path])[0], ["learning_rate"])
    assert {run.config["learning_rate"] for run in kept} == {0.02}
