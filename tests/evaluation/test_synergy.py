"""Synergy, counted by hand."""

from __future__ import annotations

import torch

from mmpareto.evaluation.synergy import synergy


def heads(*right: bool) -> torch.Tensor:
    """Logits of two classes that are right (class 1) or not."""
    return torch.tensor([[0.0, 1.0] if value else [1.0, 0.0] for value in right])


def test_shares_of_samples_that_only_the_joint_or_only_a_unimodal_head_gets_right() -> None:
    joint = heads(True, True, True, False, False)
    unimodal = {"a": heads(False, True, False, True, False), "b": heads(False, True, True, False, True)}
    label = torch.ones(5, dtype=torch.int64)
    everything = {name: torch.ones(5, dtype=torch.bool) for name in unimodal}
    assert synergy(joint, unimodal, label, everything) == {"joint_only": 20.0, "single_only": 40.0}
    partly = everything | {"b": torch.tensor([True, True, False, True, False])}
    assert synergy(joint, unimodal, label, partly) == {"joint_only": 40.0, "single_only": 20.0}
