"""Gradients of any size, and of any ratio to one another, in float32: the result is that of float64."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from mmpareto.integration import (
    EncoderDiagnostics,
    Integrator,
    MetaBalance,
    MMPareto,
    Pareto,
    Uniform,
    gramian,
    minimum_norm_weights,
)
from mmpareto.methods import METHODS

SIZES = (1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e18)
SHAPES = ((3, 4), (5,), (2, 3, 2))


@pytest.fixture(params=["reads values", "never reads values"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU values may be read; with `never` the arithmetic is that of a GPU."""
    if request.param == "never reads values":
        monkeypatch.setattr(gramian, "_values_are_read", lambda device: False)


def step(
    routine: Integrator, joint: list[Tensor], unimodal: list[Tensor], scale: float = 1.0
) -> tuple[list[Tensor], EncoderDiagnostics]:
    """One backward call of an encoder whose two gradients are given, by losses that are linear in its parameters."""
    parameters = [torch.zeros_like(gradient, requires_grad=True) for gradient in joint]
    losses = [
        sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True)) * scale
        for gradients in (joint, unimodal)
    ]
    diagnostics = routine.backward(
        losses[0], {"a": losses[1]}, encoders={"a": parameters}, diagnose=True, loss_scale=torch.tensor(scale)
    )
    return [p.grad for p in parameters if p.grad is not None], diagnostics["a"]


def random_pair(seed: int, joint_size: float, unimodal_size: float) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    joint, unimodal = ([torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(2))
    if seed % 2:  # in conflict
        unimodal = [u - 0.5 * j for j, u in zip(joint, unimodal, strict=True)]
    return [j * joint_size for j in joint], [u * unimodal_size for u in unimodal]


def expected(kind: str, joint: list[Tensor], unimodal: list[Tensor]) -> list[np.ndarray]:
    """MMPareto and Pareto in plain float64; the squares of 1e-30 and 1e18 are within its range."""
    pairs = [(j.double().numpy(), u.double().numpy()) for j, u in zip(joint, unimodal, strict=True)]
    jj, ju, uu = (sum((pair[a] * pair[b]).sum() for pair in pairs) for a, b in ((0, 0), (0, 1), (1, 1)))
    a = min(max((uu - ju) / (jj - 2 * ju + uu), 0.0), 1.0)
    b = min(max((jj - ju) / (jj - 2 * ju + uu), 0.0), 1.0)
    if kind == "pareto":
        return [2 * a * j + 2 * b * u for j, u in pairs]
    if ju >= 0:
        return [1.5 * (j + u) for j, u in pairs]
    directions = [2 * a * j + 2 * b * u for j, u in pairs]
    sums = [j + u for j, u in pairs]
    if kind == "encoder":
        factor = max(1.0, (sum((s**2).sum() for s in sums) / sum((h**2).sum() for h in directions)) ** 0.5)
        return [1.5 * factor * h for h in directions]
    return [
        1.5 * max(1.0, np.linalg.norm(s.ravel()) / np.linalg.norm(h.ravel())) * h
        for s, h in zip(sums, directions, strict=True)
    ]


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("kind", ["tensor", "encoder", "pareto"])
def test_any_size_and_any_ratio_of_the_two_gradients(kind: str) -> None:
    conflicts = 0
    for joint_size, unimodal_size in itertools.product(SIZES, SIZES):
        for seed in range(4):
            joint, unimodal = random_pair(seed, joint_size, unimodal_size)
            routine = Pareto() if kind == "pareto" else MMPareto(rescale=kind)  # type: ignore[arg-type]
            gradients, diagnostics = step(routine, joint, unimodal)
            cosine = sum((j.double() * u.double()).sum() for j, u in zip(joint, unimodal, strict=True))
            assert bool(diagnostics.conflict) == bool(cosine < 0)
            conflicts += bool(diagnostics.conflict)
            for got, right in zip(gradients, expected(kind, joint, unimodal), strict=True):
                error = np.linalg.norm((got.double().numpy() - right).ravel())
                # the second term: a result below float32's smallest normal number is rounded to a multiple of 1.4e-45
                assert error <= 1e-5 * np.linalg.norm(right.ravel()) + 1e-44, (joint_size, unimodal_size, seed)
    assert 36 <= conflicts < 144


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("size", [1e-6, 1e-18, 1e-20, 1e-24, 1e-30, 1e-38])
def test_the_direction_does_not_depend_on_scale(size: float) -> None:
    """Joint [1, 0], unimodal u [-1, 1]: the direction is [0, 1], enlarged to the norm of the sum, times 1.5."""
    gradients, _ = step(MMPareto(), [torch.tensor([1.0, 0.0])], [torch.tensor([-size, size])])
    torch.testing.assert_close(gradients[0], torch.tensor([0.0, 1.5]), rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("_both_ways")
def test_parameter_tensors_of_very_different_size() -> None:
    """Each tensor's magnitude is restored from its own norms, whatever the others' are."""
    sizes = (1e18, 1.0, 1e-25)
    joint, unimodal = random_pair(1, 1.0, 1.0)
    joint, unimodal = ([g * s for g, s in zip(gs, sizes, strict=True)] for gs in (joint, unimodal))
    gradients, diagnostics = step(MMPareto(), joint, unimodal)
    assert diagnostics.conflict
    for got, right in zip(gradients, expected("tensor", joint, unimodal), strict=True):
        assert np.linalg.norm((got.double().numpy() - right).ravel()) <= 1e-5 * np.linalg.norm(right.ravel())


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3])
def test_nearly_opposed_gradients(angle: float) -> None:
    """What is left of two nearly opposed gradients is far below the rounding of a float32 Gramian."""
    joint = [torch.tensor([1.0, 0.0])]
    unimodal = [torch.tensor([-1.0, angle]) * 0.7]
    gradients, _ = step(MMPareto(), joint, unimodal)
    right = expected("tensor", joint, unimodal)[0]
    assert np.linalg.norm(gradients[0].double().numpy() - right) <= 1e-4 * np.linalg.norm(right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-38, 1.0, 1.1e38])
