"""Losses and accuracies over a pass through the data, gathered on the device.

Sums rather than torchmetrics' metrics, which take three updates a head and batch, and 2 s to import.

Shapes: B batch, H heads (the joint one and one per modality), C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmpareto.integration import float64_device, to_float64


def right_answers(logits: Tensor, label: Tensor) -> Tensor:
    """Which predictions [..., B] of logits [..., B, C] are the labels [B]; none is where a logit is NaN."""
    return (logits.argmax(-1) == label) & ~logits.isnan().any(-1)


class Scores:
    """Mean loss and top-1 accuracy of the joint head and of each modality's own.

    modalities  their names.
    device      where the logits are.
    """

    def __init__(self, modalities: Sequence[str], device: torch.device) -> None:
        self.heads = ["joint", *modalities]
        # losses, right answers, samples that count
        self._sums = torch.zeros(3, len(self.heads), dtype=torch.float64, device=float64_device(device))

    def update(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        joint_logits: Tensor,
        unimodal_logits: Mapping[str, Tensor],
        label: Tensor,
        present: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a batch: scalar losses, logits [B, C], labels [B]. Does not wait for the device.

        Losses are means over the samples that have the modality; `present` ({modality: bool [B]}) says which.
        """
        losses = torch.stack([joint_loss.detach(), *(unimodal_losses[name].detach() for name in self.heads[1:])])
        logits = torch.stack([joint_logits.detach(), *(unimodal_logits[name].detach() for name in self.heads[1:])])
        right = right_answers(logits, label)
        if present is None:
            counts = self._sums.new_full((len(losses),), len(label))
        else:
            masks = torch.stack([torch.ones_like(label, dtype=torch.bool), *(present[name] for name in self.heads[1:])])
            right, counts = right & masks, to_float64(masks.sum(-1))
        self._sums += torch.stack([to_float64(losses) * counts, to_float64(right.sum(-1)), counts])

    def reset(self) -> None:
        """Begin anew."""
        self._sums.zero_()

    def compute(self, total: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, dict[str, float]]:
        """{"joint" or a modality: {"loss", "accuracy"}}, accuracies in percent. Waits for the device.

        Where some samples lack a modality, its loss and accuracy are over the others, and "present" is their percent.

        total  sums a tensor over the processes of a run.
        """
        losses, right, counts = total(self._sums)
        # NaN where no sample has the modality
        values = torch.stack((losses / counts, right / counts, counts / counts[0])).tolist()
        return {
            name: {"loss": loss, "accuracy": 100 * accuracy} | ({"present": 100 * share} if share < 1 else {})
            for name, loss, accuracy, share in zip(self.heads, *values, strict=True)
        }

    def state_dict(self, total: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, Any]:
        """What was gathered so far; see `compute`."""
        return {"sums": total(self._sums).cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._sums.copy_(state["sums"])
