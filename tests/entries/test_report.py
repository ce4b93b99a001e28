"""code/report.py on runs with made-up accuracies, so that means and deviations can be worked out by hand."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from entries.command import ROOT, inside, refused, run
from reporting.synthetic import make_run
from settings import write_settings

from mmpareto.cli import report as entry


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
    write_settings(folder, settings)
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


def single_spaced(text: str) -> str:
    """A table without the spaces that align its columns."""
    return re.sub(" +", " ", text)


def test_a_terminal_shows_the_main_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        make(tmp_path / "runs" / f"a{seed}", "uniform", seed, 42.0, 99.0)
        make(tmp_path / "runs" / f"b{seed}", "uniform", seed, 50.0, 99.0, selected_on="test")
    make(tmp_path / "runs" / "again", "uniform", 1, 43.0, 99.0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert entry.main([str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits, test accuracy in percent, joint and each modality alone, 2 seeds"
    assert lines[2].split() == ["method", "joint", "gray"]
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert "SELECTED ON TEST" in text
    assert "uniform: 1 further run (seeds 1), left out of all means" in text


def test_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    for seed, joint in enumerate((40.0, 42.0, 44.0)):  # mean 42, sample deviation 2
        make(tmp_path / "runs" / f"a{seed}", "mmpareto", seed, joint, 99.0)
    make(tmp_path / "runs" / "b0", "uniform", 0, 50.0, 98.0)
    make(tmp_path / "runs" / "b1", "uniform", 1, 30.0, 98.0, selected_on="test")
    make(tmp_path / "runs" / "b2", "uniform", 2, 31.0, 98.0, epochs=7)
    make(tmp_path / "runs" / "c", "pareto", 0, 0.0, 0.0, finished=False)
    done = inside(entry.main, tmp_path / "runs", tmp_path / "runs" / "b0")
    assert done.returncode == 0, done.stderr
    lines = single_spaced(done.stdout).splitlines()
    assert lines[0] == "| dataset | method | seeds | joint | gray alone | joint - best single | conflict, gray |"
    assert lines[2:] == [  # by joint accuracy; b0 counted once although it was named twice
        "| digits | uniform, epochs 20, SELECTED ON TEST | 1 | 30.0 | 98.0 | -68.0 | 25.0 % |",
        "| digits | uniform, epochs 7 | 1 | 31.0 | 98.0 | -67.0 | 25.0 % |",
        "| digits | mmpareto | 3 | 42.0 ± 2.0 | 99.0 ± 0.0 | -57.0 ± 2.0 | 25.0 % |",
        "| digits | uniform, epochs 20 | 1 | 50.0 | 98.0 | -48.0 | not measured |",
    ]
    assert "not finished, left out" in done.stderr
    assert str(tmp_path / "runs" / "c") in done.stderr


def test_a_written_report(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / "runs" / f"u{seed}", "uniform", seed, 40.0 + seed)
        make_run(tmp_path / "runs" / f"m{seed}", "mmpareto", seed, 45.0 + 2 * seed)
    make_run(tmp_path / "runs" / "half", "pareto", finished=False)
    output = tmp_path / "report"
    (output / "mine").mkdir(parents=True)
    (output / "figures").mkdir()
    for name in ("digits-cosine-2.png", "digits-over-gamma.png", "digits-mine.png"):
        (output / "figures" / name).touch()
    done = run(sys.executable, ROOT / "code" / "report.py", tmp_path / "runs", "--output", output)
    assert done.returncode == 0, done.stderr
    assert f"report: {output / 'index.html'}" in done.stdout
    assert str(tmp_path / "runs" / "half") in done.stderr
    assert {path.name for path in output.iterdir()} == {
        "mine", "figures", "index.html", "table.md", "table.csv", "table.tex"
    }  # fmt: skip
    figures = {path.name for path in (output / "figures").iterdir()}
    assert not {"digits-cosine-2.png", "digits-over-gamma.png"} & figures  # of an earlier report
    assert {"digits-cosine.png", "digits-mine.png"} <= figures
    rows = {row["method"]: row for row in csv.DictReader((output / "table.csv").open())}
    assert rows["mmpareto"]["baseline"] == "uniform"
    assert float(rows["mmpareto"]["difference"]) == 6.0
    assert (output / "index.html").stat().st_size < 3_000_000
    again = [str(tmp_path / "runs"), "--output", str(output), "--baseline", "mmpareto"]
    assert entry.main(again) == 0  # in this process, which has the libraries loaded
    rows = {row["method"]: row for row in csv.DictReader((output / "table.csv").open())}
    assert float(rows["uniform"]["difference"]) == -6.0


def test_bad_input(tmp_path: Path) -> None:
    make(tmp_path / "half" / "run", "pareto", 0, 0.0, 0.0, finished=False)
    (tmp_path / "empty").mkdir()
    whole = make_run(tmp_path / "whole" / "run")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([], "give run directories, or --leaderboard with files"),
        ([tmp_path / "nowhere"], "is no folder"),
        ([tmp_path / "empty"], "there is no run in"),
        ([tmp_path / "half"], "found no finished run and 1 unfinished one;"),
        ([whole, "--baseline", "uniform"], "name its folder with --output"),
        ([whole, "--output", tmp_path / "r", "--tune_seeds", 0], "name the flags with --tune"),
        ([whole, "--output", tmp_path / "file"], "is a file"),
        ([whole, "--output", tmp_path / "file" / "below"], "cannot write to"),
        ([whole, "--output", tmp_path / "out", "--baseline", "uniform"], "no finished run is of the method 'uniform'"),
    ):
        assert message in refused(entry.main, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", '{"dataset": "digits', "is damaged"),
        ("results.json", "[]", "is damaged"),
        ("results.json", '{"dataset": "digits"}', "an older version wrote it"),
        ("config.yaml", '{"dataset": "digits", "method": "mmpareto"}', "an older version wrote it"),
        (
            "config.yaml",
            '{"dataset": "other", "method": "mmpareto", "random_seed": 0, "selected_on": "val"}',
            "are of different runs",
        ),
        ("environment.json", "[1]", "is damaged"),
        ("environment.json", '{"git": "abc"}', "is damaged"),
        (
            "config.yaml",
            '{"dataset": "digits", "method": "mmpareto", "random_seed": 0, "selected_on": "val", "method_options": [1]'
            "}",
            "its method_options is [1]",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content)
    said = refused(entry.main, folder)
    assert message in said
    assert str(folder) in said
    assert name in said
    assert "Traceback" not in said


def test_runs_behind_links_are_found_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "disk" / "run")
    make_run(tmp_path / "runs" / "uniform", "uniform")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert entry.main([str(tmp_path / "runs")]) == 0
    out = single_spaced(capsys.readouterr().out)
    assert "| digits | mmpareto | 1 |" in out
    assert "| digits | uniform | 1 |" in out


def test_what_is_in_no_mean_is_said_without_a_folder_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    assert entry.main([str(tmp_path)]) == 0
    assert "mmpareto: 1 further run (seeds 0), left out of all means" in capsys.readouterr().out


def test_results_without_settings_are_not_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path / "whole")
    (make_run(tmp_path / "half") / "config.yaml").unlink()
    assert f"{tmp_path / 'half'} has a results.json and no config.yaml" in refused(entry.main, tmp_path)
