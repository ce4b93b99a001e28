"""Fusions whose joint logits are a sum of parts, one for each modality.

Shapes: B batch, C classes, D feature width (each modality has its own), M modalities.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.inputs import wide
from mmpareto.models.fusions.base import FUSIONS, Present, used


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
        return self.head(torch.cat(list(used(features, self.widths, present).values()), dim=1))

    def contributions(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{modality: [B, D]} -> {modality: [B, C]}: the part of the logits that is its own, and a share of the bias."""
        blocks = self.head.weight.split(list(self.widths.values()), dim=1)
        share = self.head.bias / len(self.widths)
        return {name: F.linear(features[name], block, share) for name, block in zip(self.widths, blocks, strict=True)}


@FUSIONS.register("sum")
class SumFusion(nn.Module):
    """Sum of a linear map of each modality: sum_m (W_m f_m + b_m).

    The sum of OGM-GE's code (Peng et al., CVPR 2022). It equals `concat` but for the biases, one for each modality.

    Args:
        widths: {modality: D}.
        classes: C.
    """

    def __init__(self, widths: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, width in widths.items()})

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; an absent modality adds its bias alone."""
        return torch.stack(list(self.contributions(used(features, list(self.heads), present)).values())).sum(0)

    def contributions(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{modality: [B, D]} -> {modality: [B, C]}, which sum up to the joint logits."""
        return {name: head(features[name]) for name, head in self.heads.items()}


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
        return torch.stack(list(self.contributions(used(features, self.widths, present)).values())).sum(0)

    def contributions(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{modality: [B, D]} -> {modality: [B, C]}: scale * cosines, which sum up to the joint logits."""
        blocks = self.head.weight.split(list(self.widths.values()), dim=1)
        return {
            name: self.scale * F.linear(F.normalize(wide(features[name]), dim=1), F.normalize(wide(block), dim=1))
            for name, block in zip(self.widths, blocks, strict=True)
        }
