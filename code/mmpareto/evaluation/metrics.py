"""Losses and accuracies over a pass through the data, gathered on the device.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class Scores:
    """Mean loss and top-1 accuracy of the joint head and of each modality's own; nothing waits until `compute`.

    modalities  their names.
    classes     C.
    device      where the logits are.
    """

    def __init__(self, modalities: list[str], classes: int, device: torch.device) -> None:
        # without checks of every batch's values, each of which would wait for the device
        def accuracy() -> MulticlassAccuracy:
            return MulticlassAccuracy(classes, average="micro", validate_args=False).to(device)

        def mean() -> MeanMetric:
            return MeanMetric(nan_strategy="disable").to(device)

        self.joint = (mean(), accuracy())
        self.unimodal = {name: (mean(), accuracy()) for name in modalities}

    def update(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        joint_logits: Tensor,
        unimodal_logits: Mapping[str, Tensor],
        label: Tensor,
    ) -> None:
        """Takes in a batch: scalar losses (means over the batch), logits [B, C], labels [B]."""
        _update(self.joint, joint_loss, joint_logits, label)
        for name, metrics in self.unimodal.items():
            _update(metrics, unimodal_losses[name], unimodal_logits[name], label)

    def compute(self) -> dict[str, dict[str, float]]:
        """{"joint" or a modality: {"loss", "accuracy"}}, accuracies in percent. Waits for the device."""
        everything = {"joint": self.joint, **self.unimodal}
        return {
            name: {"loss": float(loss.compute()), "accuracy": 100 * float(accuracy.compute())}
            for name, (loss, accuracy) in everything.items()
        }


def _update(metrics: tuple[MeanMetric, MulticlassAccuracy], loss: Tensor, logits: Tensor, label: Tensor) -> None:
    mean, accuracy = metrics
    mean.update(loss.detach(), weight=len(label))
    accuracy.update(logits.detach(), label)
