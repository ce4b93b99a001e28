"""A small convolutional encoder."""

from typing import Literal

from torch import nn

from mmpareto.models.encoders.base import ENCODERS, IMAGES, ConvolutionalEncoder, channels


@ENCODERS.register("cnn")
class ConvEncoder(nn.Sequential, ConvolutionalEncoder):
    """Small convolutional encoder for images of about 28 x 28 pixels, D = 64.

    [B, channels, H, W] -> [B, 64]: four 3x3 convolutions (16, 32 with stride 2, 64 with stride 2, 64), each with batch
    norm and ReLU, then pooling. Tokens are the positions of the last feature map.

    Args:
        kind: "image" or "spectrogram".
        shape: of one sample.
        pooling: of the positions.
    """

    takes = IMAGES
    width = 64
    stage_widths = (16, 32, 64, 64)

    def __init__(self, kind: str, shape: tuple[int, ...], pooling: Literal["mean", "max"] = "mean") -> None:
        layers: list[nn.Module] = []
        inputs = channels(kind, shape)
        for outputs, stride in ((16, 1), (32, 2), (64, 2), (64, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        pool = nn.AdaptiveAvgPool2d(1) if pooling == "mean" else nn.AdaptiveMaxPool2d(1)
        super().__init__(*layers, pool, nn.Flatten())
        self.pooling = pooling

    def stages(self) -> list[nn.Module]:
        """Convolution, batch norm and ReLU, four times."""
        layers = list(self.children())
        return [nn.Sequential(*layers[start : start + 3]) for start in range(0, 12, 3)]
