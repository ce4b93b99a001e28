"""What continues a run and what does not: other data, fewer epochs, other patience, older checkpoints, restarts."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from entries.command import inside, refused
from experiments.test_search import write_vectors

import mmpareto
from mmpareto.cli import train
from mmpareto.runs import RunError
from mmpareto.training import processes
from mmpareto.training.epochs import EpochRecord
from mmpareto.training.run import Run
from mmpareto.training.signals import Interrupted


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_vectors(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def flags(data: Path, tmp_path: Path) -> list[str]:
    """Of a run of a second, in the folder run."""
    common = ["--dataset", "manifest", "--method", "uniform", "--batch_size", "8", "--num_workers", "0", "--no-figures"]
    return [*common, "--gpu_ids", "cpu", "--data_root", str(data), "--ckpt_path", str(tmp_path / "run")]


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def test_a_run_does_not_go_on_with_fewer_epochs_than_it_has(flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert inside(train.main, *flags, "--epochs", "4").returncode == 0
    (run / "results.json").unlink()
    said = refused(train.main, *flags, "--epochs", "2", "--resume")
    assert "has trained 4 epochs, more than --epochs 2; give 4 or more" in said
    assert "epochs: 4" in (run / "config.yaml").read_text()
    assert inside(train.main, *flags, "--epochs", "4", "--resume").returncode == 0


def test_a_run_that_stopped_early_goes_on_with_more_patience(flags: list[str], tmp_path: Path) -> None:
    long = [*flags, "--epochs", "40", "--learning_rate", "0.1", "--clip_grad", "1"]
    done = inside(train.main, *long, "--early_stopping", "1")
    assert "stopped early" in done.stdout, done.stderr
    trained = results(tmp_path / "run")["epochs_trained"]
    assert trained < 40
    assert "is finished" in inside(train.main, *long, "--early_stopping", "1", "--resume").stdout
    done = inside(train.main, *long, "--early_stopping", "60", "--resume")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["epochs_trained"] == 40


def test_a_run_goes_on_with_its_own_samples_alone(flags: list[str], data: Path, tmp_path: Path) -> None:
    assert inside(train.main, *flags, "--epochs", "1").returncode == 0
    whole = (data / "manifest.csv").read_text()
    lines = whole.splitlines(keepends=True)
    (data / "manifest.csv").write_text("".join(lines[:-8] + lines[-4:]))
    said = refused(train.main, *flags, "--epochs", "2", "--resume")
    assert "began with other samples of train ({'number': 30, " in said
    test_alone = [line for line in lines if ",test," not in line] + [line for line in lines if ",test," in line][:-2]
    (data / "manifest.csv").write_text("".join(test_alone))
    done = inside(train.main, *flags, "--epochs", "2", "--resume")
    assert done.returncode == 0, done.stderr


def test_the_best_epoch_of_a_lost_part_stays_selected(flags: list[str], tmp_path: Path) -> None:
    """From previous.pt on an epoch is trained again, elsewhere perhaps with a worse end."""
    run = tmp_path / "run"
    assert inside(train.main, *flags, "--epochs", "3", "--learning_rate", "0.02").returncode == 0
    lost = torch.load(run / "best.pt", weights_only=True)
    previous = torch.load(run / "previous.pt", weights_only=True)
    lost |= {"epoch": previous["epoch"], "accuracy": 99.0, "loss": 0.01}  # as if that epoch had ended so before
    torch.save(lost, run / "best.pt")
    (run / "last.pt").unlink()
    (run / "results.json").unlink()
    done = inside(train.main, *flags, "--epochs", "3", "--learning_rate", "0.02", "--resume", "previous.pt")
    assert done.returncode == 0, done.stderr
    assert results(run)["selected_epoch"] == lost["epoch"]
    assert torch.load(run / "last.pt", weights_only=True)["best"] == {
        key: lost[key] for key in ("accuracy", "loss", "epoch")
    }


def test_a_folder_with_an_older_checkpoint_alone_holds_a_run(flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert inside(train.main, *flags, "--epochs", "3").returncode == 0
    whole = torch.load(run / "last.pt", weights_only=True)["model"]
    for name in ("last.pt", "results.json"):
        (run / name).unlink()
    assert "holds an unfinished run" in refused(train.main, *flags, "--epochs", "3", "--random_seed", "5")
    done = inside(train.main, *flags, "--epochs", "3", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    again = torch.load(run / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_restart_of_torchrun_continues_its_own_run_alone(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def attempt(job: str, number: int, *more: str) -> str:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        done = inside(train.main, *flags, *more)
        return done.stdout + done.stderr

    assert "run directory" in attempt("first", 0, "--epochs", "1")
    (run / "results.json").unlink()
    assert "holds an unfinished run" in attempt("second", 1, "--epochs", "2")
    assert "2/2" in attempt("first", 1, "--epochs", "2")
    assert "1/2" in attempt("third", 1, "--epochs", "2", "--overwrite")  # which died before it opened the folder
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert processes.Processes().job == processes.Processes().job != "none"
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    assert processes.Processes().job is None


def test_a_run_that_cannot_be_continued_is_left_to_others(flags: list[str], data: Path, tmp_path: Path) -> None:
    """In a notebook the process lives on."""
    settings = {"dataset": "manifest", "method": "uniform", "batch_size": 8, "num_workers": 0, "gpu_ids": "cpu"}
    settings |= {"data_root": str(data), "ckpt_path": str(tmp_path / "run"), "figures": False, "epochs": 1}
    mmpareto.train(settings)
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(RunError, match="holds no results"):
        mmpareto.train(settings, resume=True)
    (tmp_path / "run" / "results.json").unlink()
    assert mmpareto.train(settings, resume=True).history.index.tolist() == [1]


def test_the_time_of_an_interrupted_teacher_is_the_run_s_and_no_epoch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: clock[0])
    run: Any = object.__new__(Run)
    run.state = SimpleNamespace(seconds=1.0, record=EpochRecord(["x"], torch.device("cpu")))

    def interrupted() -> None:
        clock[0] += 50
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        run.timed(interrupted)
    assert run.state.seconds == 51
    assert run.state.record.seconds == 0


def test_the_clock_of_an_epoch_goes_on_where_its_checkpoint_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    record = EpochRecord(["x"], torch.device("cpu"))
    clock[0], record.batches = 110.0, 4
    saved = record.state_dict()
    clock[0] = 500.0
    record.load_state_dict(saved, torch.device("cpu"))
    clock[0], record.batches = 502.0, 10
    assert record.seconds == 12
    assert record.batches_per_second == 3


def test_a_lost_table_of_gradients_is_said(flags: list[str], tmp_path: Path) -> None:
    assert inside(train.main, *flags, "--epochs", "1", "--diagnose_interval", "1").returncode == 0
    (tmp_path / "run" / "gradients.csv").unlink()
    done = inside(train.main, *flags, "--epochs", "2", "--diagnose_interval", "1", "--resume")
    assert done.returncode == 0
    assert "gradients.csv is gone: conflict rates of the results begin at this epoch" in done.stderr


def test_validation_that_is_not_finite_is_said(flags: list[str], data: Path) -> None:
    with (data / "manifest.csv").open(newline="") as stream:
        first = next(row for row in csv.DictReader(stream) if row["split"] == "val")
    np.save(data / first["left"], np.full(6, 3e38, np.float32))
    done = inside(train.main, *flags, "--epochs", "1")
    assert "epoch 1: the joint loss on val is not finite" in done.stderr
