"""What an encoder is, encoders by name, and the options that all of them have.

Shapes: B batch, F frames of a clip, L audio frames, M mel bins, H x W pixels, D feature width, N tokens.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpareto import registries
from mmpareto.errors import ModelError
from mmpareto.flag_values import converter
from mmpareto.inputs import KINDS, Input, values_of
from mmpareto.registry import Option, Registry

IMAGES = frozenset({"image", "spectrogram"})


# An encoder is a torch.nn.Module made of the kind and the shape of one sample of its modality, and options. It has
#   width       int, the D of its output [B, D];
#   takes       on the class, the kinds that it can take (default: all);
#   tokens      optional, see TokenEncoder;
#   preprocess  optional: Preprocess, what its weights were trained with;
#   configuration  optional: a JSON object with which the encoder is built again without the files that it came from;
#                  it is passed as the argument of that name.
# An encoder without an option `weights` takes a file of its state_dict.
ENCODERS: Registry[nn.Module] = registries.ENCODERS

# What every encoder can be told, see `build_encoder`.
COMMON: dict[str, Option] = {
    "weights": Option("none", str, "a file with the encoder's state_dict to start from (none: random weights)"),
    "frozen": Option(False, bool, "the encoder does not learn, stays in evaluation mode and costs no backward pass"),
    "lr_factor": Option(1.0, float, "factor of the learning rate of this encoder"),
}


@dataclass(frozen=True)
class Preprocess:
    """The images that an encoder's weights were trained with.

    Attributes:
        size: (H, W) to which it resizes its input; None: it takes any size.
        mean, std: per channel, of images in 0 .. 1; None: the dataset's own.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def fitted(self, channels: int) -> Preprocess:
        """For another number of channels: each gets the average over the channels."""
        if self.mean is None or self.std is None or len(self.mean) == channels:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)


class TokenEncoder(nn.Module):
    """Base of encoders whose output [B, D] is pooled from tokens, which dense architectures use.

    A subclass sets `width` (D) and implements `tokens`.
    """

    width: int
    pooling: str = "mean"  # "mean", "max", or "cls" where the first token is a class token
    by_frame = False  # whether tokens of frames [B, F, ...] are those of each frame, one frame after the other

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """Input of B samples -> tokens [B, N, D], and a mask bool [B, N] of those that count (None: all)."""
        raise NotImplementedError

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens [B, N, D] -> [B, D]; zeros for a sample of which no token counts."""
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "max":
            if mask is None:
                return tokens.amax(1)
            greatest = tokens.masked_fill(~mask[..., None], -math.inf).amax(1)
            return greatest.where(mask.any(1, keepdim=True), 0.0)
        if mask is None:
            return tokens.mean(1)
        counts = mask.sum(1, keepdim=True).clamp(min=1)
        return tokens.masked_fill(~mask[..., None], 0.0).sum(1) / counts.to(tokens.dtype)

    def feature_and_tokens(self, x: Input) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input of B samples -> the feature [B, D], the mean over frames where there are some, and `tokens` of it."""
        tokens, mask = self.tokens(x)
        batch = tokens.shape[0]
        if not self.by_frame or values_of(x).dim() != 5:
            return self.pool(tokens, mask), tokens, mask
        frames = batch * values_of(x).shape[1]
        pooled = self.pool(tokens.reshape(frames, -1, tokens.shape[2]), None if mask is None else mask.view(frames, -1))
        return by_sample(pooled, batch), tokens, mask

    def forward(self, x: Input) -> Tensor:
        """Input of B samples -> [B, D]."""
        return self.feature_and_tokens(x)[0]


class ConvolutionalEncoder(TokenEncoder):
    """Base of convolutional encoders: stages, after each of which modalities may exchange information (see `MMTM`).

    A subclass sets `width` and `stage_widths`, and implements `stages`.
    """

    by_frame = True
    stage_widths: tuple[int, ...]  # channels after each stage

    def stages(self) -> list[nn.Module]:
        """Modules that are applied in turn to [N, channels, H, W]; the last one gives D channels."""
        raise NotImplementedError

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        """[B, channels, H, W] or [B, F, channels, H, W] -> the positions of the last stage's map, [B, (F) H' W', D]."""
        maps = images(x)
        for stage in self.stages():
            maps = stage(maps)
        return maps.flatten(2).transpose(1, 2).reshape(values_of(x).shape[0], -1, self.width), None


def images(x: Input) -> Tensor:
    """[B, channels, H, W] as it is; frames [B, F, channels, H, W] -> [B F, channels, H, W]."""
    values = values_of(x)
    return values.flatten(0, 1) if values.dim() == 5 else values


def by_sample(features: Tensor, samples: int) -> Tensor:
    """[B F, D] of frames -> their mean [B, D]; [B, D] as it is."""
    return features if features.shape[0] == samples else features.unflatten(0, (samples, -1)).mean(1)


def channels(kind: str, shape: tuple[int, ...]) -> int:
    """Channels of an image [C, H, W], a spectrogram [1, L, M] or frames [F, C, H, W]."""
    return shape[1] if kind == "frames" else shape[0]


