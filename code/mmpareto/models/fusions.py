"""Fusion: the features of all modalities -> joint logits.

Shapes: B batch, C classes, D feature width (each modality has its own), M modalities.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.models.encoders.base import ModelError
from mmpareto.registry import Registry

# A fusion is made of the widths {modality: D} and the number of classes, in this order; see `ConcatFusion`.
FUSIONS: Registry[nn.Module] = Registry("fusion", __name__, skip=("widths", "classes"), error=ModelError)
FUSIONS.base(nn.Module)

Present = Mapping[str, Tensor] | Collection[str]  # {modality: bool [B]}, or the modalities that all samples have


@FUSIONS.register("concat")
class ConcatFusion(nn.Module):
    """Late fusion by concatenation: [f_1, ..., f_M] -> linear -> joint logits.

    Args:
        widths: {modality: D}; their order is the order of concatenation.
        classes: C.
    """

    def __init__(self, widths: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.head = nn.Linear(sum(widths.values()), classes)

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C].

        Args:
            present: modalities to use; the others' features count as zero. None: all of them.
        """
        return self.head(torch.cat(list(_used(features, self.widths, present).values()), dim=1))

    def contributions(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{modality: [B, D]} -> {modality: [B, C]}: the part of the logits that is its own, and a share of the bias."""
        blocks = self.head.weight.split(list(self.widths.values()), dim=1)
        share = self.head.bias / len(self.widths)
        return {name: F.linear(features[name], block, share) for name, block in zip(self.widths, blocks, strict=True)}


@FUSIONS.register("cosine")
class CosineFusion(nn.Module):
    """Cosines of features and weights, as in MMCosine (Xu et al., ICASSP 2023): scale * sum_m cos(f_m, W_mc).

    No bias: the joint logits see directions alone.

    Args:
        widths: {modality: D}.
        classes: C.
        scale: of the logits, which lie between -M scale and M scale; 10 in the published code.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, scale: float = 10.0) -> None:
        super().__init__()
        self.widths, self.scale = dict(widths), scale
        self.head = nn.Linear(sum(widths.values()), classes, bias=False)

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; the cosine with a feature of zeros is zero.

        Args:
            present: modalities to use; the others count zero. None: all of them.
        """
        return torch.stack(list(self.contributions(_used(features, self.widths, present)).values())).sum(0)

    def contributions(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{modality: [B, D]} -> {modality: [B, C]}: scale * cosines, which sum up to the joint logits."""
        blocks = self.head.weight.split(list(self.widths.values()), dim=1)
        return {
            name: self.scale * F.linear(F.normalize(features[name], dim=1), F.normalize(block, dim=1))
            for name, block in zip(self.widths, blocks, strict=True)
        }


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


def _used(
    features: Mapping[str, Tensor], names: Collection[str], present: Mapping[str, Tensor] | Collection[str] | None
) -> dict[str, Tensor]:
    """Features in the order of `names`; zeros for modalities that are not present."""
    if isinstance(present, Mapping):
        return {name: torch.where(present[name][:, None], features[name], 0.0) for name in names}
    return {
        name: features[name] if present is None or name in present else torch.zeros_like(features[name])
        for name in names
    }
