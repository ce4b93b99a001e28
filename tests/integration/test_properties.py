"""Mathematical properties of the routines, over gradients of every kind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmpareto.integration import MMPareto, OneJoint, Pareto, Uniform, diagnose, minimum_norm_weights
from mmpareto.integration.gramian import combine, gramians

SHAPES = [(3, 4), (5,), (2, 2, 3), (1,), (40, 30)]
ROUTINES = [OneJoint(), Uniform(), Uniform(1.5), Pareto(), MMPareto(), MMPareto(rescale="encoder"), MMPareto(gamma=1.0)]


def pair(kind: str, seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Joint and unimodal gradients of an encoder with the tensors SHAPES."""
    generator = torch.Generator().manual_seed(seed)
    joint, unimodal = ([torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES] for _ in range(2))
    if kind == "conflict":
        unimodal = [0.5 * u - (0.3 + 0.2 * (seed % 7)) * j for j, u in zip(joint, unimodal, strict=True)]
    elif kind == "agreement":
        unimodal = [0.5 * u + j for j, u in zip(joint, unimodal, strict=True)]
    elif kind == "parallel":
        unimodal = [2.0 * j for j in joint]
    elif kind == "equal":
        unimodal = [j.clone() for j in joint]
    elif kind == "opposed":
        unimodal = [-j for j in joint]
    elif kind == "opposed, unequal":
        unimodal = [-3.0 * j for j in joint]
    elif kind == "joint zero":
        joint = [torch.zeros_like(j) for j in joint]
    elif kind == "unimodal zero":
        unimodal = [torch.zeros_like(u) for u in unimodal]
    elif kind == "both zero":
        joint, unimodal = [torch.zeros_like(j) for j in joint], [torch.zeros_like(u) for u in unimodal]
    elif kind == "one tensor only":
        joint[1:] = [torch.zeros_like(j) for j in joint[1:]]
    elif kind == "much smaller":
        unimodal = [1e-6 * (u - j) for j, u in zip(joint, unimodal, strict=True)]
    return joint, unimodal


KINDS = [
    "random", "conflict", "agreement", "parallel", "equal", "opposed", "opposed, unequal", "joint zero",
    "unimodal zero", "both zero", "one tensor only", "much smaller",
]  # fmt: skip
SCALES = [1.0, 1e-20, 1e15]


def integrate(routine: object, joint: list[Tensor], unimodal: list[Tensor]) -> list[Tensor]:
    gram = gramians(joint, unimodal, torch.device("cpu"))
    chosen = routine.coefficients(gram)  # type: ignore[attr-defined]
    assert chosen.shape == (len(joint), 2)
    return [combine(j.clone(), u.clone(), c) for j, u, c in zip(joint, unimodal, chosen, strict=True)]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def cases() -> list[tuple[str, int, float]]:
    return [(kind, seed, scale) for kind in KINDS for seed in range(6) for scale in SCALES]


