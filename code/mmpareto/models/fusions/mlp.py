"""Fusion by a multilayer perceptron on the concatenated features.

Shapes: B batch, C classes, D feature width (each modality has its own), W hidden width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpareto.models.fusions.base import FUSIONS, Present, check_counts, used


@FUSIONS.register("mlp")
class MLPFusion(nn.Module):
    """Concatenation and one hidden layer: W_2 relu(W_1 [f_1; ...; f_M] + b_1) + b_2.

    Args:
        widths: {modality: D}; their order is the order of concatenation.
        classes: C.
        width: W, of the hidden layer.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, width: int = 512) -> None:
        super().__init__()
        check_counts(width=width)
        self.names = tuple(widths)
        self.layers = nn.Sequential(
            nn.Linear(sum(widths.values()), width), nn.ReLU(inplace=True), nn.Linear(width, classes)
        )

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; absent features count as zero."""
        return self.layers(torch.cat(list(used(features, self.names, present).values()), dim=1))
