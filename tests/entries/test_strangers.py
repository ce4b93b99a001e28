"""Run folders from a stranger: they run no code, and whatever their files hold is refused in a line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from entries.command import refused
from matplotlib.figure import Figure
from settings import change_settings, read_settings, write_settings

from mmpareto.api import evaluation
from mmpareto.arguments import parse, saved_config
from mmpareto.cli import evaluate, study, train
from mmpareto.datasets import DatasetError
from mmpareto.datasets.prepared import read_description
from mmpareto.evaluation import EvaluationError
from mmpareto.reporting.figures import save
from mmpareto.runs import RunDirectory
from mmpareto.training.checkpoints import save_best
from mmpareto.training.setup import build_split, make_model
from mmpareto.writing import write_text

CPU = ("--gpu_ids", "cpu")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits, as train.py writes it, without the training."""
    run = RunDirectory(tmp_path_factory.mktemp("strangers") / "run")
    run.path.mkdir()
    options = parse([*CPU, "--dataset", "digits", "--ckpt_path", str(run.path)], run.path)
    data = build_split(options.data, 0, "val")
    model, encoders = make_model(options, data, torch.device("cpu"))
    save_best(run, model, {"epoch": 1})
    modalities = {name: asdict(modality) for name, modality in data.modalities.items()}
    resolved = {"encoders": encoders, "classes": data.classes, "modalities": modalities}
    write_settings(run.path, options.flat() | resolved)
    run.write_json("results.json", {"epochs": 20})
    return run.path


@pytest.fixture
def folder(untouched: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return Path(shutil.copytree(untouched, tmp_path / "run"))


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module `payload` on the path that leaves a file behind when it is imported; says whether it was."""
    (tmp_path / "payload.py").write_text(
        f"""
import pathlib

import torch

pathlib.Path({str(tmp_path / "ran")!r}).touch()


class X(torch.nn.Module):
    width = 4

    def __init__(self, kind, shape):
        super().__init__()


class Other:
    def __init__(self, *arguments):
        raise AssertionError("it was called")
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    return (tmp_path / "ran").exists


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": "payload:X"},
        {"method": "payload:X"},
        {"model": "payload:X"},
        {"encoders": {"gray": "payload:X", "colour": "cnn"}},
        {"encoders": {"gray": "cnn", "colour": "joblib:load"}},
        {"encoders": {"gray": "cnn", "colour": "shutil:rmtree"}},
        {"method": "antigravity:x"},
    ],
)
@pytest.mark.parametrize("entry", [evaluate.main, study.main], ids=["evaluate", "study"])
def test_a_run_folder_imports_nothing_that_the_command_line_does_not_allow(
    entry: Callable[[list[str]], int], values: dict[str, Any], folder: Path, payload: Callable[[], bool]
) -> None:
    change_settings(folder, **values)
    said = refused(entry, folder, *CPU)
    assert "imports its own code" in said
    assert "add --allow" in said
    assert "PYTHONPATH" in said
    assert len(said.splitlines()) == 1
    assert not payload()


def test_allowed_classes_are_imported_and_checked_before_they_are_called(
    folder: Path, payload: Callable[[], bool]
) -> None:
    encoders = {"gray": "payload:X", "colour": "payload:X"}
    change_settings(folder, encoders=encoders)
    assert "--allow payload:X" in refused(evaluate.main, folder, *CPU, "--allow", "payload:Other")
    assert saved_config(RunDirectory(folder), ["payload:X"]).model.encoder == encoders
    assert not payload()
    said = refused(evaluate.main, folder, *CPU, "--allow", "payload:X")  # these are the weights of a cnn
    assert payload()
    assert "does not fit the model" in said
    change_settings(folder, encoders={"gray": "payload:Other", "colour": "shutil:rmtree"})
    allowed = ("--allow", "payload:Other", "--allow", "shutil:rmtree")
    assert "'payload:Other' is no subclass of torch.nn.modules.module.Module" in refused(
        evaluate.main, folder, *CPU, *allowed
    )
    change_settings(folder, encoders=dict.fromkeys(encoders, "cnn"), dataset="payload:Other")
    assert "is no subclass of mmpareto.datasets.MultimodalDataset" in refused(
        evaluate.main, folder, *CPU, "--allow", "payload:Other"
    )
    change_settings(folder, dataset="nowhere:Set")
    said = refused(evaluate.main, folder, *CPU, "--allow", "nowhere:Set")
    assert "cannot be imported: No module named 'nowhere'; name the folder that holds it in" in said
    assert "PYTHONPATH" in said
    assert "expected package.module:Class" in refused(evaluate.main, folder, "--allow", "payload")


