"""Losses and accuracies over a pass through the data, gathered on the device.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy


class HeadScores:
    """Mean loss and top-1 accuracy of one head."""

    def __init__(self, classes: int, device: torch.device) -> None:
        # None of these may check the batch's values: each check would wait for the device. Sums rather than MeanMetric,
        # which forgets the weights (torchmetrics 1.9) where its own check is switched off.
        self.loss = SumMetric(nan_strategy="disable").to(device)
        self.samples = SumMetric(nan_strategy="disable").to(device)
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False).to(device)

    def update(self, loss: Tensor, logits: Tensor, label: Tensor) -> None:
        """Takes in a batch: its mean loss, logits [B, C], labels [B]."""
        self.loss.update(loss.detach() * len(label))
        self.samples.update(torch.full_like(loss, len(label)))
        self.accuracy.update(logits.detach(), label)

    def compute(self) -> dict[str, float]:
        """{"loss", "accuracy"}, accuracy in percent. Waits for the device."""
        return {
            "loss": float(self.loss.compute() / self.samples.compute()),
            "accuracy": 100 * float(self.accuracy.compute()),
        }


class Scores:
    """Scores of the joint head and of each modality's own over the batches of a pass.

    modalities  their names.
    classes     C.
    device      where the logits are.
    """

    def __init__(self, modalities: list[str], classes: int, device: torch.device) -> None:
        self.heads = {name: HeadScores(classes, device) for name in ["joint", *modalities]}

    def update(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        joint_logits: Tensor,
        unimodal_logits: Mapping[str, Tensor],
        label: Tensor,
    ) -> None:
        """Takes in a batch: scalar losses (means over the batch), logits [B, C], labels [B]."""
        self.heads["joint"].update(joint_loss, joint_logits, label)
        for name, logits in unimodal_logits.items():
            self.heads[name].update(unimodal_losses[name], logits, label)

    def compute(self) -> dict[str, dict[str, float]]:
        """{"joint" or a modality: {"loss", "accuracy"}}, accuracies in percent. Waits for the device."""
        return {name: head.compute() for name, head in self.heads.items()}
