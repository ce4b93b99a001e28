"""torchvision's ResNets, trained from scratch."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from mmpareto.models.encoders.base import ENCODERS, channels


class ResNetEncoder(nn.Module):
    """A torchvision ResNet without its classifier, its stem fitted to the input's channels.

    Args:
        name: "resnet18" (D = 512, as in Wei & Hu, ICML 2024), "resnet34", "resnet50", "resnet101".
        kind: "spectrogram" [B, 1, L, M], "image" [B, C, H, W], or "frames" [B, F, C, H, W], whose features are averaged
            over the frames.
        shape: of one sample.
    """

    takes = frozenset({"image", "spectrogram", "frames"})

    def __init__(self, name: str, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        import torchvision  # takes two seconds to import, which small encoders need not spend

        network = torchvision.models.get_model(name, weights=None)
        inputs = channels(kind, shape)
        if inputs != 3:
            stem = nn.Conv2d(inputs, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does it
            network.conv1 = stem
        self.width: int = network.fc.in_features
        network.fc = nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] or [B, F, channels, H, W] -> [B, D]."""
        if x.dim() == 4:
            return self.network(x)
        batch, frames = x.shape[:2]
        return self.network(x.flatten(0, 1)).view(batch, frames, -1).mean(1)


for _layers in (18, 34, 50, 101):
    _make = partial(ResNetEncoder, f"resnet{_layers}")
    _make.takes = ResNetEncoder.takes  # type: ignore[attr-defined]
    ENCODERS.register(f"resnet{_layers}", summary=f"torchvision's ResNet-{_layers}, trained from scratch")(_make)
