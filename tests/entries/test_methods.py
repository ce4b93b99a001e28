"""Every method through train.py, in this process: it trains, is scored, resumes exactly, and is evaluated."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from entries.test_faults import assert_same, vectors
from methods.counting import Stopped
from tables import without_times

from mmpareto.cli import evaluate, study
from mmpareto.cli import train as entry
from mmpareto.methods import METHODS

OPTIONS = {
    "finetune": ["pretrain_epochs=1", "frozen=true"],
    "gblending": ["online=true", "super_epoch=2"],
    "mslr": ["window=1", "factors=left:0.5"],
    "pmr": ["mu=0.1", "fraction=0.5"],
    "opm": ["warm_up_epochs=0"],
    "synib": ["weight=0.01", "target=gaussian"],
    "mcr": ["bottleneck=1"],
    "lfm": ["learned=true", "rate=10"],
    "relearning": ["interval=2"],
    "umt": ["teacher_epochs=1"],
    "g2d": ["teacher_epochs=1"],
    "reconboost": ["alone_epochs=2", "together_epochs=1"],
}
FIGURES = {
    "finetune": ("turned",),
    "gblending": ("weight_joint", "weight_left", "weight_right"),
    "gradnorm": ("weight_joint", "weight_left", "weight_right"),
    "mslr": ("rate_left", "rate_right"),
    "lfm": ("alpha",),
    "dwa": ("weight_joint", "weight_left", "weight_right"),
    "famo": ("share_joint", "share_left", "share_right"),
    "relearning": ("pull_left", "pull_right"),
    "reconboost": ("learner", "together"),
    "greedy": ("reliance_rotated", "reliance_noisy"),
}
# with a fusion of their own, or a network that evaluation does without
EVALUATED = ("ensemble", "mmcosine", "lfm", "g2d", "mla", "reconboost", "greedy", "mcr")
# the launchers' methods are tested by test_train.py and test_faults.py
LAUNCHED = ("one_joint", "uniform", "uniform_gamma", "pareto", "mmpareto")


SLOW = ("greedy",)  # which needs images
TRAINED = [*(name for name in METHODS.names(group="") if name not in (*LAUNCHED, *SLOW)), "dwa", "famo"]


@pytest.mark.parametrize("method", [*TRAINED, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_method_trains_goes_on_exactly_and_is_evaluated(
    method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if method in SLOW:
        flags = ["--dataset", "twoview", "--batch_size", "64", "--gpu_ids", "cpu"]
    else:
        vectors(tmp_path / "data", 120)
        flags = ["--dataset", "manifest", "--data_root", str(tmp_path / "data"), "--batch_size", "16"]
        flags += ["--gpu_ids", "cpu"]
    flags += ["--num_workers", "0", "--epochs", "3", "--learning_rate", "0.02", "--method", method]
    if method in OPTIONS:
        flags += ["--method_options", *OPTIONS[method]]
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    assert entry.main([*flags, "--ckpt_path", str(straight)]) == 0, capfd.readouterr().err
    shutil.copytree(straight, parted)
    (parted / "results.json").unlink()
    capfd.readouterr()
    assert entry.main([*flags, "--ckpt_path", str(parted), "--resume", "previous.pt"]) == 0
    said = capfd.readouterr().out
    assert re.findall(r"^ *(\d+)/3 \|", said, re.MULTILINE) == ["3"]
    assert_same(straight, parted)
    results = json.loads((straight / "results.json").read_text())
    assert results["test"]["joint"]["accuracy"] > 60  # of two classes that are easily told apart, or ten
    if method == "finetune":
        assert results["selected_epoch"] > 1
    columns = {key for key in without_times(straight / "metrics.csv")[-1] if key.startswith("method_")}
    assert columns == {f"method_{name}" for name in FIGURES.get(method, ())}
    if method not in EVALUATED:
        return
    assert evaluate.main([str(straight), "--gpu_ids", "cpu"]) == 0
    capfd.readouterr()
    if method == "ensemble":
        assert study.main([str(straight), str(parted), "--gpu_ids", "cpu"]) == 2
        assert "no joint loss that could be studied" in capfd.readouterr().err
    evaluation = json.loads((straight / "evaluation_test.json").read_text())
    assert evaluation["joint"]["accuracy"] == pytest.approx(results["test"]["joint"]["accuracy"])


def test_an_estimate_that_is_stopped_goes_on_from_its_last_whole_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies, three epochs of three batches each; stopped in the first copy's second epoch, the second's third; and
    ended in the first's second by data that cannot be read.
    """
    vectors(tmp_path / "data", 120)  # 60 to train on, 42 of them for the estimate
    flags = ["--dataset", "manifest", "--data_root", str(tmp_path / "data"), "--batch_size", "16", "--gpu_ids", "cpu"]
    flags += ["--num_workers", "0", "--epochs", "2", "--method", "methods.counting:Stopped", "--optimizer", "Adam"]

    def run(name: str, stop_after: int, *more: str) -> tuple[int, int]:
        """Exit status, and batches of estimates."""
        Stopped.batches, Stopped.stop_after = 0, stop_after
        status = entry.main([*flags, "--ckpt_path", str(tmp_path / name), *more])
        return status, Stopped.batches

    assert run("straight", 0) == (0, 18)
    assert run("first", 5) == (128 + 15, 5)
    shutil.copytree(tmp_path / "first", tmp_path / "second")  # a run directory stays locked until its process ends
    assert run("second", 13, "--resume") == (128 + 15, 13)  # six more of the first copy, seven of the second
    shutil.copytree(tmp_path / "second", tmp_path / "third")
    assert run("third", 0, "--resume") == (0, 3)
    assert_same(tmp_path / "straight", tmp_path / "third")

    monkeypatch.setattr(Stopped, "unreadable", True)
    assert run("broken", 5) == (2, 5)
    shutil.copytree(tmp_path / "broken", tmp_path / "mended")
    assert run("mended", 0, "--resume") == (0, 15)  # the first copy's first epoch is kept
    assert_same(tmp_path / "straight", tmp_path / "mended")