def default_encoder(kind: str, shape: tuple[int, ...]) -> str:
    """The encoder where none is chosen.

    `mlp` for vectors, `text` for tokens, `sequence` for sequences and waveforms, `cnn` for images up to 32 x 32 pixels,
    else `resnet18`.
    """
    by_kind = {"vector": "mlp", "tokens": "text", "sequence": "sequence", "waveform": "sequence"}
    if kind in by_kind:
        return by_kind[kind]
    return "cnn" if kind == "image" and max(shape[-2:]) <= 32 else "resnet18"


def resized(x: Tensor, size: tuple[int, int] | None, mode: str = "bilinear") -> Tensor:
    """Images [B, C, H, W] in another size, on their device; as they are where they have it."""
    if size is None or x.shape[-2:] == size:
        return x
    return nn.functional.interpolate(x, size, mode=mode, align_corners=False, antialias=True)


def normalised(x: Tensor, mask: Tensor | None, epsilon: float = 1e-5) -> Tensor:
    """Waveforms [B, L] of mean 0 and variance 1, each over the samples that `mask` (bool [B, L]) marks; else zero.

    epsilon  added to the variance; torchaudio has 1e-5, transformers 1e-7.
    """
    if mask is None:
        return nn.functional.layer_norm(x, x.shape[1:], eps=epsilon)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centred = (x - x.masked_fill(~mask, 0.0).sum(1, keepdim=True) / count).masked_fill(~mask, 0.0)
    return centred / (centred.square().sum(1, keepdim=True) / count + epsilon).sqrt()


def reason_of(error: Exception) -> str:
    """The kind and the beginning of the text of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def build_encoder(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    options: Mapping[str, Any] | None = None,
    *,
    load: bool = True,
    configuration: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The encoder of a modality.

    Args:
        name: one of ENCODERS, or `package.module:Class`.
        kind: of the modality, one of KINDS.
        shape: of one sample of it.
        options: of COMMON and the encoder's own; text is converted to the option's type.
        load: False: weights are left random, because a checkpoint follows.
        configuration: what the encoder's attribute of that name was when it was first built.

    Returns:
        The module; its attribute `lr_factor` is set.

    Raises:
        ModelError: for an unknown name or option, an encoder that cannot take such input, or weights that are missing
            or do not fit.
    """
    entry = ENCODERS[name]
    takes = getattr(entry.source, "takes", KINDS)
    if kind not in takes:
        raise ModelError(
            f"the encoder {name} takes {' or '.join(sorted(takes))}, not {kind} of shape {list(shape)}; choose another "
            "one with --encoder"
        )
    known = replace(entry, options=COMMON | dict(entry.options))
    ENCODERS.check_options(known, options or {})
    values = {key: option.default for key, option in COMMON.items()}
    values |= {key: _converted(key, value, known.options[key]) for key, value in (options or {}).items()}
    arguments = {key: value for key, value in values.items() if key in entry.options}
    if "weights" in entry.options and (not load or "weights" not in (options or {})):
        arguments["weights"] = entry.options["weights"].default if load else "none"
    if configuration is not None:
        arguments["configuration"] = configuration
    elif not load and "configuration" in inspect.signature(entry.make).parameters:
        raise ModelError(f"the run lacks the configuration of its encoder {name}; train it again")
    try:
        encoder = ENCODERS.build(name, kind, shape, **arguments)
    except ModelError as error:
        raise ModelError(f"the encoder cannot be made for {kind} of shape {list(shape)}: {error}") from error
    if not isinstance(getattr(encoder, "width", None), int):
        raise ModelError(f"the encoder {name!r} must have an integer attribute `width`, the width of its output")
    if load and "weights" not in entry.options and values["weights"] != "none":
        load_weights(encoder, values["weights"])
    if not values["lr_factor"] > 0:
        raise ModelError(f"lr_factor must be above zero, found {values['lr_factor']}; to train nothing: frozen=true")
    encoder.lr_factor = values["lr_factor"]
    if values["frozen"]:
        encoder.requires_grad_(False)
    return encoder


def load_weights(encoder: nn.Module, file: str) -> None:
    """Load a file of the module's state_dict, .safetensors or of torch.save.

    Raises:
        ModelError: where it cannot be read or does not fit.
    """
    path = Path(file)
    if file == "pretrained" and not path.exists():
        raise ModelError(
            "weights=pretrained: this encoder has no pre-trained weights, those of timm:, hf: and torchaudio: have; "
            "give a file of the encoder's state_dict, or none"
        )
    if not path.is_file():
        raise ModelError(f"weights={file}: there is no such file; give a file of the encoder's state_dict, or none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        encoder.load_state_dict(state)
    except Exception as error:  # whatever broken bytes and other models raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"weights={file} do not fit the encoder or cannot be read: {reason}") from error


def _converted(key: str, value: Any, option: Option) -> Any:
    """Text as a value of an option; everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return converter(option.type)(value)
    except argparse.ArgumentTypeError as error:
        raise ModelError(f"the encoder option {key}: {error}") from error
