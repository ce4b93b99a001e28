"""Encoders: one modality's input -> a feature vector per sample.

Shapes: B batch, F frames of a clip, L audio frames, M mel bins, H x W pixels, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mmpareto.importing import class_at


class ModelError(ValueError):
    """A model cannot be built as asked; the message says what was found and what is possible."""


class ConvEncoder(nn.Sequential):
    """Small convolutional encoder for images of about 28 x 28 pixels: [B, channels, H, W] -> [B, 64].

    Four 3x3 convolutions (16, 32 with stride 2, 64 with stride 2, 64), each with batch norm and ReLU, average pooling.
    """

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        for width, stride in ((16, 1), (32, 2), (64, 2), (64, 1)):
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = channels


class PMREncoder(nn.Sequential):
    """The encoder of PMR (Fan et al., CVPR 2023) for coloured-and-gray MNIST: [B, channels, H, W] -> [B, 512].

    Batch norm, convolutions 5x5 (32), 3x3 (32), 3x3 with stride 2 (64) and 3x3 (64), ReLU after each, 3x3 max pooling
    with stride 2 after the first, average pooling, and a linear map to 512.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 512),
        )
        self.features = 512


class ResNetEncoder(nn.Module):
    """A torchvision ResNet without its classifier, trained from scratch, its stem fitted to the input's channels.

    name      "resnet18" (D = 512, as in Wei & Hu, ICML 2024), "resnet34", "resnet50", ...
    channels  of the input: 1 for a spectrogram [B, 1, L, M], 3 for images [B, 3, H, W] and frames [B, F, 3, H, W],
              whose features are averaged over the frames.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        import torchvision  # takes two seconds to load, which small encoders need not spend

        network = torchvision.models.get_model(name, weights=None)
        if channels != 3:
            stem = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does it
            network.conv1 = stem
        self.features: int = network.fc.in_features
        network.fc = nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] or [B, F, channels, H, W] -> [B, D]."""
        if x.dim() == 4:
            return self.network(x)
        batch, frames = x.shape[:2]
        return self.network(x.flatten(0, 1)).view(batch, frames, -1).mean(1)


class MLPEncoder(nn.Sequential):
    """Two linear layers with a ReLU between, for inputs that are feature vectors already: [B, inputs] -> [B, 512]."""

    def __init__(self, inputs: int) -> None:
        super().__init__(nn.Linear(inputs, 512), nn.ReLU(inplace=True), nn.Linear(512, 512))
        self.features = 512


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
ENCODERS = ("cnn", "pmr", *RESNETS, "mlp")


def default_encoder(kind: str, shape: tuple[int, ...]) -> str:
    """The encoder where none is chosen: `mlp` for vectors, `cnn` for images up to 32 x 32 pixels, else `resnet18`."""
    if kind == "vector":
        return "mlp"
    return "cnn" if kind == "image" and max(shape[-2:]) <= 32 else "resnet18"


def build_encoder(name: str, kind: str, shape: tuple[int, ...]) -> nn.Module:
    """The encoder of a modality: a module with the attribute `features`, its output width D.

    name   one of ENCODERS, or `package.module:Class`: a torch.nn.Module that is made of the modality's kind and shape.
    kind   "image", "frames", "spectrogram" or "vector".
    shape  of one sample of it.

    Raises ModelError for an unknown name or an encoder that cannot take such input.
    """
    if ":" in name:
        return _foreign(name, kind, shape)
    lowered = name.lower()
    if lowered not in ENCODERS:
        raise ModelError(f"unknown encoder {name!r:.100}; known: {', '.join(ENCODERS)}, or package.module:Class")
    small = ("image", "spectrogram")
    takes = {"mlp": ("vector",), "cnn": small, "pmr": small}.get(lowered, (*small, "frames"))
    if kind not in takes:
        raise ModelError(f"the encoder {lowered} takes {' or '.join(takes)}, not {kind} of shape {list(shape)}")
    if lowered == "mlp":
        return MLPEncoder(shape[0])
    channels = shape[1] if kind == "frames" else shape[0]
    if lowered in ("cnn", "pmr"):
        return ConvEncoder(channels) if lowered == "cnn" else PMREncoder(channels)
    return ResNetEncoder(lowered, channels)


def _foreign(name: str, kind: str, shape: tuple[int, ...]) -> nn.Module:
    try:
        make: Callable[..., nn.Module] = class_at(name, nn.Module)
    except ValueError as error:
        raise ModelError(f"the encoder {error}") from error
    try:
        encoder = make(kind, shape)
    except TypeError as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"the encoder {name!r} cannot be made for {kind} of shape {list(shape)}: {first}") from error
    if not isinstance(getattr(encoder, "features", None), int):
        raise ModelError(f"the encoder {name!r} must have an integer attribute `features`, its width")
    return encoder