@pytest.mark.parametrize(("given", "status"), [([], 2), (["--method_options", "pretrain_epochs=1"], 0)])
def test_more_epochs_for_a_run_that_was_cut_in_halves(
    given: list[str], status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the turn in the middle, four epochs are not two epochs and two more; with one epoch before it they are."""
    vectors(tmp_path / "data", 60)
    flags = ["--dataset", "manifest", "--data_root", str(tmp_path / "data"), "--batch_size", "16", "--gpu_ids", "cpu"]
    flags += ["--num_workers", "0", "--method", "finetune", *given]
    assert entry.main([*flags, "--epochs", "2", "--ckpt_path", str(tmp_path / "run")]) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "on")
    assert entry.main([*flags, "--epochs", "4", "--ckpt_path", str(tmp_path / "on"), "--resume"]) == status
    assert ("was made with other settings: --epochs 2 (now 4)" in capfd.readouterr().err) == bool(status)


def test_a_run_stopped_within_an_epoch_does_not_act_before_it_again(tmp_path: Path) -> None:
    vectors(tmp_path / "data", 120)  # 60 to train on: four batches an epoch
    flags = ["--dataset", "manifest", "--data_root", str(tmp_path / "data"), "--batch_size", "16", "--gpu_ids", "cpu"]
    flags += ["--num_workers", "0", "--epochs", "3", "--method", "methods.counting:Counting"]
    flags += ["--method_options", "stop_after=7"]  # in the middle of the second epoch; five batches are left then
    assert entry.main([*flags, "--ckpt_path", str(tmp_path / "run")]) == 128 + 15
    shutil.copytree(tmp_path / "run", tmp_path / "on")  # a run directory stays locked as long as its process lives
    assert entry.main([*flags, "--ckpt_path", str(tmp_path / "on"), "--resume"]) == 0
    assert [row["method_calls"] for row in without_times(tmp_path / "on" / "metrics.csv")] == ["1.0", "2.0", "3.0"]
