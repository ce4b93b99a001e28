"""What an encoder is, and encoders by name.

Shapes: B batch, F frames of a clip, L audio frames, M mel bins, H x W pixels, D feature width.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmpareto.errors import UserError
from mmpareto.inputs import KINDS, Input, values_of
from mmpareto.registry import Registry

IMAGES = frozenset({"image", "spectrogram"})


class ModelError(UserError, ValueError):
    """A model cannot be built as requested."""


# An encoder is a torch.nn.Module made of the kind and the shape of one sample of its modality, with two attributes:
# `width`, the integer D of its output [B, D], and, on the class, `takes`, the kinds that it can take (default: all).
ENCODERS: Registry[nn.Module] = Registry("encoder", __package__, skip=("kind", "shape"), error=ModelError)
ENCODERS.base(nn.Module)


class TokenEncoder(nn.Module):
    """Base of encoders whose output [B, D] is pooled from tokens, which dense architectures use.

    A subclass sets `width` (D) and implements `tokens`.
    """

    width: int

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """Input of B samples -> tokens [B, N, D], and a mask bool [B, N] of those that count (None: all)."""
        raise NotImplementedError

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens [B, N, D] -> their mean [B, D]."""
        if mask is None:
            return tokens.mean(1)
        counts = mask.sum(1, keepdim=True).clamp(min=1)
        return (tokens * mask[..., None]).sum(1) / counts.to(tokens.dtype)

    def forward(self, x: Input) -> Tensor:
        """Input of B samples -> [B, D]."""
        return self.pool(*self.tokens(x))


class ConvolutionalEncoder(TokenEncoder):
    """Base of convolutional encoders: stages, after each of which modalities may exchange information (see `MMTM`).

    A subclass sets `width` and `stage_widths`, and implements `stages`.
    """

    stage_widths: tuple[int, ...]  # channels after each stage

    def stages(self) -> list[nn.Module]:
        """Modules that are applied in turn to [N, channels, H, W]; the last one gives D channels."""
        raise NotImplementedError

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """[B, channels, H, W] or [B, F, channels, H, W] -> the positions of the last stage's map, [B, (F) H' W', D]."""
        maps = images(x)
        for stage in self.stages():
            maps = stage(maps)
        return maps.flatten(2).transpose(1, 2).reshape(len(values_of(x)), -1, self.width), None


def images(x: Input) -> Tensor:
    """[B, channels, H, W] as it is; frames [B, F, channels, H, W] -> [B F, channels, H, W]."""
    values = values_of(x)
    return values.flatten(0, 1) if values.dim() == 5 else values


def channels(kind: str, shape: tuple[int, ...]) -> int:
    """Channels of an image [C, H, W], a spectrogram [1, L, M] or frames [F, C, H, W]."""
    return shape[1] if kind == "frames" else shape[0]


def default_encoder(kind: str, shape: tuple[int, ...]) -> str:
    """The encoder where none is chosen: `mlp` for vectors, `cnn` for images up to 32 x 32 pixels, else `resnet18`."""
    if kind == "vector":
        return "mlp"
    return "cnn" if kind == "image" and max(shape[-2:]) <= 32 else "resnet18"


def build_encoder(name: str, kind: str, shape: tuple[int, ...]) -> nn.Module:
    """The encoder of a modality.

    Args:
        name: one of ENCODERS, or `package.module:Class`.
        kind: of the modality, one of KINDS.
        shape: of one sample of it.

    Raises:
        ModelError: for an unknown name or an encoder that cannot take such input.
    """
    takes = getattr(ENCODERS[name].make, "takes", KINDS)
    if kind not in takes:
        raise ModelError(
            f"the encoder {name} takes {' or '.join(sorted(takes))}, not {kind} of shape {list(shape)}; choose another "
            "one with --encoder"
        )
    try:
        encoder = ENCODERS.build(name, kind, shape)
    except ModelError as error:
        raise ModelError(f"the encoder cannot be made for {kind} of shape {list(shape)}: {error}") from error
    if not isinstance(getattr(encoder, "width", None), int):
        raise ModelError(f"the encoder {name!r} must have an integer attribute `width`, the width of its output")
    return encoder
