"""A classifier so small that its Hessian can be written down, in float64, with batch norm in use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpareto.datasets import DeviceBatch
from mmpareto.models import LateFusion, MultimodalModel

SIZES = {"x": 4, "y": 3}
CLASSES = 3


class Encoder(nn.Sequential):
    """Linear, batch norm, tanh: smooth, so that derivatives can be compared to many digits."""

    def __init__(self, inputs: int, width: int = 3) -> None:
        super().__init__(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.Tanh())
        self.width = width


def make_model(seed: int = 0) -> MultimodalModel:
    torch.manual_seed(seed)
    model = LateFusion({name: Encoder(size) for name, size in SIZES.items()}, CLASSES).double()
    for encoder in model.encoders.values():
        for parameter in encoder[1].parameters():
            nn.init.normal_(parameter, 1.0, 0.3)
        encoder[1].running_mean.normal_()
        encoder[1].running_var.uniform_(0.5, 2.0)
    return model.eval()


def batches(count: int = 4, size: int = 8, seed: int = 1) -> list[DeviceBatch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        DeviceBatch(
            {name: torch.randn(size, width, generator=generator, dtype=torch.float64) for name, width in SIZES.items()},
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def joined(parts: list[DeviceBatch]) -> DeviceBatch:
    """All samples as one batch."""
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in SIZES}
    return DeviceBatch(inputs, torch.cat([part.label for part in parts]))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
