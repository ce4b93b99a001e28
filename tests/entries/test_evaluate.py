"""code/evaluate.py as a person runs it, on a short run on the embedded digits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_manifest import write_manifest, write_rows
from entries.command import ROOT, refused, run
from PIL import Image
from settings import change_settings, read_settings, write_settings

from mmpareto import datasets
from mmpareto.api import evaluation as api
from mmpareto.cli import evaluate as entry
from mmpareto.cli import train as training
from mmpareto.models import build_model
from mmpareto.runs import open_for


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    threads = str(torch.get_num_threads())  # as in the fixture, for the same sums to the last bit
    return run(sys.executable, ROOT / "code" / "evaluate.py", *arguments, OMP_NUM_THREADS=threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    assert training.main(["--dataset", "digits", "--epochs", "1", "--ckpt_path", str(folder), "--gpu_ids", "cpu"]) == 0
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_scores_a_run_and_leaves_tables_json_and_figures(trained: Path) -> None:
    done = evaluate(trained, "--gpu_ids", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    results = json.loads((trained / "results.json").read_text())
    evaluation = json.loads((trained / "evaluation_test.json").read_text())
    heads = {"joint": evaluation["joint"], **evaluation["unimodal"]}
    for name, metrics in heads.items():
        trainers = results["test"]["joint"] if name == "joint" else results["test"]["unimodal"][name]
        assert metrics["accuracy"] == trainers["accuracy"]
        assert f"{metrics['accuracy']:.2f}" in done.stdout
        assert np.sum(metrics["confusion"]) == 400
    assert (evaluation["split"], evaluation["samples"], evaluation["selected_on"], evaluation["notes"]) == (
        "test",
        400,
        "val",
        [],
    )
    accuracy = {"+".join(row["present"]): row["accuracy"] for row in evaluation["subsets"]}
    assert list(accuracy) == ["", "gray", "colour", "gray+colour"]
    assert accuracy["gray+colour"] == evaluation["joint"]["accuracy"]
    gray = (accuracy["gray"] - accuracy[""] + accuracy["gray+colour"] - accuracy["colour"]) / 2
    assert evaluation["shapley"]["contributions"]["gray"] == pytest.approx(gray)
    assert evaluation["shapley"]["sum"] == pytest.approx(accuracy["gray+colour"] - accuracy[""])
    assert (
        evaluation["probe"]["unimodal"]["gray"]["accuracy"] > 80
    )  # frozen features of one epoch; colour is of no use here
    assert evaluation["probe"]["unimodal"]["colour"]["accuracy"] < 30
    for table in (
        "macro F1",
        "joint head, class",
        "linear probe",
        "joint head, present modalities (others: zero)",
        "joint head, share of samples without",
        "Shapley value",
        "imbalance",
    ):
        assert table in done.stdout
    for name in ("confusion", "subsets", "reliability", "missing"):
        pixels = np.asarray(Image.open(trained / f"evaluation_test_{name}.png").convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert not list(trained.glob(".*"))


def test_other_splits_mean_features_and_no_probe(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([str(copied), "--split", "val", "--missing", "mean", "--no-probe", "--gpu_ids", "cpu"]) == 0
    evaluation = json.loads((copied / "evaluation_val.json").read_text())
    assert (evaluation["samples"], evaluation["missing"], evaluation["probe"]) == (200, "mean", None)
    printed = capsys.readouterr().out
    assert "the checkpoint was selected on this split" in printed
    assert "probe" not in printed
    results = json.loads((copied / "results.json").read_text())
    assert evaluation["joint"]["accuracy"] == results["val"]["joint"]["accuracy"]
    # by hand: the mean of the training features in the place of the missing ones
    data = {split: datasets.build("digits", None, split) for split in ("train", "val")}
    about = {name: (modality.kind, modality.shape) for name, modality in data["val"].modalities.items()}
    model = build_model(about, 10, dict.fromkeys(about, "cnn")).eval()
    model.load_state_dict(torch.load(copied / "best.pt", weights_only=True)["model"])
    with torch.no_grad():
        features = {
            split: {name: model.encoders[name](chosen.images[name] / 255) for name in about}
            for split, chosen in data.items()
        }
        mean = {name: value.mean(0) for name, value in features["train"].items()}
        for row in evaluation["subsets"]:
            used = [f if name in row["present"] else mean[name].expand_as(f) for name, f in features["val"].items()]
            right = model.fusion.head(torch.cat(used, 1)).argmax(1).numpy() == data["val"].labels
            assert row["accuracy"] == pytest.approx(100 * right.mean())


def test_an_unfinished_run_and_one_selected_on_test_are_marked(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "results.json").unlink()
    change_settings(copied, selected_on="test")
    assert entry.main([str(copied), "--no-probe", "--gpu_ids", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "SELECTED ON TEST" in printed
    assert "the run is not finished; its best epoch so far, 1, was scored" in printed
    evaluation = json.loads((copied / "evaluation_test.json").read_text())
    assert evaluation["finished"] is False
    assert len(evaluation["notes"]) == 2


def test_other_samples_than_when_the_run_began_are_noted(copied: Path) -> None:
    resolved = json.loads((copied / "resolved.json").read_text())
    resolved["samples"]["val"]["ids"] = "0" * 12
    (copied / "resolved.json").write_text(json.dumps(resolved))
    notes = {split: api.evaluate(copied, split, device="cpu", missing_rates=()).notes for split in ("val", "test")}
    assert notes["val"][-1].startswith("val holds other samples than when the run began; make sure that none of them")
    assert notes["test"] == []


def test_overwriting_a_run_takes_its_evaluation_away(copied: Path) -> None:
    (copied / "evaluation_val.json").write_text("{}")
    open_for(str(copied), resume=False, overwrite=True)
    assert not list(copied.glob("evaluation_*"))


def test_bad_input_is_refused_in_a_line_or_two(copied: Path, tmp_path: Path) -> None:
    def said(*arguments: str | Path) -> str:
        text = refused(entry.main, *arguments)
        assert text.startswith("evaluate.py: ")
        assert len(text.splitlines()) <= 2
        return text

    (tmp_path / "empty").mkdir()
    assert "is no folder" in said(tmp_path / "nowhere")
    assert "is no run directory" in said(tmp_path / "empty")
    assert "invalid choice: 'dev'" in said(copied, "--split", "dev")
    assert "above zero" in said(copied, "--batch_size", "0")
    assert "invalid choice: 'noise'" in said(copied, "--missing", "noise")
    assert "unrecognized arguments: --probes" in said(copied, "--probes")
    assert "required: RUN" in said()
    assert "expected numbers of GPUs" in said(copied, "--gpu_ids", "first")
    assert "is embedded and reads no folder" in said(copied, "--data_root", tmp_path)

    config = read_settings(copied)
    change_settings(copied, classes=[*"abcdefghij"])
    assert "was trained on the classes a, b, c, d, e, f and 4 more" in said(copied)
    change_settings(copied, classes=config["classes"], encoders={"sound": "cnn", "sight": "cnn"})
    assert "was trained on the modalities sound, sight; the digits in" in said(copied)
    change_settings(copied, encoders={"gray": "cnn", "colour": "pmr"})
    assert "does not fit the model" in said(copied)
    change_settings(copied, dataset="gone:Set", encoders=config["encoders"])
    assert "--allow gone:Set" in said(copied)
    assert "cannot be imported" in said(copied, "--allow", "gone:Set")
    (copied / "config.yaml").write_text("[]")
    assert "config.yaml cannot be read (it holds no settings by name)" in said(copied)
    (copied / "config.yaml").write_text("{")
    assert "cannot be read" in said(copied)

    (copied / "config.yaml").rename(copied / "config.json")
    assert "made by an older version of the program: it has no config.yaml" in said(copied)
    write_settings(copied, config)
    best = torch.load(copied / "best.pt", weights_only=True)
    best["model"]["fusion.head.bias"][0] = float("inf")
    torch.save(best, copied / "best.pt")
    assert "the logits of the joint head are not finite for 400 of 400 clips" in said(copied)
    (copied / "best.pt").write_bytes(b"no checkpoint")
    assert "is damaged or foreign" in said(copied)
    (copied / "best.pt").unlink()
    assert "has no best.pt" in said(copied)


def test_a_data_root_with_other_classes_is_refused_and_a_split_without_a_class_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arrays that a manifest describes; the test split of a second folder lacks a class, a third has another class."""
    rows = write_manifest(tmp_path / "data", 24, val=True)
    columns = ["id", "split", "label", "sensor", "twin"]
    for row in rows:
        row["twin"] = row["sensor"]
    write_rows(tmp_path / "data", rows, columns)
    shutil.copytree(tmp_path / "data" / "sensor", tmp_path / "fewer" / "sensor")
    write_rows(tmp_path / "fewer", [r for r in rows if (r["split"], r["label"]) != ("test", "class 1")], columns)
    shutil.copytree(tmp_path / "data" / "sensor", tmp_path / "other" / "sensor")
    write_rows(tmp_path / "other", [r | {"label": r["label"].replace("2", "3")} for r in rows], columns)
    folder = tmp_path / "run"
    flags = ["--dataset", "manifest", "--data_root", tmp_path / "data", "--epochs", "1", "--batch_size", "8"]
    common = ["--gpu_ids", "cpu", "--num_workers", "0"]
    assert training.main([str(flag) for flag in (*flags, *common, "--ckpt_path", folder)]) == 0
    capsys.readouterr()

    other = refused(entry.main, folder, "--data_root", tmp_path / "other", *common)
    assert "was trained on the classes class 0, class 1, class 2;" in other
    assert "--data_root" in other
    assert "missing" in refused(entry.main, folder, "--data_root", tmp_path / "nowhere", *common)
    assert entry.main([str(flag) for flag in (folder, "--data_root", tmp_path / "fewer", *common)]) == 0
    assert "no samples of 1 class, left out of means over classes: class 1" in capsys.readouterr().out
    evaluation = json.loads((folder / "evaluation_test.json").read_text())
    assert evaluation["joint"]["per_class"][1]["recall"] is None
    assert evaluation["joint"]["auroc"] is not None
