"""train.py --probe: linear probes at the end of a run, beside those of encoders that were trained alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from entries.command import inside, refused
from entries.test_faults import vectors

from mmpareto.cli import evaluate, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one of `unimodal`, and the data beside it."""
    root = tmp_path_factory.mktemp("probe")
    vectors(root / "data", 90)
    assert trained(root, "unimodal").returncode == 0
    return root


def trained(root: Path, method: str, *flags: str | Path, seed: int = 0) -> subprocess.CompletedProcess[str]:
    common = ("--dataset", "manifest", "--data_root", root / "data", "--batch_size", "16", "--num_workers", "0")
    folder = root / "runs" / method / f"seed{seed}"
    here = ("--method", method, "--epochs", "2", "--random_seed", str(seed), "--gpu_ids", "cpu", "--ckpt_path", folder)
    return inside(train.main, *common, *here, *flags)


def test_probes_are_those_of_evaluate_and_of_the_run_trained_alone(runs: Path) -> None:
    done = trained(runs, "one_joint", "--probe")
    assert done.returncode == 0, done.stderr
    probe = json.loads((runs / "runs" / "one_joint" / "seed0" / "results.json").read_text())["probe"]
    alone = runs / "runs" / "unimodal" / "seed0"
    assert probe["alone"]["run"] == str(alone)
    for folder, numbers in ((runs / "runs" / "one_joint" / "seed0", probe), (alone, probe["alone"])):
        assert inside(evaluate.main, folder, "--gpu_ids", "cpu").returncode == 0
        scored = json.loads((folder / "evaluation_test.json").read_text())["probe"]["unimodal"]
        assert scored == numbers["unimodal"]
    assert "linear probe of the encoder, test" in done.stdout
    assert f"trained alone: {alone}" in done.stdout


def test_without_a_run_to_compare_with(runs: Path) -> None:
    shutil.copytree(runs / "runs" / "unimodal" / "seed0", runs / "runs" / "unimodal" / "seed1")  # of another seed
    done = trained(runs, "uniform", "--probe", seed=1)
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / "runs" / "uniform" / "seed1" / "results.json").read_text())["probe"]["alone"] is None
    assert "no finished run of --method unimodal with this seed to compare with" in done.stdout
    named = trained(runs, "pareto", "--probe", "--probe_alone", runs / "runs" / "unimodal" / "seed0", seed=1)
    assert named.returncode == 0, named.stderr
    assert "trained alone: " in named.stdout


def test_a_run_that_has_ended_without_probes_says_so(runs: Path) -> None:
    again = trained(runs, "unimodal", "--resume", "--probe")
    assert again.returncode == 0, again.stderr
    assert "this one has ended without; evaluate.py RUN fits them" in again.stderr


def test_a_wrong_run_to_compare_with_is_refused_before_training(runs: Path, tmp_path: Path) -> None:
    flags = ("--dataset", "manifest", "--data_root", runs / "data", "--num_workers", "0", "--gpu_ids", "cpu")
    for name, line, other in (
        ("no_run", "", ""),
        ("method", "method: unimodal", "method: uniform"),
        ("augmentation", "augment: workers", "augment: none"),
    ):
        wrong = tmp_path / name
        if line:
            shutil.copytree(runs / "runs" / "unimodal" / "seed0", wrong)
            text = (wrong / "config.yaml").read_text()
            assert line in text
            (wrong / "config.yaml").write_text(text.replace(line, other))
        said = refused(train.main, *flags, "--probe", "--probe_alone", wrong, "--ckpt_path", tmp_path / "run")
        assert "expected a finished run of --method unimodal" in said
        assert not (tmp_path / "run").exists()
