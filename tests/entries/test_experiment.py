"""code/experiment.py as a person runs it: a grid with a run that fails, gone on with, interrupted, refused."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from entries.command import ROOT, inside
from reporting.synthetic import make_run
from settings import write_settings

from mmpareto.cli import experiment, train
from mmpareto.experiments.grid import expand
from mmpareto.reporting.finished import find
from mmpareto.reporting.summary import summaries
from mmpareto.reporting.tables import comparison_text

SHORT = ("--batch_size", "256", "--pairs", "1", "--no-figures", "--methods", "one_joint")


def running() -> str:
    """The command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)


def again(capsys: pytest.CaptureFixture[str], *flags: str | Path) -> tuple[int, str, str]:
    """A command line in this process, which has PyTorch loaded."""
    capsys.readouterr()
    status = experiment.main([str(flag) for flag in flags])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_grid_interrupted_gone_on_with_and_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs, of which one cannot be done: six classes are not what the data have."""
    flags = (*SHORT, "--epochs", "6", "--output", str(tmp_path))
    folder = tmp_path / "twoview" / "one_joint" / "n_classes=10" / "seed0"
    results = folder / "results.json"

    grid = subprocess.Popen(
        [sys.executable, ROOT / "code" / "experiment.py", *flags, "--vary", "n_classes=10,6", "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "last.pt").exists():
        assert grid.poll() is None
        time.sleep(0.02)
    grid.send_signal(signal.SIGINT)
    printed, said = grid.communicate(timeout=60)
    assert grid.returncode == 130
    assert "2 runs in" in printed
    assert "0 finished, 0 to resume, 2 to begin; 2 at a time on " in printed
    assert "the same command continues" in said
    assert not results.exists()
    assert str(folder) not in running()

    status, out, err = again(capsys, *flags, "--vary", "n_classes=10,6", "--jobs", "2")
    assert status == 1
    assert "0 finished, 1 to resume, 1 to begin" in out
    assert re.search(r"twoview/one_joint/n_classes=10/seed0: joint accuracy val \d+\.\d+, test \d+\.\d+;", out)
    assert re.search(
        r"\ntwoview, test accuracy in percent, joint and each modality alone, 1 seed\n\n"
        r"method +joint +rotated +noisy\n-.*\none_joint +\d+\.\d ",
        out,
    )
    assert f"script/report.sh {folder.parent.parent}\n" in out
    assert "1 of 2 runs failed:\ntwoview/one_joint/n_classes=6/seed0: exit status 2" in err
    assert "--n_classes 6: the dataset twoview has 10 classes" in err
    log = (folder / "train.log").read_text()
    assert [log.count(f"{epoch}/6 |") for epoch in (1, 6)] == [1, 1]  # none was repeated
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 6

    before = results.read_bytes(), results.stat().st_mtime_ns
    status, out, _ = again(capsys, *flags, "--vary", "n_classes=10")
    assert status == 0
    assert "1 finished, 0 to resume, 0 to begin\n" in out
    assert re.search(r"\none_joint +\d+\.\d ", out)
    status, out, err = again(capsys, *flags, "--vary", "n_classes=10", "--learning_rate", "0.5")
    assert status == 1
    assert "1 in the way" in out
    assert "made with other settings: learning_rate 0.1 (asked for: 0.5)" in err
    assert "twoview, test accuracy" not in out
    assert (results.read_bytes(), results.stat().st_mtime_ns) == before


def test_damaged_results_hide_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run whose results are cut off, and one that was made with another learning rate."""
    for run in expand(["uniform", "pareto"], ["twoview"], [0], [], [], tmp_path, tmp_path).runs:
        run.folder.mkdir(parents=True)
        other = {"learning_rate": 0.5} if run.config.method.method == "pareto" else {}
        write_settings(run.folder, run.config.flat() | other)
        (run.folder / "results.json").write_text('{"dataset": "dig')
    status, _, err = again(capsys, "--methods", "uniform", "pareto", "--output", tmp_path)
    assert status == 1
    assert f"no table: {tmp_path / 'twoview' / 'uniform' / 'seed0' / 'results.json'} is damaged" in err
    assert "1 of 2 runs not run:\ntwoview/pareto/seed0: it is finished, but was made with other settings" in err


