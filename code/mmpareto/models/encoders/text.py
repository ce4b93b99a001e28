"""A small transformer for token ids."""

from typing import Literal

import torch
from torch import Tensor, nn

from mmpareto.inputs import Input, Padded, values_of
from mmpareto.models.encoders.base import ENCODERS, ModelError, TokenEncoder
from mmpareto.models.tokens import TransformerLayer, attended, sinusoids


@ENCODERS.register("text")
class TextEncoder(TokenEncoder):
    """Small pre-norm transformer for token ids (Vaswani et al., NeurIPS 2017; Xiong et al., ICML 2020).

    Embeddings and sinusoidal positions, layers in which no token attends to padding, layer norm, pooling.

    Args:
        kind: "tokens".
        shape: (L, size of the vocabulary).
        width: D.
        layers: transformer layers.
        heads: attention heads; they divide the width.
        pooling: of the tokens.
    """

    takes = frozenset({"tokens"})

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        pooling: Literal["mean", "max"] = "mean",
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ModelError(f"the option layers must be 1 or more, found {layers}")
        self.width, self.pooling = width, pooling
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.embedding = nn.Embedding(shape[1], width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.norm = nn.LayerNorm(width)

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """Ids, int64 [B, L] -> [B, L, D]."""
        ids, mask = values_of(x), x.mask if isinstance(x, Padded) else None
        # both parts have vectors of about length 1, so that neither hides the other
        tokens = self.embedding(ids) + (2 / self.width) ** 0.5 * sinusoids(ids.shape[1], self.width, ids.device)
        padding = torch.zeros_like(ids, dtype=torch.bool) if mask is None else attended(mask)
        for layer in self.layers:
            tokens = layer(tokens, padding)
        return self.norm(tokens), mask