@pytest.mark.parametrize("routine", ROUTINES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_everything_is_finite(routine: object, dtype: torch.dtype) -> None:
    for kind, seed, scale in cases():
        joint, unimodal = ([scale * g for g in part] for part in pair(kind, seed, dtype))
        assert flat(integrate(routine, joint, unimodal)).isfinite().all(), (kind, seed, scale)
        diagnostics = diagnose(gramians(joint, unimodal, torch.device("cpu")), torch.ones(len(SHAPES), 2, dtype=dtype))
        assert all(bool(value.isfinite().all()) for value in diagnostics)


@pytest.mark.parametrize("rescale", ["tensor", "encoder"])
@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_without_conflict_mmpareto_is_exactly_gamma_times_the_sum(rescale: str, gamma: float) -> None:
    quiet = 0
    for kind, seed, scale in cases():
        joint, unimodal = ([scale * g for g in part] for part in pair(kind, seed))
        if flat(joint) @ flat(unimodal) >= 0:
            quiet += 1
            result = integrate(MMPareto(gamma, rescale), joint, unimodal)
            expected = gamma * (flat(joint) + flat(unimodal))
            assert (flat(result) - expected).norm() <= 1e-15 * gamma * (flat(joint).norm() + flat(unimodal).norm())
    assert quiet > 50


@pytest.mark.parametrize("routine", ROUTINES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("factor", [1e-20, 1e-3, 7.0, 1e15])
def test_homogeneous_of_degree_one(routine: object, factor: float) -> None:
    for kind in KINDS:
        for seed in range(4):
            joint, unimodal = pair(kind, seed)
            once = flat(integrate(routine, joint, unimodal))
            scaled = flat(integrate(routine, [factor * j for j in joint], [factor * u for u in unimodal]))
            # opposed gradients leave an h of pure rounding, which is enlarged by up to 1 / sqrt(4 eps) = 3e7
            tolerance = 1e-7 if kind.startswith("opposed") else 1e-12
            size = flat(joint).norm() + flat(unimodal).norm()
            assert (scaled / factor - once).norm() <= tolerance * size, (kind, seed)


@pytest.mark.parametrize("factor", [1e-20, 1e15])
def test_homogeneous_in_float32_too(factor: float) -> None:
    for routine in (Pareto(), MMPareto(), MMPareto(rescale="encoder")):
        for kind in ("random", "conflict", "agreement", "opposed, unequal"):
            joint, unimodal = pair(kind, 1, torch.float32)
            once = flat(integrate(routine, joint, unimodal))
            scaled = flat(integrate(routine, [factor * j for j in joint], [factor * u for u in unimodal]))
            tolerance = 3e-3 if kind.startswith("opposed") else 1e-5
            assert (scaled / factor - once).norm() <= tolerance * (flat(joint).norm() + flat(unimodal).norm()), kind


def test_rescaled_per_encoder_no_loss_increases_to_first_order() -> None:
    for kind, seed, scale in cases():
        joint, unimodal = ([scale * g for g in part] for part in pair(kind, seed))
        result = flat(integrate(MMPareto(rescale="encoder"), joint, unimodal))
        for gradient in (flat(joint), flat(unimodal)):
            if flat(joint) @ flat(unimodal) < 0:
                # opposed gradients have no common descent direction: what is left is rounding, of either sign
                size = flat(joint).norm() + flat(unimodal).norm() if kind.startswith("opposed") else result.norm()
                assert result @ gradient >= -1e-7 * size * gradient.norm(), (kind, seed, scale)


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_norm_is_at_least_gamma_times_the_sums(gamma: float) -> None:
    """On every tensor, or on the encoder as a whole; up to where |h| drowns in its own rounding (opposed gradients)."""
    for kind, seed, scale in cases():
        joint, unimodal = ([scale * g for g in part] for part in pair(kind, seed))
        sums = [j + u for j, u in zip(joint, unimodal, strict=True)]
        if kind == "opposed, unequal":  # h is exactly 0 there, no direction descends both losses: what rounding leaves
            for rescale in ("tensor", "encoder"):
                left = flat(integrate(MMPareto(gamma, rescale), joint, unimodal)).norm()
                assert left <= 4 * gamma * math.sqrt(torch.finfo(torch.float64).eps) * flat(sums).norm(), (seed, scale)
            continue
        for mine, plain in zip(integrate(MMPareto(gamma, "tensor"), joint, unimodal), sums, strict=True):
            assert mine.norm() >= gamma * plain.norm() * (1 - 1e-6), (kind, seed, scale)
        whole = flat(integrate(MMPareto(gamma, "encoder"), joint, unimodal)).norm()
        assert whole >= gamma * flat(sums).norm() * (1 - 1e-9), (kind, seed, scale)


def test_rescaling_per_tensor_can_leave_the_cone() -> None:
    """Why there are two ways to rescale: the published one is no common descent direction in rare cases."""
    left = 0
    for seed in range(3000):
        generator = torch.Generator().manual_seed(seed)
        joint, unimodal = (
            [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2)] for _ in range(2)
        )
        result = flat(integrate(MMPareto(), joint, unimodal))
        if flat(joint) @ flat(unimodal) < 0:
            left += bool(min(result @ flat(joint), result @ flat(unimodal)) < 0)
    assert 0 < left < 300


def test_pareto_meets_the_optimality_conditions_of_the_minimum_norm_problem() -> None:
    """At the minimum of |a j + (1 - a) u|^2 over [0, 1] the point h has h.j >= h.h and h.u >= h.h (equal inside)."""
    for kind, seed, scale in cases():
        joint, unimodal = ([scale * g for g in part] for part in pair(kind, seed))
        j, u = flat(joint), flat(unimodal)
        weight = minimum_norm_weights(gramians(joint, unimodal, torch.device("cpu")).sum(0))[0]
        assert 0 <= weight <= 1
        h = weight * j + (1 - weight) * u
        slack = 1e-9 * max(j @ j, u @ u)
        assert h @ j >= h @ h - slack, (kind, seed, scale)
        assert h @ u >= h @ h - slack, (kind, seed, scale)
        for other in torch.linspace(0, 1, 21, dtype=torch.float64):  # and by brute force
            assert h @ h <= (other * j + (1 - other) * u).square().sum() + slack
        assert (flat(integrate(Pareto(), joint, unimodal)) - 2 * h).norm() <= 1e-14 * (j.norm() + u.norm())


@pytest.mark.parametrize("routine", [Pareto(), MMPareto(), MMPareto(rescale="encoder")])
@pytest.mark.parametrize("ratio", [1e-5, 1e5])
def test_float32_keeps_its_digits_where_one_gradient_is_much_larger(routine: object, ratio: float) -> None:
    for seed in range(6):
        joint, unimodal = pair("conflict", seed)
        unimodal = [ratio * u for u in unimodal]
        exact = flat(integrate(routine, joint, unimodal))
        rounded = flat(integrate(routine, [j.float() for j in joint], [u.float() for u in unimodal]))
        assert (rounded - exact).norm() <= 2e-5 * exact.norm(), seed


def test_opposed_gradients_of_any_ratio_leave_rounding_alone() -> None:
    for seed in range(20):
        joint, _ = pair("random", seed, torch.float32)
        opposed = [-(10.0 ** (seed % 9 - 4.3)) * j for j in joint]
        total = (flat(joint) + flat(opposed)).norm()
        for rescale in ("tensor", "encoder"):
            left = flat(integrate(MMPareto(1.0, rescale), joint, opposed)).norm()
            assert left <= 4 * math.sqrt(torch.finfo(torch.float32).eps) * total, seed


def test_worked_values() -> None:
    """joint (2, 0), unimodal (-1, 1): a = (2 + 2) / (9 + 1) = 0.4, h = 0.8 (2, 0) + 1.2 (-1, 1) = (0.4, 1.2)."""
    joint, unimodal = [torch.tensor([2.0, 0.0])], [torch.tensor([-1.0, 1.0])]
    assert flat(integrate(Pareto(), joint, unimodal)).tolist() == pytest.approx([0.4, 1.2])
    # |sum| = |(1, 1)| = sqrt 2 and |h| = sqrt 1.6: enlarged by sqrt 1.25
    grown = [1.5 * math.sqrt(1.25) * x for x in (0.4, 1.2)]
    assert flat(integrate(MMPareto(), joint, unimodal)).tolist() == pytest.approx(grown)
    diagnostics = diagnose(
        gramians(joint, unimodal, torch.device("cpu")), Pareto().coefficients(torch.tensor([[[4.0, -2], [-2, 2]]]))
    )
    assert diagnostics.cosine.item() == pytest.approx(-2 / math.sqrt(8))
    assert (diagnostics.joint_norm.item(), diagnostics.unimodal_norm.item()) == pytest.approx((2.0, math.sqrt(2)))
    assert diagnostics.joint_weight.item() == pytest.approx(0.4)
    assert diagnostics.conflict.item() is True


def test_gradients_that_are_not_finite_stay_so() -> None:
    """So that a gradient scaler sees the overflow and skips the step."""
    for routine in ROUTINES:
        for bad in (math.inf, math.nan):
            joint, unimodal = pair("conflict", 0, torch.float32)
            joint[0][0, 0] = bad
            assert not flat(integrate(routine, joint, unimodal)).isfinite().all()


def test_gramians_of_channels_last_and_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, 5, 5, generator=generator) for _ in range(2))
    expected = torch.tensor([[(x.double() * y.double()).sum() for y in (a, b)] for x in (a, b)])
    last = [t.to(memory_format=torch.channels_last) for t in (a, b)]
    for joint, unimodal in ((a, b), tuple(last), (last[0], b), (a, last[1])):
        got = gramians([joint], [unimodal], torch.device("cpu"))
        assert torch.allclose(got[0].double(), expected, rtol=1e-5)
    half = [t.bfloat16() for t in (a, b)]
    expected = torch.tensor([[(x.double() * y.double()).sum() for y in half] for x in half])
    got = gramians([half[0]], [half[1]], torch.device("cpu"))
    assert got.dtype == torch.float64
    assert torch.allclose(got[0].double(), expected, rtol=1e-5)


def test_arguments_are_checked() -> None:
    for gamma in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="gamma must be a positive finite number, found"):
            MMPareto(gamma=gamma)
        with pytest.raises(ValueError, match="gamma must be a positive finite number, found"):
            Uniform(gamma=gamma)
    with pytest.raises(ValueError, match="rescale must be one of tensor, encoder, found 'layer'"):
        MMPareto(rescale="layer")  # type: ignore[arg-type]
