"""Training steps on a device without float64: what a CPU computes and records, to the bit."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.small import batch, make
from torch import Tensor
from without_float64 import DEVICE, device_without_float64

from mmpareto.arguments import parse
from mmpareto.errors import UsageError
from mmpareto.evaluation.all_heads import AllHeads
from mmpareto.training import run
from mmpareto.training.epochs import EpochRecord
from mmpareto.training.processes import Processes
from mmpareto.training.records import step_scalars
from mmpareto.training.setup import choose_device
from mmpareto.training.signals import Signals
from mmpareto.training.step import TrainingStep
from mmpareto.training.watch import FiniteWatch


@pytest.fixture
def mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """None on the made-up device, for whose type PyTorch has none."""
    autocast = torch.autocast

    def without_meta(kind: str, *args: Any, **options: Any) -> Any:
        return contextlib.nullcontext() if kind == DEVICE.type else autocast(kind, *args, **options)

    monkeypatch.setattr(torch, "autocast", without_meta)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["mmpareto", "mla"])
@pytest.mark.usefixtures("mixed_precision")
def test_steps_and_records_are_those_of_a_cpu(name: str, missing: bool) -> None:
    def train(device: torch.device) -> tuple[list[Tensor], Any]:
        method, model = make(name)
        model = model.float().to(device)
        method.setup(model, 0, 1)
        step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), clip_grad=1.0)
        record, heads, watch = EpochRecord(["x", "y"], device), AllHeads(device), FiniteWatch(["x", "y"], device)
        for number in range(3):
            inputs, label = batch(model, seed=number)
            present = {"x": torch.arange(8) > number, "y": torch.arange(8) < 7} if missing else None
            inputs = {modality: value.float().to(device) for modality, value in inputs.items()}
            label = label.to(device)
            present = None if present is None else {modality: rows.to(device) for modality, rows in present.items()}
            done = step(inputs, label, present=present)
            record.scores.update(done.losses.joint, done.losses.unimodal, done.joint, done.unimodal, label, present)
            record.gradients.write(done.diagnostics)
            record.gradients.count(number)
            heads.update(done.joint, done.unimodal, label, present)
            watch.update([done.losses.joint, *done.losses.unimodal.values()], done.gradient_norm)
            step_scalars(done, 0.1, 1.0)
        watch.check(1)
        again = EpochRecord(["x", "y"], device)
        record.begin()
        again.load_state_dict(record.state_dict(), device)
        records = [again.scores.compute(), again.gradients.rows(1), heads.compute()]
        return [parameter.detach().cpu() for parameter in model.parameters()], records

    weights, records = train(torch.device("cpu"))
    with device_without_float64() as device:
        other_weights, other_records = train(device)
    assert all(map(torch.equal, weights, other_weights))
    assert records == other_records


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # of the type; the values are copied
@pytest.mark.usefixtures("mixed_precision")
@pytest.mark.parametrize("name", ["mmpareto", "metabalance", "agm"])
def test_a_whole_run_is_that_of_a_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(folder: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
        flags = ["--dataset", "digits", "--method", name, "--epochs", "2", "--batch_size", "200", "--num_workers", "0"]
        monkeypatch.setattr(run, "choose_device", lambda *_: device)
        with Signals() as signals:
            run.run_training(parse([*flags, "--no-figures", "--ckpt_path", str(folder)], tmp_path), signals)
        results = json.loads((folder / "results.json").read_text())
        del results["seconds"], results["peak_memory_mib"]
        return torch.load(folder / "last.pt", weights_only=False)["model"], results

    weights, results = train(tmp_path / "cpu", torch.device("cpu"))
    with device_without_float64() as device:
        other_weights, other_results = train(tmp_path / "device", device)
    assert all(torch.equal(value, other_weights[key]) for key, value in weights.items())
    assert results == other_results


def test_mps_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="sees no GPU of Apple's"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    several = Processes()
    several.size = 2
    with pytest.raises(UsageError, match="one process"):
        choose_device("mps", several)
