"""The joint prediction of unimodal heads that were trained alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.models.fusions.base import Present


class EnsembleFusion(nn.Module):
    """Joint logits of unimodal heads that were trained alone: the logarithm of their mean prediction.

    Args:
        heads: {modality: head}, which stay the model's: this module has no parameters, and gives them no gradient.
        combine: "probabilities": log of the mean of the heads' probabilities; "logarithms": the mean of the heads'
            log-probabilities, normalised.
    """

    COMBINE = ("probabilities", "logarithms")

    def __init__(self, heads: nn.ModuleDict, combine: str) -> None:
        super().__init__()
        self._heads = [heads]  # in a list, so that they are not registered a second time
        self.combine = combine

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C], normalised: their exponentials sum up to 1.

        Args:
            present: modalities whose heads count, at least one for each sample. None: all of them.

        Raises:
            ValueError: where none is present.
        """
        names = [name for name in self._heads[0] if present is None or name in present]
        if not names:
            raise ValueError("an ensemble of no modality has no prediction")
        with torch.no_grad():
            logs = torch.stack([F.log_softmax(self._heads[0][name](features[name]), 1) for name in names])  # [M, B, C]
            if isinstance(present, Mapping):
                return self._masked(logs, torch.stack([present[name] for name in names]))
            if self.combine == "probabilities":
                return torch.logsumexp(logs, 0) - math.log(len(names))
            return F.log_softmax(logs.mean(0), 1)

    def _masked(self, logs: Tensor, masks: Tensor) -> Tensor:
        """The prediction from log-probabilities [M, B, C] of which `masks` (bool [M, B]) marks those that count."""
        count, masks = masks.sum(0).unsqueeze(1), masks.unsqueeze(2)
        if self.combine == "probabilities":
            return torch.logsumexp(logs.masked_fill(~masks, -math.inf), 0) - count.to(logs).log()
        return F.log_softmax(torch.where(masks, logs, 0.0).sum(0) / count, 1)
