"""Losses of a multimodal model: cross-entropy of the joint and of each unimodal head.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.inputs import wide
from mmpareto.models.base import Output


class Losses(NamedTuple):
    """Scalar losses, means over a batch."""

    joint: Tensor
    unimodal: dict[str, Tensor]

    def values(self) -> Tensor:
        """All losses, detached, [M + 1]: the joint one first."""
        return torch.stack([wide(loss.detach()) for loss in (self.joint, *self.unimodal.values())])

    def weighted(self, weights: Tensor) -> Losses:
        """Each loss times its weight; weights [M + 1], in the order of `values`."""
        unimodal = {name: loss * weights[k] for k, (name, loss) in enumerate(self.unimodal.items(), 1)}
        return Losses(self.joint * weights[0], unimodal)


def cross_entropies(output: Output, label: Tensor, factors: Mapping[str, Tensor] | None = None) -> Losses:
    """Joint and unimodal cross-entropy of a model's output: means over the batch, unimodal ones over present samples.

    Args:
        label: int64 [B].
        factors: {modality: B / number of present samples}, where these B samples are a part of the batch that the
            mean is over; None: the mean is over these samples. Not used where all are present.
    """
    joint = F.cross_entropy(output.joint, label)
    if output.present is None:
        return Losses(joint, {name: F.cross_entropy(logits, label) for name, logits in output.unimodal.items()})
    unimodal = {}
    for name, logits in output.unimodal.items():
        mask = output.present[name]
        mean = torch.where(mask, F.cross_entropy(logits, label, reduction="none"), 0.0).mean()
        factor = len(label) / mask.sum().clamp(min=1).to(mean.dtype) if factors is None else factors[name]
        unimodal[name] = mean * factor.to(mean)
    return Losses(joint, unimodal)
