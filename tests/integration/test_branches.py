"""Encoder by encoder or through all encoders at once: the same gradients; which losses can be taken apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integration.problems import LateFusion
from torch import Tensor, nn

from mmpareto.integration import MMPareto, integrator
from mmpareto.integration.partition import partition, separate

Losses = tuple[Tensor, dict[str, Tensor]]


def branches(model: LateFusion, losses: Losses) -> dict[str, Any] | None:
    part = partition(dict(model.encoders.items()), model.others)
    return separate(part, list(losses[1].values()))


def shared_head(model: LateFusion) -> Losses:
    inputs, label = model.batch(0)
    features = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
    return model.losses(inputs, label)[0], {
        m: F.cross_entropy(model.heads["m0"](f), label) for m, f in features.items()
    }


def one_node_for_all(model: LateFusion) -> Losses:
    joint, unimodal = model.losses(*model.batch(0))
    scales = torch.stack([p.sum() for p in model.heads["m0"].parameters()]).exp()
    return joint, {name: loss * scales[0] for name, loss in unimodal.items()}


def dense(model: LateFusion) -> Losses:
    inputs, label = model.batch(0)
    joint, unimodal = model.losses(inputs, label)
    both = model.encoders["m0"](inputs["m0"]) + model.encoders["m1"](inputs["m1"])
    return joint, unimodal | {"m0": F.cross_entropy(model.heads["m0"](both), label)}


@pytest.mark.parametrize("opposed", [False, True])
def test_branch_by_branch_is_the_whole_to_the_bit(opposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LateFusion(3, seed=0, opposed=opposed)
    model.encoders["m1"].requires_grad_(False)
    model.encoders["m2"].register_parameter("idle", nn.Parameter(torch.ones(3)))
    losses = model.losses(*model.batch(0))
    parts = branches(model, losses)
    assert parts is not None
    assert list(parts) == ["m0", "m2"]
    assert [len(branch.losses) for branch in parts.values()] == [2, 1]  # that of the frozen encoder's head comes first
    diagnostics = MMPareto().backward(*losses, **model.arguments())
    apart = model.gradients()
    monkeypatch.setattr(integrator, "separate", lambda *_: None)
    whole_diagnostics = MMPareto().backward(*model.losses(*model.batch(0)), **model.arguments())
    whole = model.gradients()
    assert apart.keys() == whole.keys()
    assert all(torch.equal(apart[name], whole[name]) for name in whole)
    assert all(torch.equal(a, b) for m in parts for a, b in zip(diagnostics[m], whole_diagnostics[m], strict=True))


@pytest.mark.parametrize("losses", [shared_head, one_node_for_all, dense])
def test_losses_with_something_in_common_go_through_all_encoders_at_once(
    losses: Callable[[LateFusion], Losses],
) -> None:
    model = LateFusion(2, seed=0)
    assert branches(model, losses(model)) is None
    MMPareto(gamma=1.0).backward(*losses(model), **model.arguments())
    assert model.gradients().keys() >= {"encoders.m0.0.weight", "encoders.m1.0.weight", "heads.m0.weight"}


def test_nothing_is_left_behind_where_the_second_encoder_fails() -> None:
    class Failing(MMPareto):
        def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
            if encoder == "m1":
                raise ArithmeticError("no coefficients")
            return super().encoder_coefficients(encoder, gramians)

    model = LateFusion(2, seed=0)
    with pytest.raises(ArithmeticError):
        Failing().backward(*model.losses(*model.batch(0)), **model.arguments())
    assert not model.gradients()


def test_frozen_encoders_alone_have_no_branches() -> None:
    model = LateFusion(2, seed=0)
    model.encoders.requires_grad_(False)
    assert branches(model, model.losses(*model.batch(0))) is None
