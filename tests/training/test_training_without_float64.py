"""Training steps on a device without float64: what a CPU computes and records, to the bit."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from methods.small import batch, make
from torch import Tensor
from without_float64 import DEVICE, device_without_float64

from mmpareto.errors import UsageError
from mmpareto.evaluation.all_heads import AllHeads
from mmpareto.training.epochs import EpochRecord
from mmpareto.training.processes import Processes
from mmpareto.training.setup import choose_device
from mmpareto.training.step import TrainingStep
from mmpareto.training.watch import FiniteWatch


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["mmpareto", "mla"])
def test_steps_and_records_are_those_of_a_cpu(name: str, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    autocast = torch.autocast

    def without_meta(kind: str, *args: Any, **options: Any) -> Any:  # PyTorch has no mixed precision for this type
        return contextlib.nullcontext() if kind == DEVICE.type else autocast(kind, *args, **options)

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
        watch.check(1)
        again = EpochRecord(["x", "y"], device)
        record.begin()
        again.load_state_dict(record.state_dict(), device)
        records = [again.scores.compute(), again.gradients.rows(1), heads.compute()]
        return [parameter.detach().cpu() for parameter in model.parameters()], records

    weights, records = train(torch.device("cpu"))
    monkeypatch.setattr(torch, "autocast", without_meta)
    with device_without_float64() as device:
        other_weights, other_records = train(device)
    assert all(map(torch.equal, weights, other_weights))
    assert records == other_records


def test_mps_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="sees no GPU of Apple's"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    assert choose_device("cpu") == torch.device("cpu")
    several = Processes()
    several.size = 2
    with pytest.raises(UsageError, match="one process"):
        choose_device("mps", several)
