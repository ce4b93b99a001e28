"""Encoders of sequences of features, such as sensors, and of waveforms. Padding never reaches a feature."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.inputs import Input, Padded, values_of
from mmpareto.models.encoders.base import ENCODERS, ModelError, TokenEncoder
from mmpareto.models.tokens import TransformerLayer, attended, sinusoids

STEM = (5, 4, 4)  # strides of the convolutions that a waveform passes first: 80 samples, 5 ms at 16 kHz, a position


class MaskedConv(nn.Module):
    """A 1-D convolution for which padding counts as zero; a sample of length L gives ceil(L / stride) positions.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: its length, `stride` or more.
        stride: step between two positions.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, inputs] and bool [B, L] -> [B, L', outputs] and bool [B, L']."""
        length = x.shape[1]
        left = (self.kernel - self.stride) // 2
        right = (-(-length // self.stride) - 1) * self.stride + self.kernel - left - length
        x = F.pad(x.masked_fill(~mask[..., None], 0.0).transpose(1, 2), (left, right))
        return self.conv(x).transpose(1, 2), mask[:, :: self.stride]


class ConvBlock(nn.Module):
    """A residual block: x + linear(gelu(conv(norm(x)))).

    Args:
        width: channels.
        kernel: length of the convolution.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(width), MaskedConv(width, width, kernel)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        return x + self.out(F.gelu(self.conv(self.norm(x), mask)[0]))


@ENCODERS.register("sequence")
class SequenceEncoder(TokenEncoder):
    """1-D convolutions or a small transformer for sequences of features and for waveforms.

    Each step is mapped to D values; a waveform passes three strided convolutions instead, which give a position every
    80 samples. Residual convolutions or pre-norm transformer layers follow, then layer norm and pooling. All norms are
    over one position's values, so that a padded sample gives the same features as alone.

    Args:
        kind: "sequence" [L, features] or "waveform" [L].
        shape: of one sample.
        network: convolutions, or a transformer with sinusoidal positions.
        width: D.
        layers: residual blocks, or transformer layers.
        kernel: length of the convolutions, an odd number.
        heads: attention heads of the transformer; they divide the width.
        pooling: of the positions.
    """

    takes = frozenset({"sequence", "waveform"})

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        network: Literal["conv", "transformer"] = "conv",
        width: int = 128,
        layers: int = 4,
        kernel: int = 5,
        heads: int = 4,
        pooling: Literal["mean", "max"] = "mean",
    ) -> None:
        super().__init__()
        if layers < 1 or width < 1 or kernel < 1 or kernel % 2 == 0:
            raise ModelError(
                f"layers and width must be 1 or more, kernel odd; found layers={layers}, width={width}, kernel={kernel}"
            )
        self.width, self.pooling, self.transformer = width, pooling, network == "transformer"
        strides = STEM if kind == "waveform" else ()
        sizes = [1 if kind == "waveform" else shape[1], *[width] * len(strides)]
        self.stem = nn.ModuleList(
            MaskedConv(inputs, width, 2 * stride, stride) for inputs, stride in zip(sizes, strides, strict=False)
        )
        self.map = nn.Linear(sizes[-1], width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads) if self.transformer else ConvBlock(width, kernel) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """[B, L, features] or [B, L] -> [B, N, D]."""
        values = values_of(x)
        mask = x.mask if isinstance(x, Padded) else torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        if values.dim() == 2:
            values = values[..., None]
        for conv in self.stem:
            values, mask = conv(values, mask)
            values = F.gelu(values)
        tokens = self.map(values)
        if self.transformer:
            tokens = tokens + sinusoids(tokens.shape[1], self.width, tokens.device)
        context = attended(mask) if self.transformer else mask
        for layer in self.layers:
            tokens = layer(tokens, context)
        return self.norm(tokens), mask if isinstance(x, Padded) else None
