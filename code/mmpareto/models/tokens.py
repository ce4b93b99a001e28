"""Tokens: what dense architectures take from encoders, and the transformer layer that they share.

Shapes: B batch, N tokens, W width of a token.
"""

import math

import torch
from torch import Tensor, nn

from mmpareto.inputs import Input
from mmpareto.models.encoders.base import ModelError, TokenEncoder


def tokens_of(encoder: nn.Module, x: Input) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, N, D] of an encoder and their mask; the feature as the only token where it has no tokens."""
    if isinstance(encoder, TokenEncoder):
        return encoder.tokens(x)
    return encoder(x)[:, None], None


def feature_and_tokens_of(encoder: nn.Module, x: Input) -> tuple[Tensor, Tensor, Tensor | None]:
    """The feature [B, D] of an encoder, and `tokens_of` it, in one pass."""
    return encoder.feature_and_tokens(x) if isinstance(encoder, TokenEncoder) else feature_as_token(encoder, x)


def feature_as_token(encoder: nn.Module, x: Input) -> tuple[Tensor, Tensor, None]:
    """As `feature_and_tokens_of`, with the feature as the only token."""
    feature = encoder(x)
    return feature, feature[:, None], None


def padding_of(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """bool [B, N]: the tokens [B, N, W] that do not count."""
    return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else ~mask


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer (Xiong et al., ICML 2020) without dropout.

    Args:
        width: W.
        heads: attention heads; they divide the width.

    Raises:
        ModelError: where they do not.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ModelError(f"{heads} attention heads must divide the width of the tokens, {width}")
        # the attention is called by itself: TransformerEncoderLayer computes otherwise in evaluation mode
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """[B, N, W] -> [B, N, W]; `padding` (bool [B, N]) marks the tokens that nobody attends to."""
        normed = self.before(tokens)
        tokens = tokens + self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)[0]
        return tokens + self.mlp(tokens)


def attended(mask: Tensor) -> Tensor:
    """Mask bool [B, N] -> the padding for `TransformerLayer`; never the first token, so that there is always one."""
    return torch.cat((torch.zeros_like(mask[:, :1]), ~mask[:, 1:]), 1)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Positions [length, width] (Vaswani et al., NeurIPS 2017): sines and cosines of wavelengths 2 pi to 20000 pi."""
    rates = torch.exp(torch.arange((width + 1) // 2, device=device) * (-2 * math.log(10000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), 1)[:, :width]
