"""Integration at the features, against Jacobians written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integration.problems import LateFusion
from torch import Tensor

from mmpareto.integration import Integrator, MMPareto, OnFeatures, Pareto
from mmpareto.integration.reduction import start_average
from mmpareto.methods import METHODS

ROUTINES: dict[str, Any] = {
    "mmpareto": MMPareto(),
    "pareto": Pareto(),
    "metabalance": METHODS.build("metabalance"),
}


def features_and_losses(model: LateFusion, seed: int = 1) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    inputs, label = model.batch(seed)
    features = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
    kept, model.encoders = model.encoders, torch.nn.ModuleDict({name: torch.nn.Identity() for name in features})
    joint, unimodal = model.losses(features, label)
    model.encoders = kept
    return features, joint, unimodal


def expected(model: LateFusion, routine: Any, seed: int) -> dict[str, Tensor]:
    """.grad of every parameter, from the explicit Jacobians of the features."""
    features, joint, unimodal = features_and_losses(model, seed)
    result: dict[str, Tensor] = {}
    for name, feature in features.items():
        a, b = (torch.autograd.grad(loss, feature, retain_graph=True)[0] for loss in (joint, unimodal[name]))
        rows = torch.stack((a.flatten(), b.flatten()))
        weights = routine.encoder_coefficients(name, (rows @ rows.T)[None])[0]
        upstream = (weights[0] * a + weights[1] * b).flatten()
        for key, p in model.encoders[name].named_parameters():
            jacobian = torch.stack(
                [torch.autograd.grad(value, p, retain_graph=True)[0].flatten() for value in feature.flatten()]
            )
            result[f"encoders.{name}.{key}"] = (upstream @ jacobian).view_as(p)
    total = joint + torch.stack(list(unimodal.values())).sum()
    others = dict(model.others)
    gradients = torch.autograd.grad(total, list(others.values()))
    return result | dict(zip(others, gradients, strict=True))


@pytest.mark.parametrize("name", ROUTINES)
@pytest.mark.parametrize("modalities", [2, 3])
def test_gradients_are_the_jacobians_times_the_integrated_gradient_of_the_features(name: str, modalities: int) -> None:
    model, conflicts = LateFusion(modalities, seed=2, opposed=True), 0
    make = type(ROUTINES[name])
    reference, integrator = make(), OnFeatures(make())  # MetaBalance remembers norms from step to step
    for seed in range(3):
        wanted = expected(model, reference, seed)
        features, joint, unimodal = features_and_losses(model, seed)
        diagnostics = integrator.backward(joint, unimodal, **model.arguments(), features=features)
        conflicts += sum(int(values.conflict) for values in diagnostics.values())
        assert {key: value.shape for key, value in model.gradients().items()} == {k: v.shape for k, v in wanted.items()}
        for key, gradient in model.gradients().items():
            assert torch.allclose(gradient, wanted[key], rtol=1e-10, atol=1e-13), key
        for values in diagnostics.values():
            assert values.gramians.shape == (1, 2, 2)
    assert conflicts


def test_without_conflict_it_is_the_exact_step() -> None:
    """Both take gamma times the plain sum where the two gradients are one."""
    model = LateFusion(2, seed=1)
    _, _, unimodal = features_and_losses(model)
    exact = MMPareto().backward(torch.stack(list(unimodal.values())).sum(), unimodal, **model.arguments())
    gradients = model.gradients()
    features, _, unimodal = features_and_losses(model)
    joint = torch.stack(list(unimodal.values())).sum()
    diagnostics = OnFeatures(MMPareto()).backward(joint, unimodal, **model.arguments(), features=features)
    assert not any(values.conflict for values in (*exact.values(), *diagnostics.values()))
    for name, gradient in model.gradients().items():
        assert torch.allclose(gradient, gradients[name], rtol=1e-12), name


def test_encoders_are_passed_once() -> None:
    model, calls = LateFusion(2, seed=1, opposed=True), []
    for encoder in model.encoders.values():
        encoder[0].register_full_backward_hook(lambda *_: calls.append(1))
    features, joint, unimodal = features_and_losses(model)
    OnFeatures(MMPareto()).backward(joint, unimodal, **model.arguments(), features=features)
    assert len(calls) == len(model.encoders)


def test_a_loss_scale_passes_through() -> None:
    model = LateFusion(2, seed=2, opposed=True)
    results = []
    for scale in (1.0, 1024.0):
        features, joint, unimodal = features_and_losses(model)
        integrator = OnFeatures(MMPareto())
        scaled = {name: loss * scale for name, loss in unimodal.items()}
        diagnostics = integrator.backward(
            joint * scale, scaled, **model.arguments(), loss_scale=scale, features=features
        )
        results.append(({k: v / scale for k, v in model.gradients().items()}, diagnostics["m0"].joint_norm))
    assert all(torch.allclose(value, results[1][0][key], rtol=1e-12) for key, value in results[0][0].items())
    assert torch.allclose(results[0][1], results[1][1])


def test_coefficients_meet_half_precision_in_float64() -> None:
    """1 + 2^-9 is 1 in bfloat16; the sum is rounded once."""

    class Fixed(Integrator):
        def coefficients(self, gramians: Tensor) -> Tensor:
            return gramians.new_tensor([1 + 2.0**-9, -1.0]).expand(len(gramians), 2)

    weight = torch.nn.Parameter(torch.tensor([1.0]))
    feature = weight.to(torch.bfloat16)[:, None]
    joint, unimodal = feature.float().sum() * 1.5, feature.float().sum()
    OnFeatures(Fixed()).backward(joint, [unimodal], encoders={"a": [weight]}, features={"a": feature})
    assert weight.grad is not None
    assert weight.grad.item() == torch.tensor(1.5 * (1 + 2.0**-9) - 1).to(torch.bfloat16)  # 0.5 without the 2^-9


def test_refusals() -> None:
    model = LateFusion(2, seed=1)
    _, joint, unimodal = features_and_losses(model)
    integrator = OnFeatures(MMPareto())
    with pytest.raises(ValueError, match="the encoder m0 learns and has no features"):
        integrator.backward(joint, unimodal, **model.arguments())
    with pytest.raises(ValueError, match="needs the whole batch at once"):
        integrator.accumulate(joint, unimodal, **model.arguments())


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_encoders_are_left_out(frozen: int) -> None:
    model, integrator = LateFusion(2, seed=2, opposed=True), OnFeatures(MMPareto())
    names = list(model.encoders)
    for name in names[:frozen]:
        model.encoders[name].requires_grad_(False)
    features, joint, unimodal = features_and_losses(model)
    others = dict(model.others)
    total = joint + torch.stack(list(unimodal.values())).sum()
    plain = torch.autograd.grad(total, list(others.values()), retain_graph=True)
    measured = integrator.backward(joint, unimodal, encoders=model.encoders, heads=others.items(), features=features)
    assert list(measured) == names[frozen:]
    for parameter, gradient in zip(others.values(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    for number, name in enumerate(names):
        assert all((parameter.grad is None) == (number < frozen) for parameter in model.encoders[name].parameters())


def test_a_loss_that_reaches_an_encoder_past_its_features_is_refused() -> None:
    model = LateFusion(2, seed=1)
    features, joint, unimodal = features_and_losses(model)
    dense = joint + model.encoders["m1"][0].weight.square().sum()
    with pytest.raises(ValueError, match="past its features, as in dense fusion: integrate at the parameters"):
        OnFeatures(MMPareto()).backward(dense, unimodal, **model.arguments(), features=features)


def test_heads_before_the_features_are_refused() -> None:
    """An adapter between backbone and features."""
    torch.manual_seed(0)
    backbone, adapter, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    feature = adapter(backbone(torch.randn(5, 3)))
    losses = [torch.nn.functional.cross_entropy(head(feature), torch.tensor([0, 1, 0, 1, 1])) for _ in range(2)]
    with pytest.raises(ValueError, match="listed under heads lie between an encoder's parameters and its features"):
        OnFeatures(MMPareto()).backward(
            losses[0],
            {"a": losses[1]},
            encoders={"a": backbone},
            heads=[*adapter.named_parameters(prefix="adapter"), *head.named_parameters(prefix="head")],
            features={"a": feature},
        )


def test_the_routine_has_the_processes_of_the_whole() -> None:
    integrator = OnFeatures(METHODS.build("random"))
    integrator.synchronise = False
    integrator.encoder_coefficients("x", torch.eye(2, dtype=torch.float64)[None])
    assert not integrator.routine.synchronise


def test_sparse_gradients_are_not_averaged_over_processes() -> None:
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match=r"gradient of shape \[3, 3\] is sparse; .* sparse=False"):
        start_average([torch.ones(2), sparse], None)
