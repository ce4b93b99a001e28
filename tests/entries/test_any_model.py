"""A manifest of text, sequences and images with missing cells, from the command line to an evaluated run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_manifest import write_rows
from datasets.test_manifest_variable import write
from entries.command import inside, refused
from PIL import Image
from settings import read_settings

from mmpareto.cli import evaluate, study, train

SMALL = (
    *("--dataset", "manifest", "--text", "caption", "--sequences", "sensor", "--image_size", "16", "--gpu_ids", "cpu"),
    *("--batch_size", "4", "--num_workers", "0", "--encoder_options"),
    *("caption.width=8", "caption.layers=1", "caption.heads=2", "sensor.width=8", "sensor.layers=1"),
)
ARCHITECTURES = {
    "late_fusion": ("--fusion", "attention", "--fusion_options", "width=8", "layers=1", "heads=2"),
    "mbt": ("--architecture_options", "token_width=8", "layers=2", "fusion_layer=1", "heads=2"),
    "transformer": ("--architecture_options", "token_width=8", "layers=1", "heads=2"),
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The clips of `write` with a photo in the place of token ids and notes."""
    root = tmp_path / "raw"
    rows = write(root)
    (root / "photo").mkdir()
    for number, row in enumerate(rows):
        del row["codes"], row["note"]
        image = np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(image).save(root / "photo" / f"{number}.png")
        row["photo"] = f"photo/{number}.png"
    write_rows(root, rows)
    return root


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[] if name == "mbt" else [pytest.mark.slow]) for name in ARCHITECTURES],
)
def test_images_text_and_sensors_train_resume_and_evaluate(raw: Path, tmp_path: Path, architecture: str) -> None:
    flags = (*SMALL, "--data_root", raw, "--architecture", architecture, *ARCHITECTURES[architecture])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = inside(train.main, *flags, "--epochs", "2", "--missing", "photo=0.2", "--ckpt_path", whole)
    assert done.returncode == 0, done.stderr
    assert "missing   train: caption 12 %, sensor 12 %, photo" in done.stdout
    with (raw / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    shares = {
        split: np.mean([bool(row["caption"]) for row in rows if row["split"] == split]) for split in ("val", "test")
    }
    assert min(shares.values()) < 1
    listed = ", ".join(f"{100 * share:.1f} % ({split})" for split, share in shares.items())
    assert f"on the samples that have it, the joint head on all of them: caption {listed}" in done.stdout
    again = (*flags, "--missing", "photo=0.2", "--ckpt_path")
    assert inside(train.main, *again, tmp_path / "first", "--epochs", "1").returncode == 0
    shutil.copytree(tmp_path / "first", cut)  # this process still holds the first one
    assert inside(train.main, *again, cut, "--epochs", "2", "--resume").returncode == 0
    states = [torch.load(run / "last.pt", weights_only=True)["model"] for run in (whole, cut)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert "tokenizer" in read_settings(whole)["modalities"]["caption"]

    done = inside(evaluate.main, whole, "--gpu_ids", "cpu", "--no-probe", "--missing_rates", "0.5")
    assert done.returncode == 0, done.stderr
    scores = json.loads((whole / "evaluation_test.json").read_text())
    assert len(scores["subsets"]) == 8
    assert [(row["modality"], row["rate"]) for row in scores["missing_rates"]] == [
        (name, 0.5) for name in ("caption", "sensor", "photo", "any")
    ]
    results = json.loads((whole / "results.json").read_text())
    assert "on all of them: sensor 50.0 % (test); photo 50.0 % (test)" in scores["notes"][-1]
    assert scores["joint"]["accuracy"] == results["test"]["joint"]["accuracy"]
    assert scores["unimodal"]["sensor"]["accuracy"] == results["test"]["unimodal"]["sensor"]["accuracy"]
    if architecture != "late_fusion":
        assert "has its own stand-in" in refused(evaluate.main, whole, "--missing", "mean", "--gpu_ids", "cpu")
    if architecture == "transformer":
        few = ("--batches", "2", "--samples", "4", "--points", "3", "--hessian_products", "2", "--gpu_ids", "cpu")
        done = inside(study.main, whole, *few, "--output", tmp_path / "study")
        assert done.returncode == 0, done.stderr


def test_what_does_not_go_together_is_said(raw: Path, tmp_path: Path) -> None:
    flags = (*SMALL, "--data_root", raw, "--epochs", "1", "--ckpt_path", tmp_path / "run")
    for extra, message in (
        (("--method", "ogm"), "some samples lack a modality, and the method ogm"),
        (("--architecture", "mmtm"), "Encoder of the modality caption has none; choose cnn or resnet18"),
        (("--architecture", "transformer", "--fusion", "lmf"), "is its own fusion: leave --fusion out"),
        (("--architecture", "mbt", "--method", "gradnorm"), "needs joint logits that are a function of the encoders'"),
        (("--architecture", "mtb"), "did you mean mbt"),
        (("--encoder", "caption=cnn"), "the encoder cnn takes image or spectrogram, not tokens"),
        (("--missing", "sound=0.2"), "--missing sound: the modalities are caption, sensor, photo"),
        (
            ("--missing", "photo=0.9"),
            "no sample of train has the modality photo, so its head cannot be scored; give a",
        ),
        (("--missing", "photo=1.2"), "argument --missing: expected a number from 0"),
    ):
        assert message in refused(train.main, *flags, *extra), extra
    rows = list(csv.DictReader((raw / "manifest.csv").open()))
    write_rows(raw, [row | ({"sensor": ""} if row["split"] == "test" else {}) for row in rows])
    assert "no sample of test has the modality sensor" in refused(train.main, *flags)
    assert not (tmp_path / "run").exists()
