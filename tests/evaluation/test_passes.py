"""The evaluation loop."""

from __future__ import annotations

import torch
from torch import nn

from mmpareto.datasets import Batch, Modality
from mmpareto.evaluation.passes import outputs
from mmpareto.models import build_model


def test_a_pass_is_in_evaluation_mode_and_changes_nothing() -> None:
    torch.manual_seed(0)
    modalities = dict.fromkeys("xy", Modality("vector", (3,)))
    model = build_model(dict.fromkeys(modalities, ("vector", (3,))), 2, dict.fromkeys(modalities, "mlp"))
    model.encoders["x"].append(nn.BatchNorm1d(512))
    model.train()
    inputs = {name: torch.randn(4, 3) for name in modalities}
    batch: Batch = {"inputs": inputs, "label": torch.tensor([0, 1, 0, 1]), "id": list("abcd")}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ((loaded, moved, output),) = outputs(model, [batch], modalities, torch.device("cpu"))
    assert loaded is batch
    assert torch.equal(moved.label, batch["label"])
    assert not output.joint.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(output.joint, model.eval()(inputs).joint)
