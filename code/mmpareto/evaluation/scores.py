"""Losses and accuracies over a pass through the data, gathered on the device.

Sums rather than torchmetrics' metrics, which take three updates a head and batch, and 2 s to import.

Shapes: B batch, H heads (the joint one and one per modality), C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Scores:
    """Mean loss and top-1 accuracy of the joint head and of each modality's own.

    modalities  their names.
    device      where the logits are.
    """

    def __init__(self, modalities: Sequence[str], device: torch.device) -> None:
        self.heads = ["joint", *modalities]
        self._sums = torch.zeros(2, len(self.heads), dtype=torch.float64, device=device)  # losses, right answers
        self._samples = 0

    def update(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        joint_logits: Tensor,
        unimodal_logits: Mapping[str, Tensor],
        label: Tensor,
    ) -> None:
        """Takes in a batch: scalar losses (means over the batch), logits [B, C], labels [B]. Waits for nothing."""
        losses = torch.stack([joint_loss.detach(), *(unimodal_losses[name].detach() for name in self.heads[1:])])
        logits = torch.stack([joint_logits.detach(), *(unimodal_logits[name].detach() for name in self.heads[1:])])
        right = (logits.argmax(-1) == label).sum(-1)
        self._sums += torch.stack([losses.double() * len(label), right.double()])
        self._samples += len(label)

    def compute(self, total: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, dict[str, float]]:
        """{"joint" or a modality: {"loss", "accuracy"}}, accuracies in percent. Waits for the device.

        total  sums a tensor over the processes of a run.
        """
        samples = self._sums.new_full((1,), self._samples)
        values = total(torch.cat([self._sums.flatten(), samples]))
        losses, right = (values[:-1] / values[-1]).view(2, -1).tolist()
        return {
            name: {"loss": loss, "accuracy": 100 * accuracy}
            for name, loss, accuracy in zip(self.heads, losses, right, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far."""
        return {"sums": self._sums.cpu(), "samples": self._samples}

    def total_state(self, total: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """As `state_dict`, summed over the processes of a run by `total`."""
        samples = total(self._sums.new_full((1,), self._samples))
        return {"sums": total(self._sums).cpu(), "samples": int(samples.item())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._sums.copy_(state["sums"])
        self._samples = state["samples"]
