"""torchvision's ResNets, trained from scratch."""

from functools import partial
from typing import Literal

from torch import Tensor, nn

from mmpareto.inputs import Input, values_of
from mmpareto.models.encoders.base import ENCODERS, ConvolutionalEncoder, by_sample, channels, images


class ResNetEncoder(ConvolutionalEncoder):
    """A torchvision ResNet without its classifier, its stem fitted to the input's channels.

    Tokens are the positions of the last feature map, those of all frames one after the other.

    Args:
        name: "resnet18" (D = 512, as in Wei & Hu, ICML 2024), "resnet34", "resnet50", "resnet101".
        kind: "spectrogram" [B, 1, L, M], "image" [B, C, H, W], or "frames" [B, F, C, H, W], whose features are averaged
            over the frames.
        shape: of one sample.
        pooling: of the positions of an image.
    """

    takes = frozenset({"image", "spectrogram", "frames"})

    def __init__(self, name: str, kind: str, shape: tuple[int, ...], pooling: Literal["mean", "max"] = "mean") -> None:
        super().__init__()
        import torchvision  # takes two seconds to import, which small encoders need not spend

        network = torchvision.models.get_model(name, weights=None)
        inputs = channels(kind, shape)
        if inputs != 3:
            stem = nn.Conv2d(inputs, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does it
            network.conv1 = stem
        if pooling == "max":
            network.avgpool = nn.AdaptiveMaxPool2d(1)
        self.pooling = pooling
        self.width: int = network.fc.in_features
        network.fc = nn.Identity()
        self.network = network

    @property
    def stage_widths(self) -> tuple[int, ...]:  # type: ignore[override]
        """Channels after each of the four stages."""
        return tuple(self.width // factor for factor in (8, 4, 2, 1))

    def stages(self) -> list[nn.Module]:
        """The stem with the first group of blocks, and the three other groups."""
        net = self.network
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        return [stem, net.layer2, net.layer3, net.layer4]

    def forward(self, x: Input) -> Tensor:
        """[B, channels, H, W] or [B, F, channels, H, W] -> [B, D]."""
        return by_sample(self.network(images(x)), values_of(x).shape[0])


ENCODERS.register("resnet18", summary="torchvision's ResNet-18, trained from scratch")(
    partial(ResNetEncoder, "resnet18")
)
ENCODERS.register("resnet34", summary="torchvision's ResNet-34, trained from scratch")(
    partial(ResNetEncoder, "resnet34")
)
ENCODERS.register("resnet50", summary="torchvision's ResNet-50, trained from scratch")(
    partial(ResNetEncoder, "resnet50")
)
ENCODERS.register("resnet101", summary="torchvision's ResNet-101, trained from scratch")(
    partial(ResNetEncoder, "resnet101")
)
