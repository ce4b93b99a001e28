"""All heads together: both rules by hand, absent modalities left out, accuracies over batches and processes."""

from __future__ import annotations

import math

import pytest
import torch

from mmpareto.evaluation.all_heads import AllHeads, all_heads
from mmpareto.selection import COMBINATIONS


def logits(seed: int, batch: int = 7) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    joint, left, right = torch.randn(3, batch, 4, generator=generator)
    return joint, {"left": left, "right": right}


def test_the_rules_by_hand() -> None:
    joint, unimodal = logits(0)
    combined = all_heads(joint, unimodal)
    probabilities = [value.double().softmax(1) for value in (joint, *unimodal.values())]
    product = probabilities[0] * probabilities[1] * probabilities[2]
    torch.testing.assert_close(combined["logarithms"].double().exp(), product / product.sum(1, keepdim=True))
    torch.testing.assert_close(combined["probabilities"].double().exp(), sum(probabilities) / 3)


def test_confident_heads_do_not_tie() -> None:
    """Probabilities that round to 1 in float32 still have an order."""
    joint = torch.tensor([[40.0, 0.0], [0.0, 40.0]])
    unimodal = {"left": torch.tensor([[0.0, 41.0], [41.0, 0.0]]), "right": torch.zeros(2, 2)}
    assert all_heads(joint, unimodal)["logarithms"].argmax(1).tolist() == [1, 0]


def test_heads_of_absent_modalities_are_left_out() -> None:
    joint, unimodal = logits(1)
    mask = torch.tensor([True, False] * 3 + [True])
    present = {"left": mask, "right": torch.ones(7, dtype=torch.bool)}
    combined = all_heads(joint, unimodal | {"left": unimodal["left"].masked_fill(~mask[:, None], math.nan)}, present)
    whole, without = all_heads(joint, unimodal), all_heads(joint, {"right": unimodal["right"]})
    for rule in COMBINATIONS:
        torch.testing.assert_close(combined[rule][mask], whole[rule][mask])
        torch.testing.assert_close(combined[rule][~mask], without[rule][~mask])


def test_accuracies_are_gathered_over_batches_and_processes() -> None:
    joint, unimodal = logits(2, 50)
    label = torch.arange(50) % 4
    gathered = AllHeads(torch.device("cpu"))
    for part in torch.arange(50).split(16):
        gathered.update(joint[part], {name: value[part] for name, value in unimodal.items()}, label[part])
    scores = gathered.compute()
    for rule, logs in all_heads(joint, unimodal).items():
        assert scores[rule]["accuracy"] == pytest.approx(100 * (logs.argmax(1) == label).double().mean().item())
    assert gathered.compute(lambda values: 2 * values) == scores
