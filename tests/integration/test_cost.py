"""What a step costs: passes, waits for the device, gradient sets alive."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integration.problems import LateFusion
from torch import Tensor, nn

from mmpareto.benchmarks.counting import Calls
from mmpareto.integration import Integrator, MMPareto, OneJoint, Pareto, Uniform
from mmpareto.methods import METHODS

ROUTINES = [OneJoint(), Uniform(), Uniform(1.5), Pareto(), MMPareto(), MMPareto(rescale="encoder")]


class Convolutional(nn.Module):
    """M encoders of two convolutions."""

    def __init__(self, modalities: int) -> None:
        super().__init__()
        names = [f"m{i}" for i in range(modalities)]
        self.encoders = nn.ModuleDict(
            {n: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()) for n in names}
        )
        self.fusion = nn.Linear(modalities * 64, 3)
        self.heads = nn.ModuleDict({n: nn.Linear(64, 3) for n in names})

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.fusion.weight.device
        features = {name: encoder(torch.randn(5, 2, 8, 8, device=device)) for name, encoder in self.encoders.items()}
        label = torch.tensor([0, 1, 2, 0, 1], device=device)
        joint = F.cross_entropy(self.fusion(torch.cat(list(features.values()), 1)), label)
        return joint, {name: F.cross_entropy(self.heads[name](f), label) for name, f in features.items()}

    def arguments(self) -> dict[str, Any]:
        return {"encoders": dict(self.encoders.items()), "heads": [*self.fusion.parameters(), *self.heads.parameters()]}


def test_the_counter_counts() -> None:
    with Calls() as calls:
        x = torch.ones(3)
        x.sum().item()
        bool(x[0] > 0)
    assert calls.waits == 2


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("routine", ROUTINES, ids=lambda r: f"{type(r).__name__}-{getattr(r, 'rescale', '')}")
def test_passes_and_waits(routine: Integrator, modalities: int) -> None:
    model = Convolutional(modalities)
    with Calls() as plain:
        joint, unimodal = model.losses()
        (joint + sum(unimodal.values())).backward()
    assert plain.operators["convolution_backward"] == 2 * modalities
    with Calls() as calls:
        routine.backward(*model.losses(), **model.arguments())
    assert calls.operators["convolution_backward"] == routine.passes * 2 * modalities
    assert calls.waits == 0
    with Calls() as calls:  # and accumulated, and with the diagnostics of the one-pass routines
        routine.accumulate(*model.losses(), **model.arguments(), diagnose=True)
        diagnostics = routine.backward(*model.losses(), **model.arguments(), diagnose=True)
    assert diagnostics.keys() == model.encoders.keys()
    assert calls.operators["convolution_backward"] == 2 * 2 * 2 * modalities
    assert calls.waits == 0


@pytest.mark.parametrize("routine", ROUTINES, ids=lambda r: f"{type(r).__name__}-{getattr(r, 'rescale', '')}")
def test_a_whole_step_asks_for_no_value(routine: Integrator) -> None:
    """On the meta device no tensor has values: what the counter cannot see on a CPU (.cpu(), .tolist()) fails here."""
    model = Convolutional(3).to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        routine.accumulate(*model.losses(), **model.arguments(), diagnose=True)
        diagnostics = routine.backward(*model.losses(), **model.arguments(), diagnose=True)
        optimizer.step()
    assert all(value.is_meta for of_encoder in diagnostics.values() for value in of_encoder)
    routine.backward(*model.losses(), **model.arguments())
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


def test_torchjd_weightings_do_wait_and_say_so() -> None:
    model = Convolutional(2)
    routine = METHODS.build("upgrad")
    with Calls() as calls:
        routine.backward(*model.losses(), **model.arguments())
    assert calls.waits > 0
    assert "wait for the device" in (type(routine).__doc__ or "")
    with pytest.raises(RuntimeError, match="meta tensors"):
        routine.backward(*model.to("meta").losses(), **model.arguments())


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_alive_beside_those_of_the_model(micro_batches: int) -> None:
    """Counted where most of them are alive: when the coefficients are chosen, and after the step."""
    model = LateFusion(3, seed=0)
    sizes = {p.shape for p in model.encoders.parameters()}
    bytes_of = [sum(p.nbytes for p in encoder.parameters()) for encoder in model.encoders.values()]
    bytes_of_a_set = sum(bytes_of)
    # of whole passes two sets; encoder by encoder those that are integrated, and both gradients of the one in turn
    expected = 2 * bytes_of_a_set if micro_batches == 2 else max(sum(bytes_of[: k + 1]) + bytes_of[k] for k in range(3))

    def alive() -> int:
        gc.collect()
        of_model = {p.data_ptr() for p in model.parameters()} | {
            p.grad.data_ptr() for _, p in model.others if p.grad is not None
        }
        tensors = {t.data_ptr(): t.nbytes for t in gc.get_objects() if type(t) is Tensor and t.shape in sizes}
        return sum(size for pointer, size in tensors.items() if pointer not in of_model)

    class Watching(MMPareto):
        def coefficients(self, gramians: Tensor) -> Tensor:
            peaks.append(alive())
            return super().coefficients(gramians)

    peaks: list[int] = []
    inputs, label = model.batch(0)
    routine = Watching()
    if micro_batches == 2:
        routine.accumulate(*model.losses(inputs, label), **model.arguments())
    losses = model.losses(inputs, label)
    before = alive() - (2 * bytes_of_a_set if micro_batches == 2 else 0)
    routine.backward(*losses, **model.arguments())
    assert 0.95 * expected <= max(peaks) - before <= expected
    del losses
    assert alive() - before <= bytes_of_a_set + sum(t.nbytes for t in inputs.values())
