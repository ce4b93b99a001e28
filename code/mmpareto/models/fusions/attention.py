"""Fusion by attention between modalities.

Shapes: B batch, C classes, D feature width (each modality has its own), M modalities, W width of a token.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmpareto.models.fusions.base import FUSIONS, Present, check_counts, mask_of
from mmpareto.models.tokens import TransformerLayer


@FUSIONS.register("attention")
class AttentionFusion(nn.Module):
    """Self-attention between one token per modality and a class token (Vaswani et al., NeurIPS 2017).

    Each feature is mapped to a token; pre-norm transformer layers follow; the class token gives the logits:

        t_m = W_m f_m + b_m,    logits = head(norm(transformer([class; t_1; ...; t_M])_0))

    The token of an absent modality is masked: the other tokens do not see it.

    Args:
        widths: {modality: D}.
        classes: C.
        width: W.
        layers: transformer layers.
        heads: attention heads; they divide the width.
    """

    def __init__(
        self, widths: Mapping[str, int], classes: int, width: int = 128, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        check_counts(width=width, layers=layers, heads=heads)
        self.maps = nn.ModuleDict({name: nn.Linear(size, width) for name, size in widths.items()})
        self.token = nn.Parameter(torch.empty(width))
        self.reset_parameters()
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the class token; the layers draw their own parameters."""
        self.token.copy_(0.02 * torch.randn(len(self.token)))

    def forward(self, features: Mapping[str, Tensor], present: Present | None = None) -> Tensor:
        """{modality: [B, D]} -> [B, C]."""
        names = list(self.maps)
        mapped = [self.maps[name](features[name]) for name in names]
        tokens = torch.stack([self.token.expand_as(mapped[0]), *mapped], 1)
        absent = nn.functional.pad(~mask_of(features, names, present), (1, 0), value=False)
        for layer in self.layers:
            tokens = layer(tokens, absent)
        return self.head(tokens[:, 0])
