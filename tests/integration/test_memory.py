"""Gradients in memory that several parameters share, stale gradients, and other forms that autograd gives `.grad`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integration.problems import ROUTINES, LateFusion
from torch import Tensor, nn

from mmpareto.integration import MMPareto, OnFeatures, TorchJDWeighting, Uniform
from mmpareto.integration.gramian import combine, gramians
from mmpareto.methods import METHODS


class Positions(nn.Module):
    """Two parameters whose gradients autograd keeps in one piece of memory; with `once` in two."""

    def __init__(self, once: bool, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(width)) for _ in range(2))
        self.map = nn.Linear(width, 4)
        self.once = once

    def forward(self, x: Tensor) -> Tensor:
        b = self.b * 1 if self.once else self.b
        return torch.tanh(self.map(x + (self.a.view(1, -1) + b.view(1, -1))))


def positions(once: bool, in_heads: bool = False) -> LateFusion:
    torch.manual_seed(0)
    encoders = [nn.Linear(5, 4) if in_heads else Positions(once, 5), nn.Linear(6, 4)]
    model = LateFusion(2, seed=1, opposed=True, encoders=encoders)
    if in_heads:
        torch.manual_seed(0)
        model.fusion = nn.Sequential(Positions(once, 8), nn.Linear(4, 3)).double()  # type: ignore[assignment]
        model.heads["m0"] = nn.Sequential(Positions(once), nn.Linear(4, 3)).double()
    return model


def step(model: LateFusion, integrate: Callable[..., Any]) -> dict[str, Tensor]:
    integrate(*model.losses(*model.batch(0)), **model.arguments())
    return model.gradients()


def assert_apart(model: nn.Module) -> None:
    places = [p.grad.data_ptr() for p in model.parameters() if p.grad is not None]
    assert len(set(places)) == len(places)


def test_autograd_shares_memory_here() -> None:
    """Else the tests below could not fail."""
    model = positions(once=False)
    model.losses(*model.batch(0))[0].backward()
    shared = model.encoders["m0"]
    assert shared.a.grad.data_ptr() == shared.b.grad.data_ptr()


@pytest.mark.parametrize("in_heads", [False, True], ids=["encoders", "heads"])
@pytest.mark.parametrize("name", [*ROUTINES, "control", "features"])
def test_parameters_whose_gradients_share_memory(name: str, in_heads: bool) -> None:
    results = []
    for once in (True, False):
        model = positions(once, in_heads)
        torch.manual_seed(3)  # of drawn weights
        routine = {"control": lambda: Uniform(1.5), "features": lambda: OnFeatures(MMPareto())}.get(
            name, lambda: METHODS.build(name)
        )()
        if name == "features":
            inputs, label = model.batch(0)
            features = {key: encoder(inputs[key]) for key, encoder in model.encoders.items()}
            joint = F.cross_entropy(model.fusion(torch.cat([*features.values()], 1)), (label + 1) % 3)
            own = {key: F.cross_entropy(head(features[key]), label) for key, head in model.heads.items()}
            routine.backward(joint, own, **model.arguments(), features=features)
            results.append(model.gradients())
        else:
            results.append(step(model, routine.backward))
        assert_apart(model)
    for key, expected in results[0].items():
        assert torch.allclose(results[1][key], expected, rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("name", ["mmpareto", "uniform"])
def test_micro_batches_add_to_memory_of_each_parameters_own(name: str) -> None:
    results = []
    for once in (True, False):
        model, routine = positions(once), METHODS.build(name)
        for seed in (0, 1):
            routine.accumulate(*model.losses(*model.batch(seed)), **model.arguments())
        results.append(step(model, routine.backward))
    for key, expected in results[0].items():
        assert torch.allclose(results[1][key], expected, rtol=1e-9, atol=1e-12), key


def test_slices_of_one_tensor_are_not_copied() -> None:
    """The gradients of what is concatenated are parts of one gradient, none of which another one has."""
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))
    MMPareto().backward(
        (torch.cat((a, b)) * torch.arange(6.0)).sum() + (x * y).sum(),
        [(torch.cat((a, b)) * torch.arange(6.0)).sum()],
        encoders={"one": [a, b]},
        heads=[x, y],
    )
    assert a.grad is not None
    assert b.grad is not None
    assert b.grad.data_ptr() == a.grad.data_ptr() + 12
    assert torch.equal(torch.cat((a.grad, b.grad)), 1.5 * 2 * torch.arange(6.0))


@pytest.mark.parametrize("name", ROUTINES)
def test_a_parameter_that_is_frozen_between_steps_stays(name: str) -> None:
    model, routine = LateFusion(2, seed=0, opposed=True), METHODS.build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frozen = [model.encoders["m0"][0].weight, model.heads["m1"].weight]
    for _ in range(2):
        step(model, routine.backward)
        before = [p.detach().clone() for p in frozen]
        optimizer.step()
        for parameter in frozen:
            parameter.requires_grad_(False)
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(frozen, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("both", [False, True])
def test_a_gradient_without_dimensions(dtype: torch.dtype, both: bool) -> None:
    for size in (1.5, 1.5e35):
        joint, unimodal = (torch.tensor(value, dtype=dtype) for value in (2.0, 0.5))
        result = combine(joint, unimodal if both else None, torch.tensor([size, size], dtype=torch.float64))
        expected = torch.tensor(size * (2.5 if both else 2.0), dtype=torch.float64).to(dtype)
        assert result is not None
        assert result.shape == ()
        assert torch.equal(result, expected)


def test_a_conjugate_gradient_is_scaled() -> None:
    gradients = []
    for routine in (Uniform(1.5), Uniform()):
        torch.manual_seed(0)
        weight = torch.randn(3, dtype=torch.complex128, requires_grad=True)
        z = weight.conj() * torch.randn(3, dtype=torch.complex128)
        routine.backward(z.real.square().sum(), [z.imag.square().sum()], encoders={"one": [weight]})
        assert weight.grad is not None
        gradients.append(weight.grad.resolve_conj())
    assert torch.allclose(gradients[0], 1.5 * gradients[1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_additions_of_nested_tensors_are_no_places_to_cut() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(5, 5) for _ in range(24))
            self.last = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            values = torch.nested.as_nested_tensor([row.unsqueeze(0) for row in x])
            for layer in self.maps:
                values = values + torch.relu(layer(values))
            return self.last(torch.nested.to_padded_tensor(values, 0.0).mean(1))

    model = LateFusion(2, seed=0, encoders=[Nested(), nn.Linear(6, 4)])
    expected = step(model, Uniform().backward)
    result = step(model, METHODS.build("mmpareto", gamma=1.0).backward)
    assert result.keys() == expected.keys()
    assert all(value.isfinite().all() for value in result.values())


@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-5])
def test_aligned_mtl_of_nearly_parallel_gradients(distance: float) -> None:
    """Its weights follow the smallest eigenvalue, which products in float32 would lose."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1000, generator=generator)
    second = first * (1 + distance) + distance * torch.randn(1000, generator=generator)
    gradients: list[Tensor] = []
    for dtype in (torch.float32, torch.float64):
        weight = torch.zeros(1000, dtype=dtype, requires_grad=True)
        losses = (weight @ first.to(dtype), [weight @ second.to(dtype)])
        TorchJDWeighting("aligned_mtl").backward(*losses, encoders={"one": [weight]})
        assert weight.grad is not None
        gradients.append(weight.grad.double())
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=0)
    results = []
    for dtype in (torch.float32, torch.float64):
        weight = torch.ones(1000, dtype=dtype, requires_grad=True)
        feature = weight * 1
        losses = (feature @ first.to(dtype), [feature @ second.to(dtype)])
        OnFeatures(TorchJDWeighting("aligned_mtl")).backward(
            *losses, encoders={"one": [weight]}, features={"one": feature}
        )
        assert weight.grad is not None
        results.append(weight.grad.double())
    assert torch.allclose(results[0], results[1], rtol=1e-5, atol=0)
    exact = gramians([first], [second], first.device, exact=True)
    assert torch.equal(exact, gramians([first.double()], [second.double()], first.device))
