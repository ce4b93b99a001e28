"""Free predictions of a trained model: the joint and all unimodal heads, combined.

Shapes: B batch, C classes, H heads (the joint one and one per modality).
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.evaluation.scores import right_answers
from mmpareto.integration import float64_device, to_float64
from mmpareto.selection import COMBINATIONS


def all_heads(
    joint: Tensor, unimodal: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Combine the predictions of the joint head and of all unimodal heads.

    Args:
        joint: logits [B, C].
        unimodal: {modality: logits [B, C]}.
        present: {modality: bool [B]}; the heads of absent modalities are left out. None: all are present.

    Returns:
        {rule: log-probabilities [B, C]} for "logarithms" (the sum of the heads' log-probabilities, normalised) and
        "probabilities" (the mean of their probabilities).
    """
    logs = F.log_softmax(torch.stack([joint, *unimodal.values()]).float(), -1)  # [H, B, C]
    if present is None:
        return {
            "logarithms": F.log_softmax(logs.sum(0), -1),
            "probabilities": logs.logsumexp(0) - math.log(len(logs)),
        }
    masks = torch.stack([torch.ones_like(joint[:, 0], dtype=torch.bool), *(present[name] for name in unimodal)])
    absent = ~masks[..., None]
    return {
        "logarithms": F.log_softmax(logs.masked_fill(absent, 0.0).sum(0), -1),
        "probabilities": logs.masked_fill(absent, -math.inf).logsumexp(0) - masks.sum(0).log()[:, None],
    }


class AllHeads:
    """Accuracy of `all_heads` over a split, gathered on the device."""

    def __init__(self, device: torch.device) -> None:
        # right answers by each rule, samples
        self._counts = torch.zeros(len(COMBINATIONS) + 1, dtype=torch.float64, device=float64_device(device))

    def update(
        self,
        joint: Tensor,
        unimodal: Mapping[str, Tensor],
        label: Tensor,
        present: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a batch: see `all_heads`; label [B]. Does not wait for the device."""
        combined = all_heads(joint, unimodal, present)
        right = torch.stack([right_answers(combined[rule], label).sum() for rule in COMBINATIONS])
        self._counts += torch.cat([to_float64(right), self._counts.new_full((1,), len(label))])

    def reset(self) -> None:
        """Begin anew."""
        self._counts.zero_()

    def compute(self, total: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, dict[str, float]]:
        """{rule: {"accuracy"}} in percent. Waits for the device.

        Args:
            total: sums a tensor over the processes of a run.
        """
        *right, samples = total(self._counts).tolist()
        return {rule: {"accuracy": 100 * count / samples} for rule, count in zip(COMBINATIONS, right, strict=True)}