def test_what_fast_switched_on_is_no_other_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is trained in this process."""
    same = ("--epochs", "1", "--gpu_ids", "cpu")
    (run,) = expand(["uniform"], ["twoview"], [0], [], [], tmp_path, tmp_path).runs
    done = inside(train.main, "--method", "uniform", *same, "--fast", "--ckpt_path", run.folder)
    assert done.returncode == 0, done.stderr
    flags = ("--methods", "uniform", *same, "--output", tmp_path)
    status, out, _ = again(capsys, *flags, "--fast")
    assert status == 0
    assert "1 finished, 0 to resume, 0 to begin\n" in out
    status, _, err = again(capsys, *flags)
    assert status == 1
    assert "1 of 1 run not run:\n" in err
    assert "failed" not in err
    assert "channels_last True (asked for: False)" in err
    status, out, _ = again(capsys, *flags, "--fast", "--probe")
    assert status == 0
    assert "1 finished run without probes" in out
    results = json.loads((run.folder / "results.json").read_text())
    (run.folder / "results.json").write_text(json.dumps(results | {"probe": None}))  # they could not be fitted
    assert "without probes" not in again(capsys, *flags, "--fast", "--probe")[1]


def test_the_table_of_two_modalities_fits_a_terminal(tmp_path: Path) -> None:
    for method, joint in (("uniform", 55.0), ("uniform_gamma", 60.0)):
        for seed in range(4):
            accuracy = joint + seed * joint / 50
            make_run(tmp_path / f"{method}{seed}", method, seed, accuracy, modalities=("rotated", "noisy"))
    make_run(tmp_path / "more", "uniform", 4, 50.0, modalities=("rotated", "noisy"))
    (fewer,) = summaries(find([tmp_path])[0])
    (tmp_path / "more" / "results.json").unlink()
    (summary,) = summaries(find([tmp_path])[0])
    lines = comparison_text(summary).splitlines()
    assert lines[:2] == [
        "digits, test accuracy in percent, joint and each modality alone, 4 seeds;",
        "difference from uniform",
    ]
    assert lines[3].split() == ["method", "joint", "rotated", "noisy", "difference", "p", "(Holm)"]
    assert max(map(len, lines)) <= 80
    assert "method           seeds" in comparison_text(fewer)
    for seed in range(4):  # a label of several lines
        values = {"learning_rate": 0.00123, "weight_decay": 0.000688}
        make_run(tmp_path / f"o{seed}", "one_joint", seed, 50.0, modalities=("rotated", "noisy"), **values)
    lines = comparison_text(summaries(find([tmp_path])[0])[0]).splitlines()
    assert max(map(len, lines)) <= 80
    assert re.search(r"one_joint,.* 50\.0 ± 0\.0.*\n *learning_rate", "\n".join(lines))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs", "2"], "--methods"),
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--methods", "uniform", "--seed", "1"], "(experiment.py itself has --seeds)"),
        (["--methods", "uniform", "--epochs", "none"], "found 'none'"),
        (["--methods", "uniform", "--vary", "gamma"], "expected FLAG=VALUE,VALUE"),
        (["--methods", "uniform", "--vary", "gamma=1"], "--gamma means nothing to the method uniform"),
        (["--methods", "uniform", "--vary", "model=it's,cnn"], "a quote without its end"),
        (["--methods", "finetune", "--vary", "frozen=gray,true"], "frozen: expected true or false, found 'gray'"),
        (["--methods", "uniform", "--gpu_ids", "cpu,0"], "expected numbers of GPUs"),
        (["--methods", "uniform", "--gpu_ids", "99"], "PyTorch sees"),
        (["--methods", "uniform", "--gpu_ids", "cpu", "--runs_per_gpu", "2"], "--runs_per_gpu needs GPUs"),
        (["--methods", "uniform", "--launcher", "slurm", "--runs_per_gpu", "2"], "--runs_per_gpu needs GPUs"),
        (["--methods", "uniform", "--partition", "gpu"], "are for --launcher slurm"),
        (["--methods", "uniform", "--launcher", "slurm", "--gpu_ids", "1"], "--slurm gpus_per_node=1"),
    ],
)
def test_bad_input_starts_nothing(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = again(capsys, *flags, "--output", tmp_path / "runs")
    assert status == 2
    assert err.startswith("experiment.py: ")
    assert message in err
    assert out == ""
    assert not (tmp_path / "runs").exists()


def test_help_names_its_own_flags_and_train_py(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        experiment.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for flag in ("--methods", "--vary", "--jobs", "--launcher", "train.py"):
        assert flag in printed
