"""The joint prediction of unimodal heads."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.models.fusions.base import Present


class EnsembleFusion(nn.Module):
    """Joint logits of unimodal heads: their mean prediction. The heads stay the model's; it has no parameters.

    Args:
        heads: {modality: head}.
        combine: "probabilities": log of the mean of the heads' probabilities; "logarithms": the mean of the heads'
            log-probabilities, normalised; both give heads and features no gradient, since they learn alone. "logits":
            the mean of the heads' logits, with its gradient; "certainty": this mean with the weights softmax(-entropy)
            of each sample's predictions.
    """

    COMBINE = ("probabilities", "logarithms")  # of heads that learn alone

    def __init__(self, heads: nn.ModuleDict, combine: str) -> None:
        super().__init__()
        self._heads = [heads]  # in a list, so that they are not registered a second time
        self.combine = combine

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; the exponentials sum up to 1, but those of "logits".

        Args:
            present: modalities whose heads count, at least one for each sample. None: all of them.

        Raises:
            ValueError: where none is present.
        """
        names = [name for name in self._heads[0] if present is None or name in present]
        if not names:
            raise ValueError("an ensemble of no modality has no prediction")
        if self.combine in ("logits", "certainty"):
            logits = torch.stack([self._heads[0][name](features[name]) for name in names])  # [M, B, C]
            return (_mean if self.combine == "logits" else _certain)(logits, present, names)
        with torch.no_grad():
            logs = torch.stack([F.log_softmax(self._heads[0][name](features[name]), 1) for name in names])  # [M, B, C]
            if isinstance(present, Mapping):
                return self._masked(logs, torch.stack([present[name] for name in names]))
            if self.combine == "probabilities":
                return torch.logsumexp(logs, 0) - math.log(len(names))
            return F.log_softmax(logs.mean(0), 1)

    def _masked(self, logs: Tensor, masks: Tensor) -> Tensor:
        """The prediction from log-probabilities [M, B, C] of which `masks` (bool [M, B]) marks those that count.

        Where none counts, all classes are equally probable.
        """
        masks = masks.unsqueeze(2)
        if self.combine == "probabilities":
            total = torch.logsumexp(logs.masked_fill(~masks, -math.inf), 0)
            return F.log_softmax(torch.where(masks.any(0), total, 0.0), 1)
        return F.log_softmax(torch.where(masks, logs, 0.0).sum(0) / masks.sum(0).clamp(min=1), 1)


class BoostedSum(nn.Module):
    """Joint logits: the sum of the unimodal heads' logits, times a number that learns.

    Args:
        heads: {modality: head}; they stay the model's.
    """

    def __init__(self, heads: nn.ModuleDict) -> None:
        super().__init__()
        self._heads = [heads]  # in a list, so that they are not registered a second time
        self.boost = nn.Parameter(torch.ones(()))

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; heads of absent modalities do not count.

        Raises:
            ValueError: where none is present.
        """
        logits = []
        for name, head in self._heads[0].items():
            if isinstance(present, Mapping):
                logits.append(head(features[name]).where(present[name][:, None], 0.0))
            elif present is None or name in present:
                logits.append(head(features[name]))
        if not logits:
            raise ValueError("a sum over no modality has no prediction")
        return self.boost * torch.stack(logits).sum(0)


def _mean(logits: Tensor, present: Present | None, names: Sequence[str]) -> Tensor:
    """The mean of logits [M, B, C] over the modalities that are present."""
    if not isinstance(present, Mapping):
        return logits.mean(0)
    masks = torch.stack([present[name] for name in names])[:, :, None]
    return logits.where(masks, 0.0).sum(0) / masks.sum(0).clamp(min=1)


def _certain(logits: Tensor, present: Present | None, names: Sequence[str]) -> Tensor:
    """The mean of logits [M, B, C] over the modalities that are present, weighted by certainty."""
    logs = F.log_softmax(logits, -1)
    negative_entropy = (logs.exp() * logs).sum(-1, keepdim=True)
    if isinstance(present, Mapping):
        masks = torch.stack([present[name] for name in names])[:, :, None]
        negative_entropy = negative_entropy.masked_fill(~masks, -1e4)  # finite: a sample may lack all modalities
    return (torch.softmax(negative_entropy, 0) * logits).sum(0)
