"""CG-MNIST, ModelNet40 and a manifest from raw files to a finished run, by the commands of docs/datasets.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets.make_manifest import write_manifest, write_rows
from datasets.make_media import tone, write_video, write_wav
from datasets.test_avmnist import write_spoken_digits
from datasets.test_cgmnist import write_mnist
from datasets.test_modelnet40 import off, wedge, write_renders
from datasets.test_utd_mhad import write_recording
from entries.command import inside, refused, train
from entries.test_faults import vectors
from settings import read_settings, write_settings

from mmpareto.cli import evaluate
from mmpareto.cli import prepare as entry
from mmpareto.cli import train as training

SMALL = ("--epochs", "1", "--batch_size", "6", "--num_workers", "0")
WITH_WORKER = ("--epochs", "1", "--batch_size", "6", "--num_workers", "1")


def prepare(*arguments: str | Path) -> str:
    done = inside(entry.main, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(folder: Path, *flags: str | Path) -> set[str]:
    done = inside(training.main, *flags, "--ckpt_path", folder)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["test"]["joint"]["accuracy"] <= 100
    return set(results["test"]["unimodal"])


@pytest.mark.slow
def test_cgmnist(tmp_path: Path) -> None:
    write_mnist(tmp_path / "raw", ".gz")
    modalities = {"gray", "colour"}
    flags = ("--epochs", "1", "--batch_size", "48")
    assert trained(tmp_path / "a", "--dataset", "CG-MNIST", "--data_root", tmp_path / "raw", *flags) == modalities
    said = prepare("cgmnist", "--source", tmp_path / "raw", "--output", tmp_path / "out")
    assert "all                                  450        0        0" in said
    assert trained(tmp_path / "b", "--dataset", "cgmnist", "--data_root", tmp_path / "out", *flags) == modalities
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert one["test"] == other["test"]  # prepared or not, it is the same dataset
    said = refused(training.main, "--dataset", "cgmnist", "--data_root", tmp_path / "out", "--variance", "0.02", *flags)
    assert "prepared with variance 0.03, the flags ask for variance 0.02" in said


def continued(folder: Path, *flags: str | Path) -> None:
    """A run of one epoch, resumed for a second one, ends as a run of two epochs."""
    trained(folder / "whole", *flags, "--epochs", "2")
    trained(folder / "begun", *flags, "--epochs", "1")
    shutil.copytree(folder / "begun", folder / "parted")  # this process still holds the lock of the other one
    trained(folder / "parted", *flags, "--epochs", "2", "--resume")
    results = [json.loads((folder / name / "results.json").read_text()) for name in ("whole", "parted")]
    assert results[0]["test"] == results[1]["test"]


def test_utd_mhad(tmp_path: Path) -> None:
    for action in (1, 2):
        for subject in (1, 2, 7):
            for trial in range(1, 5):
                write_recording(tmp_path / "raw", action, subject, trial)
    prepare("utd-mhad", "--source", tmp_path / "raw", "--output", tmp_path / "out", "--workers", "1")
    flags = ("--dataset", "utd-mhad", "--data_root", tmp_path / "out", "--batch_size", "4")
    assert trained(tmp_path / "run", *flags, "--epochs", "1") == {"skeleton", "inertial"}
    continued(tmp_path, *flags)


@pytest.mark.slow
def test_avmnist(tmp_path: Path) -> None:
    write_spoken_digits(tmp_path / "fsdd", takes=1)
    write_mnist(tmp_path / "mnist")
    sources = ("--sound", tmp_path / "fsdd", "--image", tmp_path / "mnist")
    prepare("avmnist", *sources, "--output", tmp_path / "out", "--pairs", "1", "--workers", "1")
    flags = ("--dataset", "avmnist", "--data_root", tmp_path / "out", "--batch_size", "5")
    assert trained(tmp_path / "run", *flags, "--epochs", "1") == {"sound", "image"}
    continued(tmp_path, *flags)


def test_modelnet40_from_meshes(tmp_path: Path) -> None:
    pytest.importorskip("pyvista")
    vertices, faces = wedge()
    for label in ("bed", "chair"):
        for number in range(8):
            folder = tmp_path / "raw" / label / ("train" if number < 6 else "test")
            stretched = vertices * (1, 1 + number / 8, 3 if label == "chair" else 1)
            off(folder / f"{label}_{number:04d}.off", stretched, faces, glued=bool(number % 2))
    (tmp_path / "raw" / "bed" / "train" / "bed_0099.off").write_text("OFF\n0 0 0\n")
    source, out = tmp_path / "raw", tmp_path / "out"
    flags = ("--views", "0", "4", "8", "--image_size", "48", "--max_unusable", "10", "--workers", "2")
    said = prepare("modelnet40", "--source", source, "--output", out, *flags)
    assert "unusable" in said
    assert "bed_0099" in said
    flags = ("--dataset", "modelnet40", "--data_root", out, "--image_size", "32", "--model", "cnn", *SMALL)
    assert trained(tmp_path / "run", *flags, "--views", "0,4,8") == {"view0", "view4", "view8"}
    said = refused(training.main, *flags, "--ckpt_path", tmp_path / "no")
    assert "was prepared with view0, view4, view8, the flags ask for view6" in said


either = pytest.mark.parametrize("prepared", [pytest.param(False, marks=pytest.mark.slow), True])


@either
def test_modelnet40_from_renders(tmp_path: Path, prepared: bool) -> None:
    root = write_renders(tmp_path / "raw", "shaded")
    if prepared:
        source, root = root, tmp_path / "out"
        next(source.glob("airplane/train/*_0003*_v007.png")).unlink()
        flags = ("--source", source, "--output", root, "--image_size", "32", "--workers", "2")
        assert " 15        1        0\n" in prepare("modelnet40", *flags)
    flags = ("--dataset", "modelnet40", "--image_size", "32", "--model", "cnn", "--data_root", root, *SMALL)
    assert trained(tmp_path / "run", *flags) == {"view0", "view6"}
    if prepared:
        said = refused(training.main, *flags, "--image_size", "48", "--ckpt_path", tmp_path / "no")
        assert "was prepared with image_size 32, the flags ask for image_size 48" in said


@either
def test_a_manifest_with_four_modalities(tmp_path: Path, prepared: bool) -> None:
    root = tmp_path / "raw"
    write_manifest(root)
    if prepared:
        source, root = root, tmp_path / "out"
        prepare("manifest", "--source", source, "--output", root, "--workers", "2")
        sound = np.load(root / "sound" / "clip0.npy")
        assert sound.shape == (38, 128)  # 0.4 s: 1 + (6400 - 400) // 160
        assert sound.dtype == np.float16
    flags = ("--dataset", "manifest", "--image_size", "16", "--encoder", "sound=cnn", "--data_root", root)
    flags += WITH_WORKER
    assert trained(tmp_path / "run", *flags) == {"sound", "sight", "photo", "sensor"}


def test_a_run_goes_on_with_its_own_manifest_which_may_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    vectors(tmp_path / "birds", 60)
    vectors(tmp_path / "fishes", 60)
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", "manifest", "--batch_size", "16", "--gpu_ids", "cpu", "--num_workers", "0"]
    flags += ["--ckpt_path", "run"]
    assert training.main([*flags, "--data_root", "birds", "--epochs", "1"]) == 0
    assert read_settings(tmp_path / "run")["data_root"] == str(tmp_path / "birds")
    shutil.copytree("run", "again")  # a run directory stays locked until its process ends
    flags[-1] = "again"
    assert training.main([*flags, "--data_root", "fishes", "--epochs", "2", "--resume", "auto"]) == 2
    assert f"--data_root {tmp_path / 'birds'} (now {tmp_path / 'fishes'})" in capfd.readouterr().err
    Path("moved").mkdir()
    shutil.move("birds", "moved/birds")
    shutil.copytree("run", "last")
    flags[-1] = "last"
    assert training.main([*flags, "--data_root", "moved/birds", "--epochs", "2", "--resume", "auto"]) == 0
    assert training.main([*flags, "--data_root", ""]) == 2
    assert "--data_root is empty" in capfd.readouterr().err


@pytest.mark.slow
def test_a_manifest_of_videos_with_their_sound(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"clip{number}",
            "split": "test" if number % 4 == 3 else "train",
            "label": str(number % 2),
            "voice": f"clips/{number}.mp4",
            "face": f"clips/{number}.mp4",
        }
        for number in range(16)
    ]
    source, out = tmp_path / "raw", tmp_path / "out"
    for number in range(16):
        if number != 9:
            write_video(source / "clips" / f"{number}.mp4", 15, 10, sound=tone(1.5, 300 + 300 * (number % 2)))
    write_rows(source, rows, ["id", "split", "label", "voice", "face"])
    flags = ("--sound", "voice", "--fps", "2", "--workers", "2", "--max_unusable", "10")  # one of 16 is not there
    said = prepare("manifest", "--source", source, "--output", out, *flags)
    assert "all                                   15        0        1" in said
    assert "9.mp4" in (out / "dataset.json").read_text()
    assert len(list((out / "face" / "clip0").iterdir())) == 3
    settings = ("--dataset", "manifest", "--data_root", out, "--image_size", "16", "--encoder", "voice=cnn", *SMALL)
    assert trained(tmp_path / "run", *settings) == {"voice", "face"}


@pytest.mark.slow
def test_a_class_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        '''
import numpy as np
import torch
from mmpareto.datasets import Modality, MultimodalDataset


class Mine(MultimodalDataset):
    """Two vectors.

    noise  how much of it
    """

    def __init__(self, root, split, *, noise: float = 0.1, seed=0):
        super().__init__(seed)
        self.name, self.classes = "mine", ["no", "yes"]
        self.modalities = {"left": Modality("vector", (3,)), "right": Modality("vector", (2,))}
        self.labels = np.arange(20) % 2
        self.noise = noise

    def __getitem__(self, index):
        label = int(self.labels[index])
        left, right = torch.full((3,), label + self.noise), torch.full((2,), label - self.noise)
        return {"inputs": {"left": left, "right": right}, "label": label, "id": str(index)}
'''
    )
    flags = ("--dataset", "mine:Mine", "--noise", "0.2", "--ckpt_path", tmp_path / "run", *WITH_WORKER)
    done = train(*flags, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "noise 0.2" in done.stdout


@pytest.mark.slow
def test_what_the_first_run_took_from_its_training_clips_stays_with_it(tmp_path: Path) -> None:
    """Lengths and shapes are the run's: other training clips than then change no score of the test clips."""
    root, run = tmp_path / "raw", tmp_path / "run"
    rows = write_manifest(root)
    write_rows(root, rows, ["id", "split", "label", "sound", "sensor"])
    flags = ("--dataset", "manifest", "--data_root", root, "--encoder", "sound=cnn", "--ckpt_path", run, *SMALL)
    trained(run, *flags)
    config = read_settings(run)
    assert config["modalities"]["sound"]["shape"] == [1, 58, 128]  # 0.6 s: 1 + (9600 - 400) // 160
    sensor = {"kind": "vector", "shape": [5], "mean": None, "std": None, "tokenizer": None}
    assert config["modalities"]["sensor"] == sensor

    def scores() -> list[Any]:
        done = inside(evaluate.main, run, "--no-probe", "--gpu_ids", "cpu")
        assert done.returncode == 0, done.stderr
        scores = json.loads((run / "evaluation_test.json").read_text())
        return [scores["joint"], scores["unimodal"], scores["subsets"]]

    before = scores()
    for row in rows:
        if row["split"] == "train":
            write_wav(root / row["sound"], tone(1.5))
    (root / ".checked.json").unlink()
    assert scores() == before
    results = json.loads((run / "results.json").read_text())
    done = inside(training.main, *flags, "--no-train")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "results.json").read_text()) == results
    shutil.copytree(run, tmp_path / "again")  # a run directory stays locked until its process ends
    done = inside(training.main, *flags, "--ckpt_path", tmp_path / "again", "--resume", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert read_settings(tmp_path / "again")["modalities"] == config["modalities"]
    np.save(root / rows[0]["sensor"], np.zeros(7, np.float32))  # the first training clip
    assert scores() == before
    damaged = config | {"modalities": config["modalities"] | {"sound": {"kind": "smell", "shape": [1]}}}
    write_settings(run, damaged)
    assert "holds modalities that train.py does not write" in refused(evaluate.main, run, "--gpu_ids", "cpu")
