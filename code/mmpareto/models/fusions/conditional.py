"""Fusions in which one modality conditions the other.

Shapes: B batch, C classes, D feature width (each modality has its own), W width of an option.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpareto.models.fusions.base import FUSIONS, Present, check_counts, two_modalities, used


@FUSIONS.register("film")
class FiLMFusion(nn.Module):
    """Feature-wise linear modulation of one modality by the other (Perez et al., AAAI 2018); two modalities.

    With x the modality that conditions and y the other one:

        gamma, beta = W x + b,    logits = head(gamma * y + beta)

    Args:
        widths: {modality: D}; gamma and beta have the width of y.
        classes: C.
        condition: modality that makes gamma and beta (None: the first).

    Raises:
        ModelError: for another number of modalities.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, condition: str | None = None) -> None:
        super().__init__()
        self.names = two_modalities("film", widths, condition)
        inputs, outputs = (widths[name] for name in self.names)
        self.film = nn.Linear(inputs, 2 * outputs)
        self.head = nn.Linear(outputs, classes)

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; absent features count as zero."""
        x, y = used(features, self.names, present).values()
        gamma, beta = self.film(x).chunk(2, dim=1)
        return self.head(gamma * y + beta)


@FUSIONS.register("gated")
class GatedFusion(nn.Module):
    """One modality gates the other (Kiela et al., AAAI 2018); two modalities.

    With x the modality that gates and y the other one:

        logits = head(sigmoid(W_x x + b_x) * (W_y y + b_y))

    Args:
        widths: {modality: D}.
        classes: C.
        width: W, to which both are mapped; 512 in the code of OGM-GE.
        condition: modality that gates (None: the first).

    Raises:
        ModelError: for another number of modalities.
    """

    def __init__(self, widths: Mapping[str, int], classes: int, width: int = 512, condition: str | None = None) -> None:
        super().__init__()
        check_counts(width=width)
        self.names = two_modalities("gated", widths, condition)
        self.gate, self.value = (nn.Linear(widths[name], width) for name in self.names)
        self.head = nn.Linear(width, classes)

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]; absent features count as zero."""
        x, y = used(features, self.names, present).values()
        return self.head(torch.sigmoid(self.gate(x)) * self.value(y))
