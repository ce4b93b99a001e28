"""code/study.py as a person runs it, on two short runs on arrays that a manifest describes."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets.make_manifest import write_manifest, write_rows
from entries.command import ROOT, refused, run
from PIL import Image
from settings import read_settings, write_settings

from mmpareto import datasets
from mmpareto.cli import study as entry
from mmpareto.cli import train as training
from mmpareto.datasets import to_device
from mmpareto.models import build_model

SMALL = ("--gpu_ids", "cpu", "--batches", "3", "--samples", "5", "--directions", "2", "--points", "3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one epoch, in this process; 12 clips of train, 6 of val."""
    root = tmp_path_factory.mktemp("study")
    rows = [row | {"twin": row["sensor"]} for row in write_manifest(root / "data", 24, val=True)]
    write_rows(root / "data", rows, ["id", "split", "label", "sensor", "twin"])
    folders = [root / method for method in ("uniform", "mmpareto")]
    for folder in folders:
        data = ("--dataset", "manifest", "--data_root", root / "data", "--batch_size", "4", "--num_workers", "0")
        flags = ("--method", folder.name, "--epochs", "1", "--ckpt_path", folder, "--gpu_ids", "cpu", *data)
        assert training.main([str(flag) for flag in flags]) == 0
    return folders


@pytest.fixture(scope="module")
def studied(trained: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command printed, and its folder."""
    output = tmp_path_factory.mktemp("output") / "new" / "study"
    done = run(
        *(sys.executable, ROOT / "code" / "study.py", *trained, *SMALL, "--split", "val", "--output", output),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, output


def test_two_runs_side_by_side(trained: list[Path], studied: tuple[str, Path]) -> None:
    printed, output = studied
    study = json.loads((output / "study.json").read_text())
    assert [row["label"] for row in study["runs"]] == ["uniform, seed 0", "mmpareto, seed 0"]
    assert study["samples"] == 5
    assert study["environment"]["versions"]["torch"]
    for row in study["runs"]:
        assert set(row["noise"]) == {"sensor", "twin"}
        for both in row["noise"].values():
            for noise in (both["joint"], both["unimodal"]):
                assert len(noise["norms"]) == 3
                assert noise["mean_norm"] == pytest.approx(sum(noise["norms"]) / 3)
        assert len(row["loss"]["losses"]) == 2
        assert f"{row['sharpness']['value']:.4g}" in printed
        assert f"{row['noise']['sensor']['joint']['covariance_trace']:.3g}" in printed
    for name in ("gradients", "loss", "sharpness"):
        with Image.open(output / f"study_{name}.png") as picture:
            assert min(picture.size) > 100


def test_the_loss_at_the_model_is_that_of_the_split(trained: list[Path], tmp_path: Path) -> None:
    """All of val, so that the drawn samples are known; computed without the project's loops."""
    arguments = [trained[0], *SMALL, "--split", "val", "--samples", "99999", "--output", tmp_path]
    assert entry.main([*map(str, arguments)]) == 0
    study = json.loads((tmp_path / "study.json").read_text())
    data = datasets.build("manifest", str(trained[0].parent / "data"), "val", seed=0)
    about = {name: (modality.kind, modality.shape) for name, modality in data.modalities.items()}
    encoders = read_settings(trained[0])["encoders"]
    model = build_model(about, 3, encoders).eval()
    model.load_state_dict(torch.load(trained[0] / "best.pt", weights_only=True)["model"])
    rows = [data[index] for index in range(len(data))]
    inputs = {name: torch.stack([torch.as_tensor(row["inputs"][name]) for row in rows]) for name in about}
    with torch.no_grad():
        logits = model(to_device(inputs, data.modalities, "cpu")).joint
    assert study["samples"] == len(rows) == 6
    expected = float(F.cross_entropy(logits, torch.tensor([row["label"] for row in rows])))
    for losses in study["runs"][0]["loss"]["losses"]:
        assert losses[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_seed_repeats_a_study(trained: list[Path], tmp_path: Path) -> None:
    def studied_with(seed: str) -> list[Any]:
        arguments = [trained[0], *SMALL, "--hessian_products", "2", "--seed", seed, "--output", tmp_path / seed]
        assert entry.main([*map(str, arguments)]) == 0
        return json.loads((tmp_path / seed / "study.json").read_text())["runs"]

    first = studied_with("1")
    assert first == studied_with("1")
    other = studied_with("2")
    assert first[0]["loss"]["losses"] != other[0]["loss"]["losses"]
    assert not first[0]["sharpness"]["converged"]
    assert math.isfinite(first[0]["sharpness"]["value"])


def test_what_cannot_be_studied_is_refused(trained: list[Path], tmp_path: Path) -> None:
    def says(*arguments: str | Path) -> str:
        return refused(entry.main, *arguments, "--output", tmp_path / "out", "--gpu_ids", "cpu")

    assert "the model itself is in the middle" in says(trained[0], "--points", "4")
    assert "a covariance needs two or more" in says(trained[0], "--batches", "1")
    assert "given twice" in says(trained[0], trained[0])
    assert "give a run directory" in says(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "is no run directory" in says(tmp_path / "empty")
    copy = Path(shutil.copytree(trained[0], tmp_path / "copy"))
    (copy / "results.json").unlink()
    assert "is not finished; finish it with train.py --resume" in says(copy)
    shutil.copy(trained[0] / "results.json", copy)
    config = read_settings(copy)
    name = next(iter(config["modalities"]))
    write_settings(copy, config | {"missing": {name: 0.5}})
    assert f"was trained with missing {{'{name}': 0.5}}" in says(trained[0], copy)
    config["data_root"] = str(tmp_path / "elsewhere")
    write_settings(copy, config)
    assert "give runs on the same data" in says(trained[0], copy)
    saved = torch.load(trained[1] / "best.pt", weights_only=True)
    saved["model"]["fusion.head.bias"][0] = float("nan")
    broken = Path(shutil.copytree(trained[1], tmp_path / "broken"))
    torch.save(saved, broken / "best.pt")
    assert "the joint loss is not finite at batch 1" in says(trained[0], broken, *SMALL)
    assert not (tmp_path / "out").exists()
    file = tmp_path / "file"
    file.touch()
    for output in (file, file / "below" / "it"):
        assert "no folder that can be made or written to" in refused(entry.main, trained[0], "--output", output)
