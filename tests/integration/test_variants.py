"""MMPareto's variants, which are off by default: no jump, conflict per tensor, momentum on the Gramians."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from integration.problems import LateFusion
from integration.test_properties import KINDS, integrate, pair
from torch import Tensor

from mmpareto.integration import MMPareto, minimum_norm_weights


def gram(joint: float, unimodal: float, cosine: float) -> Tensor:
    """The Gramian [1, 2, 2] of two gradients of these norms."""
    cross = joint * unimodal * cosine
    return torch.tensor([[[joint**2, cross], [cross, unimodal**2]]], dtype=torch.float64)


def step(a: float, gramian: Tensor) -> Tensor:
    """Coefficients [2] of the weight a, enlarged to the norm of the plain sum; gamma 1."""
    pareto = 2 * torch.tensor([a, 1 - a], dtype=torch.float64)
    norms = [(w @ gramian[0] @ w).clamp(min=0).sqrt() for w in (pareto, torch.ones(2, dtype=torch.float64))]
    return pareto * max(1.0, float(norms[1] / norms[0]))


@pytest.mark.parametrize("norms", [(1.0, 1.0), (1.0, 5.0), (30.0, 2.0)])
def test_the_published_direction_jumps_and_the_variants_do_not(norms: tuple[float, float]) -> None:
    """Across the sign of the cosine; equal norms have no jump, since a is 1/2 there."""
    sizes = {}
    for transition in ("jump", "linear", "cone"):
        routine = MMPareto(gamma=1.0, transition=transition)  # type: ignore[arg-type]
        before, after = (routine.coefficients(gram(*norms, cosine)) for cosine in (1e-9, -1e-9))
        sizes[transition] = (before - after).abs().max().item()
    assert (sizes["jump"] > 0.5) == (norms[0] != norms[1])
    assert sizes["linear"] < 1e-6
    assert sizes["cone"] < 1e-6


@pytest.mark.parametrize("norms", [(1.0, 1.0), (1.0, 5.0), (30.0, 2.0)])
@pytest.mark.parametrize("cosine", [-0.999999, -0.7, -0.3, -0.05])
def test_variants_by_their_formulas(norms: tuple[float, float], cosine: float) -> None:
    gramian = gram(*norms, cosine)
    least = float(minimum_norm_weights(gramian[0])[0])
    linear = 0.5 + (least - 0.5) * -cosine
    weights = MMPareto(gamma=1.0, transition="linear").coefficients(gramian)[0]
    torch.testing.assert_close(weights, step(linear, gramian), rtol=1e-9, atol=1e-12)
    # by search: the weight nearest to 1/2 that is opposed to neither gradient
    grid = torch.linspace(0, 1, 200001, dtype=torch.float64)
    (jj, ju), (_, uu) = gramian[0].tolist()
    allowed = grid[(grid * jj + (1 - grid) * ju >= 0) & (grid * ju + (1 - grid) * uu >= 0)]
    nearest = float(allowed[(allowed - 0.5).abs().argmin()]) if len(allowed) else least
    weights = MMPareto(gamma=1.0, transition="cone").coefficients(gramian)[0]
    share = float(weights[0] / weights.sum())
    assert share == pytest.approx(nearest, abs=1e-5)
    torch.testing.assert_close(weights, step(share, gramian), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_cone_variant_is_opposed_to_neither_gradient_and_plain_without_conflict(kind: str, seed: int) -> None:
    joint, unimodal = pair(kind, seed)
    gradient = torch.cat(
        [h.flatten() for h in integrate(MMPareto(rescale="encoder", transition="cone"), joint, unimodal)]
    )
    a, b = (torch.cat([g.flatten() for g in part]) for part in (joint, unimodal))
    assert gradient.isfinite().all()
    if a @ b >= 0:
        torch.testing.assert_close(gradient, 1.5 * (a + b))
    elif not kind.startswith("opposed"):
        assert a @ gradient >= -1e-9 * a.norm() * gradient.norm()
        assert b @ gradient >= -1e-9 * b.norm() * gradient.norm()
        assert gradient.norm() >= 1.5 * (a + b).norm() * (1 - 1e-9)


@pytest.mark.parametrize("options", [{"transition": "linear"}, {"transition": "cone"}, {"conflict": "tensor"}])
@pytest.mark.parametrize("kind", KINDS)
def test_variants_are_homogeneous_and_finite(kind: str, options: dict[str, Any]) -> None:
    joint, unimodal = pair(kind, 1)
    plain = integrate(MMPareto(**options), joint, unimodal)
    scaled = integrate(MMPareto(**options), [1e-9 * j for j in joint], [1e-9 * u for u in unimodal])
    for h, other in zip(plain, scaled, strict=True):
        assert h.isfinite().all()
        if not kind.startswith("opposed"):  # where h is what rounding leaves of zero
            torch.testing.assert_close(other, 1e-9 * h, rtol=1e-7, atol=1e-24)


@pytest.mark.parametrize("seed", range(3))
def test_conflict_per_tensor_is_the_published_rule_on_each_tensor_alone(seed: int) -> None:
    joint, unimodal = pair("random", seed)
    whole = integrate(MMPareto(conflict="tensor"), joint, unimodal)
    signs = set()
    for j, u, h in zip(joint, unimodal, whole, strict=True):
        signs.add(bool((j * u).sum() < 0))
        torch.testing.assert_close(h, integrate(MMPareto(), [j], [u])[0], rtol=1e-12, atol=0)
    assert signs == {True, False}


def test_momentum_decides_by_the_average_and_keeps_each_encoder_s_own() -> None:
    routine = MMPareto(gamma=1.0, momentum=0.5)
    steps = [gram(1, 2, -0.9), gram(1, 2, 0.1), gram(1, 2, 0.8), gram(3, 1, -0.9)]
    average = torch.zeros(1, 2, 2, dtype=torch.float64)
    for number, gramian in enumerate(steps):
        average = 0.5 * average + 0.5 * gramian
        weights = routine.encoder_coefficients("x", gramian)[0]
        conflict = bool(average[0, 0, 1] < 0)
        assert conflict == (number != 2)  # in the second step by the first one's
        expected = step(float(minimum_norm_weights(average[0])[0]), gramian) if conflict else torch.ones(2).double()
        torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(routine.encoder_coefficients("y", steps[0]), MMPareto(1.0).coefficients(steps[0]))
    before = routine.state_dict()["x"]
    assert routine.encoder_coefficients("x", torch.full((1, 2, 2), math.nan)).isnan().any()
    assert torch.equal(routine.state_dict()["x"], before)
    again = MMPareto(gamma=1.0, momentum=0.5)
    again.load_state_dict(routine.state_dict())
    for name in ("x", "y"):
        assert torch.equal(again.encoder_coefficients(name, steps[3]), routine.encoder_coefficients(name, steps[3]))
    with pytest.raises(ValueError, match="carries no state"):
        MMPareto().load_state_dict(routine.state_dict())
    with pytest.raises(ValueError, match="keeps Gramians"):
        again.load_state_dict({"x": torch.ones(3)})


def test_momentum_does_not_see_the_loss_scale() -> None:
    results = []
    for scales in ((1.0, 1.0, 1.0), (1.0, 1024.0, 2.0)):
        model, routine = LateFusion(2, seed=3, opposed=True), MMPareto(momentum=0.8)
        for seed, scale in enumerate(scales):
            joint, unimodal = model.losses(*model.batch(seed))
            losses = joint * scale, {name: loss * scale for name, loss in unimodal.items()}
            routine.backward(*losses, **model.arguments(), loss_scale=scale)  # type: ignore[arg-type]
            results.append({name: g / scale for name, g in model.gradients().items()})
    for plain, scaled in zip(results[:3], results[3:], strict=True):
        assert all(torch.allclose(scaled[name], g, rtol=1e-9, atol=1e-15) for name, g in plain.items())


def test_wrong_options_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"transition": "smooth"}, "jump, linear, cone"),
        ({"conflict": "layer"}, "tensor, encoder"),
        ({"conflict": "tensor", "rescale": "encoder"}, "leave rescale"),
        ({"momentum": 1.0}, "momentum"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            MMPareto(**options)
