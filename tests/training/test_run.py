"""One process's part of a run: its workers, and what it leaves where losses are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training.test_training_processes import Points

from mmpareto.arguments import parse
from mmpareto.datasets import Modality, MultimodalDataset
from mmpareto.errors import UsageError
from mmpareto.models import ModelError
from mmpareto.runs import RunDirectory
from mmpareto.training import data
from mmpareto.training import run as run_module
from mmpareto.training.data import Loader
from mmpareto.training.processes import Requests
from mmpareto.training.setup import make_model
from mmpareto.training.signals import Signals
from mmpareto.training.stopping import Stopping
from mmpareto.training.watch import TrainingError


def test_workers_share_the_cores_of_this_machine_not_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "cores", lambda: 12)
    for processes_here, workers in (("1", 8), ("4", 2), ("12", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes_here)
        loader = Loader(Points(8), 4, shuffle=False, seed=0, workers=None, pin=False, rank=0, size=8)
        assert loader.workers == workers


@pytest.mark.parametrize("main", [True, False])
def test_each_process_writes_down_where_it_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    """With float16 and several processes the loss of one alone may be infinite."""

    def diverge(self: Any) -> None:
        self.directory = RunDirectory(tmp_path)
        self.processes.rank = 0 if main else 1
        raise TrainingError("not finite", epoch=2, step=7)

    monkeypatch.setattr(run_module.Run, "main", diverge)
    monkeypatch.setattr(run_module.Run, "close", lambda self: None)
    with pytest.raises(TrainingError), Signals() as signals:
        run_module.run_training(parse(["--gpu_ids", "cpu"], tmp_path), signals)
    assert json.loads((tmp_path / "diverged.json").read_text())["step"] == 7


def test_weights_that_are_not_finite_are_not_saved_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of an epoch was followed by a stop request: the losses are checked before weights are saved."""
    saved: list[str] = []

    def broken(epoch: int) -> None:
        raise TrainingError("not finite", epoch=epoch, step=3)

    monkeypatch.setattr(run_module, "train_epoch", lambda *args, **options: True)
    processes = SimpleNamespace(
        begin_step=lambda epoch, step: None, main=True, size=1, settle=lambda: Requests(stop=True)
    )
    signals = SimpleNamespace(number=15)
    part: Any = SimpleNamespace(
        recorded=None,
        loaders={"train": None},
        config=SimpleNamespace(
            method=SimpleNamespace(diagnose_interval=1),
            optim=SimpleNamespace(epochs=1),
            run=SimpleNamespace(log_interval=1),
        ),
        processes=processes,
        after_batch=None,
        device=torch.device("cpu"),
        watch=SimpleNamespace(check=broken),
    )
    part.stopping = Stopping(processes, signals, save=lambda: saved.append("saved"), check=lambda: None)  # type: ignore[arg-type]
    with pytest.raises(TrainingError):
        run_module.Run.train_epoch(part, 1)
    assert not saved


def test_a_language_model_needs_its_own_tokenizer(tmp_path: Path) -> None:
    """Ids of a tokenizer that was trained on the dataset's text would be other words to it."""
    dataset = MultimodalDataset()
    dataset.modalities = {
        "words": Modality("tokens", (7, 50), tokenizer="{}"),
        "sense": Modality("vector", (3,)),
    }
    dataset.classes = ["a", "b"]
    chosen = {"encoder": {"words": "hf:/nowhere"}, "dataset_options": {"tokenizer": None}}
    config = parse(["--gpu_ids", "cpu"], tmp_path).changed(**chosen)
    with pytest.raises(UsageError, match="the tokenizer is trained on this dataset's text"):
        make_model(config, dataset, torch.device("cpu"))
    for other in ({"dataset_options": {"tokenizer": "/nowhere"}}, {"encoder_options": {"words.weights": "none"}}):
        with pytest.raises(ModelError, match="/nowhere"):
            make_model(config.changed(**other), dataset, torch.device("cpu"))


@pytest.mark.parametrize(
    ("epoch", "best", "patience", "ends"),
    [(5, 2, 2, True), (4, 2, 2, False), (3, 2, 1, False), (4, 2, 1, True), (9, 1, None, False)],
)
def test_patience_counts_epochs_that_are_done(epoch: int, best: int, patience: int | None, ends: bool) -> None:
    """`epoch` is about to begin."""
    run: Any = object.__new__(run_module.Run)
    run.config = SimpleNamespace(optim=SimpleNamespace(early_stopping=patience))
    run.state = SimpleNamespace(epoch=epoch, best={"epoch": best})
    assert run.stopped_early is ends