STRANGE: list[Any] = [
    *(
        True,
        -1,
        10**12,
        9223372036854775808,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\0",
        "../../x",
        "/etc/passwd",
    ),
    *([], [1], {}, {"a": 1}, "x" * 10_000, [[[]]], "\ud800"),
]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 5))])
def test_strange_values_of_every_setting_are_refused_in_a_line_or_harmless(
    part: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Harmless: the run would be scored, which is left out here. Each part has a fifth of the values."""

    def would_be_scored(*arguments: Any) -> Any:
        raise EvaluationError("would be scored")

    monkeypatch.setattr(evaluation, "collect_split", would_be_scored)
    config = read_settings(folder)
    text = json.dumps(config)
    places = [(key, None) for key in config]
    places += [
        (key, inner) for key in ("encoders", "dataset_options", "method_options") for inner in (*config[key], "y")
    ]
    tried = 0
    for number, (key, inner) in enumerate(places):
        for value in STRANGE[(part + number) % 5 :: 5]:
            changed = json.loads(text)
            if inner is None:
                changed[key] = value
            else:
                changed[key][inner] = value
            write_settings(folder, changed)
            said = refused(evaluate.main, folder, *CPU, "--no-probe")
            assert len(said.splitlines()) <= 2, (key, inner, value, said)
            assert len(said) < 2000, (key, inner, value, said)
            tried += 1
    assert tried > 120


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "inside each other"),
        (b'{"a": ' * 100_000, "inside each other"),
        (b'{"a": ' * 40 + b"1" + b"}" * 40, "inside each other"),
        (b'{"dataset": "digits", "dataset": "cgmnist"}', "it holds 'dataset' twice"),
        (b'{"a": ' + b"9" * 400 + b"}", "a whole number of 400 digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": "\xff"}', "can't decode byte"),
        (b'"text"', "it holds no values by name"),
        (b"", "Expecting value"),
    ],
)
def test_strange_json_is_refused(content: bytes, reason: str, folder: Path) -> None:
    (folder / "resolved.json").write_bytes(content)
    for entry in (evaluate.main, study.main):
        said = refused(entry, folder, *CPU)
        assert f"{folder / 'resolved.json'} cannot be read (" in said
        assert reason in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 10_000, "recursion"),
        (b"a: &b [1]\nc: *b\n", "it holds an alias"),
        (b"dataset: digits\ndataset: cgmnist\n", "it holds 'dataset' twice"),
        (b"data: {dataset: digits}\ndataset: cgmnist\n", "it holds 'dataset' twice"),
        (b"a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        (b"a: \xff\n", "unacceptable character"),
        (b"text", "it holds no settings by name"),
        (b"", "it holds no settings by name"),
        (b"a: [1\n", "expected ',' or ']'"),
        (b"a: " + b"x" * 2**20, "it is larger than 1024 KiB"),
    ],
)
def test_strange_yaml_is_refused(content: bytes, reason: str, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(content)
    for entry in (evaluate.main, study.main):
        printed = refused(entry, folder, *CPU)
        assert f"{folder / 'config.yaml'} cannot be read (" in printed
        assert reason in printed
        assert len(printed.splitlines()) == 1


def test_a_run_folder_has_nothing_downloaded_into_the_folder_that_it_names(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    change_settings(folder, dataset="cgmnist", data_root=str(data), model="cnn")
    assert f"{data} lacks train-images-idx3-ubyte" in refused(evaluate.main, folder, *CPU)
    assert not list(data.iterdir())


def test_pipes_and_devices_in_a_run_folder_are_refused(folder: Path) -> None:
    for name in ("config.yaml", "resolved.json", "best.pt"):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        assert "expected a regular file" in refused(evaluate.main, folder, *CPU)
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        assert "expected a regular file" in refused(evaluate.main, folder, *CPU)
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)


@pytest.mark.parametrize("results", [{"epochs": 20}, {"epochs": "20", "test": {}, "val": {}}, {"test": []}])
def test_results_that_train_does_not_write_are_refused_when_a_run_goes_on(results: Any, folder: Path) -> None:
    shutil.copy(folder / "best.pt", folder / "last.pt")
    (folder / "results.json").write_text(json.dumps(results))
    said = refused(train.main, *CPU, "--dataset", "digits", "--ckpt_path", folder, "--resume")
    assert f"{folder / 'results.json'} holds no results of train.py" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "flags",
    [
        *([f"--{name}", "9223372036854775808"] for name in ("batch_size", "epochs", "num_workers", "n_classes")),
        *([f"--{name}", "9223372036854775808"] for name in ("accumulate", "log_interval", "diagnose_interval")),
        *([f"--{name}", "1" * 5000] for name in ("lr_decay_step", "warmup_epochs", "early_stopping", "random_seed")),
        ["--num_workers", "2000000000"],
        ["--learning_rate", "1e999"],
        ["--gamma", "nan"],
        ["--method", "mslr", "--method_options", "window=9223372036854775808"],
        ["--method", "pmr", "--method_options", "alpha=inf"],
    ],
    ids=lambda flags: " ".join(flags)[:40],
)
def test_numbers_beyond_every_use_are_refused(flags: list[str], tmp_path: Path) -> None:
    said = refused(train.main, *CPU, "--ckpt_path", tmp_path / "run", *flags)
    assert "expected a" in said
    assert len(said.splitlines()) == 1
    assert len(said) < 400
    assert not (tmp_path / "run").exists()


def test_links_in_a_folder_are_replaced_not_followed_where_something_is_written(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    for name in ("config.json", "figure.png", "stamp.json"):
        (run / name).symlink_to(kept)
    run.write_json("config.json", {"a": 1})
    write_text(run / "stamp.json", "{}")
    save(Figure(figsize=(1, 1)), run / "figure.png")
    assert kept.read_text() == "mine"
    assert run.read_json("config.json") == {"a": 1}
    assert (run / "stamp.json").read_text() == "{}"
    assert (run / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.path.glob(".*"))


def test_a_prepared_dataset_names_no_files_outside_its_folder(tmp_path: Path) -> None:
    for modalities, holds in (
        ({"audio": ".npy", "visual": ""}, True),
        ({"../../audio": ".npy"}, False),
        ({"audio": "/../../secret.npy"}, False),
        ({"/etc": ""}, False),
        ({"audio": 3}, False),
        ([".npy"], False),
    ):
        description = {"name": "cremad", "parameters": {}, "modalities": modalities, "classes": ["a", "b"]}
        (tmp_path / "dataset.json").write_text(json.dumps(description))
        if holds:
            assert read_description(tmp_path, "cremad") == description
            continue
        with pytest.raises(DatasetError, match=r"dataset\.json: (modality|cannot be read)"):
            read_description(tmp_path, "cremad")
