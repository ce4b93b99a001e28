"""Integration on a device without float64: the gradients of a CPU, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from integration.problems import LateFusion
from without_float64 import device_without_float64

from mmpareto.integration import Integrator, MetaBalance, MMPareto, OnFeatures, Pareto, TorchJDWeighting, Uniform
from mmpareto.integration.moving_averages import MovingAverages


@pytest.mark.parametrize(
    "make",
    [
        MMPareto,
        lambda: MMPareto(momentum=0.5),
        Pareto,
        MetaBalance,
        Uniform,
        lambda: TorchJDWeighting("upgrad"),
        lambda: OnFeatures(MMPareto()),
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-22, 1e22])
def test_gradients_are_those_of_a_cpu(make: Callable[[], Integrator], size: float) -> None:
    def step(device: torch.device) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        model = LateFusion(2, seed=0, opposed=True).float().to(device)
        inputs, label = model.batch(1)
        features = {name: encoder(inputs[name].float().to(device)) for name, encoder in model.encoders.items()}
        label = label.to(device)
        cross_entropy = torch.nn.functional.cross_entropy
        joint = cross_entropy(model.fusion(torch.cat(list(features.values()), 1)), (label + 1) % 3)
        unimodal = {name: size * cross_entropy(head(features[name]), label) for name, head in model.heads.items()}
        routine, arguments = make(), model.arguments()
        if isinstance(routine, OnFeatures):
            arguments["features"] = features
        diagnostics = routine.backward(joint, unimodal, diagnose=True, **arguments)
        return (
            {name: gradient.cpu() for name, gradient in model.gradients().items()},
            [value for of_encoder in diagnostics.values() for value in of_encoder],
        )

    expected, measured = step(torch.device("cpu"))
    with device_without_float64() as device:
        gradients, diagnostics = step(device)
    assert len(gradients) == len(expected) > 4
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    for value, other in zip(diagnostics, measured, strict=True):
        assert value.device.type == "cpu"
        assert torch.equal(value, other)


def test_the_made_up_device_refuses_float64_and_mixed_devices() -> None:
    with device_without_float64() as device:
        values = torch.ones(3, device=device)
        with pytest.raises(TypeError, match="no float64"):
            values.double()
        with pytest.raises(TypeError, match="no float64"):
            torch.zeros(3, dtype=torch.float64, device=device)
        with pytest.raises(RuntimeError, match="and on the CPU"):
            values * torch.ones(3)
        assert (2 * values).cpu().tolist() == [2, 2, 2]


def test_averages_that_were_restored_elsewhere_come_to_the_device() -> None:
    averages = MovingAverages(0.5)
    averages.load_state_dict({"x": torch.ones(2, 3)}, (3,), "norms")
    with device_without_float64() as device:
        moved = averages.update("x", torch.full((2, 3), 3.0).to(device))
    assert moved.device.type == device.type
    assert moved.tolist() == [[2.0] * 3] * 2
