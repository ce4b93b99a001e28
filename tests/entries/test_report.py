"""code/report.py on runs with made-up accuracies, so that means and deviations can be worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from entries.command import ROOT, run


def make(
    folder: Path, method: str, seed: int, joint: float, alone: float, *, finished: bool = True, **config: Any
) -> None:
    folder.mkdir(parents=True)
    settings = {
        "dataset": "digits",
        "method": method,
        "random_seed": seed,
        "selected_on": "val",
        "epochs": 20,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    if finished:
        results = {
            "dataset": "digits",
            "method": method,
            "seed": seed,
            "selected_on": settings["selected_on"],
            "test": {"joint": {"accuracy": joint}, "unimodal": {"gray": {"accuracy": alone}}},
            "integration": {"gray": {"conflict_rate": 0.25 if seed else None, "mean_cosine": 0.0}},
        }
        (folder / "results.json").write_text(json.dumps(results))


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "code" / "report.py", *arguments)


def test_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    for seed, joint in enumerate((40.0, 42.0, 44.0)):  # mean 42, sample deviation 2
        make(tmp_path / "runs" / f"a{seed}", "mmpareto", seed, joint, 99.0)
    make(tmp_path / "runs" / "b0", "uniform", 0, 50.0, 98.0)
    make(tmp_path / "runs" / "b1", "uniform", 1, 30.0, 98.0, selected_on="test")
    make(tmp_path / "runs" / "b2", "uniform", 2, 31.0, 98.0, epochs=7)
    make(tmp_path / "runs" / "c", "pareto", 0, 0.0, 0.0, finished=False)
    done = report(tmp_path / "runs", tmp_path / "runs" / "b0", "--output", tmp_path / "table.md")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "| dataset | method | seeds | joint | gray alone | conflict, gray |"
    assert lines[2:] == [  # by joint accuracy; b0 counted once although it was named twice
        "| digits | uniform, epochs 20, SELECTED ON TEST | 1 | 30.0 | 98.0 | 25.0 % |",
        "| digits | uniform, epochs 7 | 1 | 31.0 | 98.0 | 25.0 % |",
        "| digits | mmpareto | 3 | 42.0 ± 2.0 | 99.0 ± 0.0 | 25.0 % |",
        "| digits | uniform, epochs 20 | 1 | 50.0 | 98.0 | not measured |",
    ]
    assert "not finished, left out" in done.stderr
    assert str(tmp_path / "runs" / "c") in done.stderr
    assert (tmp_path / "table.md").read_text() == done.stdout


def test_bad_input(tmp_path: Path) -> None:
    make(tmp_path / "half" / "run", "pareto", 0, 0.0, 0.0, finished=False)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([tmp_path / "nowhere"], "is no folder"),
        ([tmp_path / "empty"], "there is no run in"),
        ([tmp_path / "half"], "none of the 1 runs is finished"),
    ):
        done = report(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
