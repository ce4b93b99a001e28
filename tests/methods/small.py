"""A small model and batches for tests of methods; float64, no batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpareto.methods import Method, Piece, build_method, cross_entropies
from mmpareto.models import MultimodalModel, build_model
from mmpareto.models.encoders.base import ConvolutionalEncoder
from mmpareto.models.mmtm import MMTM

CLASSES = 3
SHAPES = {"x": (6,), "y": (4,), "z": (5,)}


class Row(ConvolutionalEncoder):
    """Two stages on an image of one row."""

    width, stage_widths = 6, (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, (1, 3), padding=(0, 1)), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), nn.Tanh())

    def stages(self) -> list[nn.Module]:
        return [self.first, self.second]


def make(name: str, modalities: int = 2, seed: int = 0, **options: Any) -> tuple[Method, MultimodalModel]:
    """A method that is set up, and its model."""
    method = build_method(name, **options)
    torch.manual_seed(seed)
    about = {m: ("vector", shape) for m, shape in list(SHAPES.items())[:modalities]}
    if method.architecture == "mmtm":
        model: MultimodalModel = MMTM({m: Row() for m in about}, CLASSES, method.fusion).double()
    else:
        architecture = method.architecture or "late_fusion"
        model = build_model(about, CLASSES, dict.fromkeys(about, "mlp"), method.fusion, architecture).double()
    method.setup(model, seed, 4)
    return method, model


def batch(model: MultimodalModel, size: int = 8, seed: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    """Random inputs and labels for a model."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {m: torch.randn(size, *SHAPES[m], generator=generator).double() for m in model.encoders}
    if isinstance(model, MMTM):
        inputs = {m: value.view(size, 1, 1, -1) for m, value in inputs.items()}
    return inputs, torch.randint(CLASSES, (size,), generator=generator)


def gradients(method: Method, model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor) -> dict[str, Tensor]:
    """{parameter: gradient} after the method's own way through one batch, without the optimiser; of several turns the
    last in which the parameter learns.
    """
    output = model(inputs)
    encoders, heads = model.partition()
    result = {}
    for turn, learning in enumerate(method.turns):
        if turn:
            output = model.from_features(output.features, None)
        losses = method.losses(Piece(output, label, cross_entropies(output, label), 1.0, inputs, turn))
        method.integrator.backward(losses.joint, losses.unimodal, encoders=encoders, heads=heads)
        method.gradients(model)
        for name, p in model.named_parameters():
            if p.grad is not None and (learning is None or name.startswith(learning)):
                result[name] = p.grad.clone()
    return result


def t(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(values: Tensor, expected: object) -> None:
    torch.testing.assert_close(values, t(expected), rtol=0, atol=1e-6)
