"""A dataset, an encoder, a fusion and a method from elsewhere, by import path; a run repeated by its config.yaml."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from entries.command import inside, refused
from settings import read_settings
from tables import without_times

from mmpareto.cli import evaluate
from mmpareto.cli import train as entry

MINE = '''
import time

import numpy as np
import torch
from torch import nn

from mmpareto.datasets import Modality, MultimodalDataset
from mmpareto.integration import OneJoint
from mmpareto.methods import Losses, Method


class Rings(MultimodalDataset):
    """Two noisy views of a class.

    Args:
        root: not used.
        split: "train", "val" or "test".
        noise: added to each view.
    """

    embedded = True
    recipe = {"epochs": 2, "batch_size": 16}

    def __init__(self, root, split, *, noise: float = 0.1, seed: int = 0) -> None:
        super().__init__(seed)
        random = np.random.default_rng({"train": 0, "val": 1, "test": 2}[split])
        self.name, self.classes = "rings", ["a", "b", "c"]
        self.labels = random.integers(0, 3, 48)
        self.x = torch.from_numpy(np.eye(3, 6)[self.labels] + noise * random.normal(size=(48, 6))).float()
        self.modalities = {"left": Modality("vector", (4,)), "right": Modality("vector", (2,))}

    def __getitem__(self, index):
        x = self.x[index]
        return {"inputs": {"left": x[:4], "right": x[4:]}, "label": int(self.labels[index]), "id": str(index)}


class Wide(nn.Sequential):
    """A linear map to 8 features."""

    width = 8

    def __init__(self, kind, shape) -> None:
        super().__init__(nn.Linear(shape[0], 8), nn.Tanh())


class Sum(nn.Module):
    """The sum of a linear map of each modality.

    Args:
        gain: factor of the logits.
    """

    def __init__(self, widths, classes, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.heads = gain, nn.ModuleDict({name: nn.Linear(width, classes) for name, width in widths.items()})

    def forward(self, features, present=None):
        return self.gain * sum(head(features[n]) for n, head in self.heads.items() if present is None or n in present)


class Half(Method):
    """The joint loss times a factor.

    Args:
        factor: of the joint loss.
    """

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__(OneJoint())
        self.factor = factor

    def losses(self, piece):
        return Losses(self.factor * piece.losses.joint, piece.losses.unimodal)


class Headless(Method):
    """Without an integrator."""

    def __init__(self) -> None:
        self.factor = 1.0


class Slow(Method):
    """Takes a second before the first epoch, and never acts."""

    def __init__(self) -> None:
        super().__init__(OneJoint())

    def idle(self, epochs):
        return f"it never acts in {epochs} epochs"

    def boundary(self, now):
        if now.epoch == 1:
            time.sleep(1)
        return {}


class Silent(Method):
    """Without losses."""

    def __init__(self) -> None:
        super().__init__(OneJoint())

    def losses(self, piece):
        piece.losses.weighted(torch.ones(3))
'''
FLAGS = ("--dataset", "mine:Rings", "--model", "mine:Wide", "--fusion", "mine:Sum", "--method", "mine:Half")
OPTIONS = ("--noise", "0.2", "--fusion_options", "gain=2", "--method_options", "factor=0.25")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_method_that_lacks_something_says_what(mine: Path) -> None:
    flags = [*FLAGS[:-1], "mine:Headless", "--num_workers", "0", "--ckpt_path", mine / "run"]
    said = refused(entry.main, *flags)
    assert "mine:Headless has no integrator: its __init__ must call super().__init__(integrator)" in said
    said = refused(entry.main, *FLAGS[:-1], "mine:Silent", "--num_workers", "0", "--ckpt_path", mine / "run")
    assert "Silent.losses gave NoneType; expected Losses(joint, {modality: loss})" in said


def test_what_a_method_does_between_epochs_costs_time_and_a_method_that_never_acts_says_so(mine: Path) -> None:
    done = inside(entry.main, *FLAGS[:-1], "mine:Slow", "--num_workers", "0", "--ckpt_path", mine / "run")
    assert done.returncode == 0, done.stderr
    assert "warning: mine:Slow: it never acts in 2 epochs" in done.stderr
    results = json.loads((mine / "run" / "results.json").read_text())
    assert results["idle"] == "it never acts in 2 epochs"
    with open(mine / "run" / "metrics.csv", newline="") as file:
        epochs = sum(float(row["seconds"]) for row in csv.DictReader(file))
    assert results["seconds"] >= epochs + 0.9


def test_one_of_each_kind_from_outside_trains_and_is_evaluated(mine: Path) -> None:
    done = inside(entry.main, *FLAGS, *OPTIONS, "--num_workers", "0", "--ckpt_path", mine / "run")
    assert done.returncode == 0, done.stderr
    assert "mine:Half, factor 0.25" in done.stdout
    assert "left [4] -> mine:Wide" in done.stdout
    settings = read_settings(mine / "run")
    assert (settings["epochs"], settings["batch_size"]) == (2, 16)  # its recipe
    assert settings["dataset_options"] == {"noise": 0.2}
    assert (settings["fusion"], settings["fusion_options"]) == ("mine:Sum", {"gain": 2.0})
    allowed = [word for name in ("Rings", "Wide", "Sum", "Half") for word in ("--allow", f"mine:{name}")]
    said = refused(evaluate.main, mine / "run", "--gpu_ids", "cpu", *allowed[:4])
    assert "add --allow mine:Half --allow mine:Sum" in said
    scored = inside(evaluate.main, mine / "run", "--gpu_ids", "cpu", "--no-probe", *allowed)
    assert scored.returncode == 0, scored.stderr


def test_their_options_are_in_the_help_and_checked(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        entry.main([*FLAGS, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "added to each view. (default: 0.1)" in text
    assert "options of mine:Half: factor (default: 0.5): of the joint loss" in text
    assert "options of mine:Sum: gain (default: 1.0): factor of the logits" in text
    run = ("--ckpt_path", mine / "run", "--gpu_ids", "cpu")
    for flags, message in (
        (("--fusion_options", "gian=2"), "the fusion mine:Sum has no option 'gian'; it takes gain"),
        (("--noise", "much"), "--noise: expected a number, found 'much'"),
        (("--method", "mmcosine"), "--fusion mine:Sum: the method mmcosine brings its own; leave the flag out"),
    ):
        done = inside(entry.main, *FLAGS, *flags, *run)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_run_is_repeated_by_its_configuration(tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--batch_size", "64", "--gamma", "2", "--clip_grad", "3", "--gpu_ids", "cpu")
    assert inside(entry.main, *flags, "--ckpt_path", tmp_path / "first").returncode == 0
    again = ("--config", tmp_path / "first" / "config.yaml", "--ckpt_path", tmp_path / "second")
    assert inside(entry.main, *again).returncode == 0
    assert read_settings(tmp_path / "first") == read_settings(tmp_path / "second")
    assert without_times(tmp_path / "first" / "metrics.csv") == without_times(tmp_path / "second" / "metrics.csv")
    first, second = (
        torch.load(tmp_path / name / "best.pt", weights_only=True)["model"] for name in ("first", "second")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
