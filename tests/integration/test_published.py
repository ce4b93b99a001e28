"""Our two passes against the published procedure's four, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from integration import published
from integration.problems import LateFusion
from torch import nn

from mmpareto import models
from mmpareto.integration import MMPareto

CASES = [
    (seed, 2 + seed % 3, bool(seed % 2), "tensor" if seed % 4 < 2 else "encoder", (1.0, 1.5, 2.0)[seed % 3])
    for seed in range(72)
]


def close(mine: torch.Tensor, theirs: np.ndarray) -> None:
    scale = np.linalg.norm(theirs)
    assert np.linalg.norm(mine.numpy() - theirs) <= 1e-12 * max(scale, 1e-300)


def test_same_gradients_as_the_published_procedure() -> None:
    counts = {True: 0, False: 0}
    for seed, modalities, opposed, rescale, gamma in CASES:
        model = LateFusion(modalities, seed, opposed)
        inputs, label = model.batch(seed + 1000)
        parameters = {name: list(encoder.parameters()) for name, encoder in model.encoders.items()}
        heads = [p for _, p in model.others]
        encoder_truth, head_truth, conflicts = published.step(
            *model.losses(inputs, label), parameters, heads, gamma, rescale
        )
        integrator = MMPareto(gamma=gamma, rescale=rescale)
        diagnostics = integrator.backward(*model.losses(inputs, label), **model.arguments())
        for name in parameters:
            counts[conflicts[name]] += 1
            assert bool(diagnostics[name].conflict) == conflicts[name]
            for parameter, truth in zip(parameters[name], encoder_truth[name], strict=True):
                close(parameter.grad, truth)
        for parameter, truth in zip(heads, head_truth, strict=True):
            close(parameter.grad, truth)
    assert min(counts.values()) >= 40  # both branches really ran


class SmallResNet(nn.Module):
    """The first two stages of a ResNet-18 with 8 channels, its batch norms included."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        block = torchvision.models.resnet.BasicBlock
        down = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
        self.width = 16
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), block(8, 8),
            block(8, 16, stride=2, downsample=down), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("rescale", ["tensor", "encoder"])
def test_same_weights_after_20_steps_of_sgd(rescale: str) -> None:
    torch.manual_seed(3)
    ours = models.LateFusion({"audio": SmallResNet(1), "visual": SmallResNet(3)}, 4).double()
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    optimizers = [torch.optim.SGD(model.parameters(), **settings) for model in (ours, theirs)]
    integrator = MMPareto(gamma=1.5, rescale=rescale)
    conflicts = 0
    for _ in range(20):
        inputs = {"audio": torch.randn(6, 1, 8, 8).double(), "visual": torch.randn(6, 3, 8, 8).double()}
        label = torch.randint(4, (6,))
        steps = []
        for model in (ours, theirs):
            output = model(inputs)
            steps.append(
                (
                    F.cross_entropy(output.joint, label),
                    {n: F.cross_entropy(z, label) for n, z in output.unimodal.items()},
                )
            )
        encoders, heads = ours.partition()
        integrator.backward(*steps[0], encoders=encoders, heads=heads)
        parameters = {name: list(encoder.parameters()) for name, encoder in theirs.encoders.items()}
        others = [p for _, p in theirs.partition()[1]]
        integrated, head_gradients, conflicting = published.step(*steps[1], parameters, others, 1.5, rescale)
        conflicts += sum(conflicting.values())
        for name, tensors in parameters.items():
            for parameter, gradient in zip(tensors, integrated[name], strict=True):
                parameter.grad = torch.from_numpy(gradient)
        for parameter, gradient in zip(others, head_gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        for optimizer in optimizers:
            optimizer.step()
    assert conflicts > 0
    for mine, truth in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, truth, rtol=1e-9, atol=1e-12)
