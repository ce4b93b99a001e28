"""The encoder of PMR for coloured-and-gray MNIST."""

from torch import nn

from mmpareto.models.encoders.base import ENCODERS, IMAGES, channels


@ENCODERS.register("pmr")
class PMREncoder(nn.Sequential):
    """The encoder of PMR (Fan et al., CVPR 2023) for coloured-and-gray MNIST, D = 512.

    [B, channels, H, W] -> [B, 512]: batch norm, convolutions 5x5 (32), 3x3 (32), 3x3 with stride 2 (64) and 3x3 (64),
    ReLU after each, 3x3 max pooling with stride 2 after the first, average pooling, and a linear map to 512.
    """

    takes = IMAGES
    width = 512

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        inputs = channels(kind, shape)
        super().__init__(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, 32, 5, padding=2),
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
            nn.Linear(64, self.width),
        )
