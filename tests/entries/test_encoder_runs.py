"""Runs with encoders of other libraries: trained, continued and scored; their weights are read once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from entries.command import inside, refused
from settings import read_settings
from tables import without_times

from mmpareto.cli import evaluate
from mmpareto.cli import train as entry
from mmpareto.json_files import read_object
from mmpareto.runs import BEST
from mmpareto.training.checkpoints import load_checkpoint

CPU = ("--dataset", "digits", "--gpu_ids", "cpu", "--num_workers", "0")


def trained(*flags: str | Path) -> None:
    done = inside(entry.main, *CPU, "--batch_size", "128", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_frozen_timm_encoder_is_trained_continued_and_scored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = timm.create_model("test_vit", pretrained=False).state_dict()
    file = tmp_path / "vit.pt"
    torch.save(weights, file)
    options = ("weights", file), ("frozen", "true"), ("size", "32")
    flags = ["--learning_rate", "0.01", "--encoder", "colour=timm:test_vit", "--encoder_options", "gray.lr_factor=0.5"]
    flags += [f"colour.{key}={value}" for key, value in options]
    run, whole = tmp_path / "run", tmp_path / "whole"
    trained(*flags, "--epochs", "2", "--ckpt_path", whole)
    trained(*flags, "--epochs", "1", "--ckpt_path", tmp_path / "begun")
    shutil.copytree(tmp_path / "begun", run)  # this process still holds the lock of the other one
    file.unlink()
    trained(*flags, "--epochs", "2", "--ckpt_path", run, "--resume")
    assert without_times(run / "metrics.csv") == without_times(whole / "metrics.csv")

    settings = read_settings(run)
    assert settings["encoder_options"]["colour.frozen"] == "true"
    assert settings["modalities"]["colour"]["mean"] == settings["modalities"]["colour"]["std"] == [0.5, 0.5, 0.5]
    assert settings["modalities"]["gray"]["mean"] is None
    row = without_times(run / "metrics.csv")[0]
    assert row["conflict_rate_colour"] == ""
    assert float(row["learning_rate"]) == 0.01
    state = load_checkpoint(run / BEST, torch.device("cpu"), ("model",))["model"]
    patch = "patch_embed.proj.weight"
    assert torch.equal(state[f"encoders.colour.network.{patch}"], weights[patch])  # never changed
    scored = inside(evaluate.main, run, "--gpu_ids", "cpu", "--no-probe")
    assert scored.returncode == 0, scored.stderr
    again = inside(entry.main, *CPU, "--batch_size", "128", *flags, "--epochs", "2", "--ckpt_path", run, "--no-train")
    assert again.returncode == 0, again.stderr
    accuracy = read_object(run / "results.json")["test"]["joint"]["accuracy"]
    assert read_object(run / "evaluation_test.json")["joint"]["accuracy"] == accuracy
    assert f"{accuracy:.2f}" in again.stdout


def test_a_model_from_a_folder_is_scored_when_the_folder_is_gone(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, an extra, is not installed")
    config = transformers.ViTConfig(
        image_size=28, patch_size=14, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "vit")
    run = tmp_path / "run"
    trained("--encoder", f"gray=hf:{tmp_path / 'vit'}", "--epochs", "1", "--ckpt_path", run, "--diagnose_interval", "0")
    shutil.rmtree(tmp_path / "vit")
    scored = inside(evaluate.main, run, "--gpu_ids", "cpu", "--no-probe")
    assert scored.returncode == 0, scored.stderr
    assert (
        read_object(run / "evaluation_test.json")["joint"]["accuracy"]
        == (read_object(run / "results.json")["test"]["joint"]["accuracy"])
    )


@pytest.mark.slow
def test_a_configuration_file_may_nest_options_and_names_no_code(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model:\n  model: cnn\n  encoder: {colour: 'timm:test_resnet'}\n"
        "  encoder_options:\n    colour: {weights: none, frozen: true, size: 32}\n"
    )
    trained("--config", tmp_path / "run.yaml", "--epochs", "1", "--ckpt_path", tmp_path / "run")
    settings = read_settings(tmp_path / "run")
    assert settings["encoder_options"] == {"colour.weights": "none", "colour.frozen": "true", "colour.size": "32"}
    trained("--config", tmp_path / "run" / "config.yaml", "--ckpt_path", tmp_path / "again")
    assert without_times(tmp_path / "again" / "metrics.csv") == without_times(tmp_path / "run" / "metrics.csv")


def test_wrong_encoder_options_end_in_a_line(tmp_path: Path) -> None:
    run = (*CPU, "--ckpt_path", tmp_path / "run")
    for flag, message in (
        ("frozen=true", "--encoder_options: expected MODALITY.KEY=VALUE, found 'frozen=true'"),
        ("colr.frozen=true", "'colr', which is no modality; did you mean colour? they are gray, colour"),
        ("gray.froze=true", "modality gray: the encoder cnn has no option 'froze'; did you mean frozen?"),
        ("gray.weights=/no", "modality gray: weights=/no: there is no such file"),
    ):
        assert message in refused(entry.main, *run, "--encoder_options", flag)