def test_minimum_norm_weights_of_gramians_near_the_limits_of_float32(size: float, dtype: torch.dtype) -> None:
    gramian_ = size * torch.tensor([[1.0, -0.8], [-0.8, 1.0]], dtype=dtype)
    weights = minimum_norm_weights(gramian_)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5], dtype=dtype))
    for routine, factor in ((Pareto(), 1.0), (MMPareto(), 1.5)):
        chosen = routine.coefficients(gramian_.unsqueeze(0))
        torch.testing.assert_close(chosen, torch.full((1, 2), factor, dtype=dtype), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rescale", ["tensor", "encoder"])
def test_exactly_opposed_gradients_of_equal_norm_give_zero(rescale: Literal["tensor", "encoder"]) -> None:
    """Up to rounding, where the published code gives NaN."""
    for size in SIZES:
        joint, _ = random_pair(0, size, 1.0)
        gradients, _ = step(MMPareto(rescale=rescale), joint, [-g for g in joint])
        for gradient, j in zip(gradients, joint, strict=True):
            assert gradient.norm() <= 1e-7 * j.norm()


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_both_ways_agree_with_plain_arithmetic(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    joint, unimodal = ([torch.randn(2, 3, 4, 4).to(dtype), torch.randn(5).to(dtype)] for _ in range(2))
    joint[0] = joint[0].to(memory_format=torch.channels_last)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    gram = gramian.gramians(joint, unimodal, torch.device("cpu"))
    for t, pair in enumerate(zip(joint, unimodal, strict=True)):
        for a, b in itertools.product(range(2), range(2)):
            product = (pair[a].to(wide) * pair[b].to(wide).conj()).sum().real
            assert gram[t, a, b].item() == pytest.approx(product.item(), rel=1e-5, abs=1e-5)
    forms = [(*j.shape, *j.stride()) for j in joint]
    kept = [(joint[0].clone(), unimodal[0].clone()), (joint[1].clone(), unimodal[1].clone())]
    kept += [(kept[0][0].clone(), None), (None, kept[0][1].clone()), (None, None)]
    chosen = torch.tensor([[0.3, -1.7], [2.0, 0.1], [0.5, 3.0], [3.0, 0.5], [1.0, 1.0]], dtype=torch.float64)
    right = [
        sum(c * g.to(wide) for c, g in zip(chosen[t], pair, strict=True) if g is not None)
        for t, pair in enumerate(kept)
    ]
    results = gramian.combine_all([*joint, kept[2][0], None, None], [*unimodal, None, kept[3][1], None], chosen)
    assert results[4] is None
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6)
    for result, expected_result, form in zip(results[:4], right[:4], [*forms, None, None], strict=True):
        assert result is not None
        assert result.dtype == dtype
        assert form is None or (*result.shape, *result.stride()) == form
        assert (result.to(wide) - expected_result).abs().max() <= tolerance * expected_result.abs().max()


@pytest.mark.parametrize("method", ["metabalance", "pcd", "cr_mogm", "gradvac", "mmpareto"])
def test_a_changing_loss_scale_changes_nothing_but_the_scale(method: str) -> None:
    """As a gradient scaler's, which grows and shrinks by powers of two while a routine remembers norms."""
    plain, scaled = (METHODS.build(method) for _ in range(2))
    for number, scale in enumerate((1.0, 2.0**16, 2.0**15, 2.0**15, 2.0**17)):
        joint, unimodal = random_pair(number, 1.0 + number, 3.0)
        gradients, diagnostics = step(plain, joint, unimodal)
        scaled_gradients, scaled_diagnostics = step(scaled, joint, unimodal, scale)
        for mine, theirs in zip(scaled_gradients, gradients, strict=True):
            torch.testing.assert_close(mine / scale, theirs, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(scaled_diagnostics.joint_norm, diagnostics.joint_norm, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("_both_ways")
def test_metabalance_of_very_unequal_norms() -> None:
    joint, unimodal = random_pair(1, 1e18, 1e-30)
    gradients, _ = step(MetaBalance(relax=1.0), joint, unimodal)
    for got, j, u in zip(gradients, joint, unimodal, strict=True):
        right = j.double() + u.double() * j.double().norm() / u.double().norm()
        assert (got.double() - right).norm() <= 1e-5 * right.norm()


def test_an_autocast_region_around_backward_changes_nothing() -> None:
    joint, unimodal = random_pair(1, 1.0, 1.0)
    gradients, _ = step(MMPareto(), joint, unimodal)
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = step(MMPareto(), joint, unimodal)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_the_plain_sum_of_very_unequal_gradients_is_the_plain_sum() -> None:
    joint, unimodal = random_pair(1, 1e18, 1e-30)
    gradients, _ = step(Uniform(), joint, unimodal)
    assert all(torch.equal(g, j + u) for g, j, u in zip(gradients, joint, unimodal, strict=True))
