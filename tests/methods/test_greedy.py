"""Greedy on MMTM: worked values, a plain float64 loop with its gates by hand, and what learns when."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods.small import batch, gradients, make
from methods.test_alternating import begin, close, t
from methods.test_method_gradients import assert_same, plain_gradients
from torch import Tensor

from mmpareto.methods import Piece, build_method, cross_entropies
from mmpareto.methods.greedy import relied, speed
from mmpareto.models import MultimodalModel
from mmpareto.models.mmtm import Excitation
from mmpareto.training.step import TrainingStep

RATE = 0.3


def test_worked_values() -> None:
    parameter = t([2, 4]).requires_grad_()
    parameter.grad = t([1, 2])
    close(speed([parameter]).detach(), 0.25)
    close(relied(t([[0.02, 0.03], [0.1, 0.05]])), [-0.698970, -0.221849])
    reliance = relied(t([[0.03, 0.09], [0.01, 0.01]]))
    close(reliance[0] - reliance[1], -0.477121)
    assert reliance.argmax() == 1
    exchange = Excitation((1, 1), ratio=4.0, factor=1.0).double()
    with torch.no_grad():
        for layer, weight in (
            (exchange.squeeze, [[1, 1]]),
            (exchange.excite[0], [[0.4]]),
            (exchange.excite[1], [[-0.2]]),
        ):
            layer.weight.copy_(t(weight))
            layer.bias.zero_()
    close(torch.cat(exchange([t([[1]]), t([[0.5]])]), 1).detach(), [[0.645656, 0.425557]])
    method, model = make("greedy")
    output = model(batch(model)[0])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for gate in (0.6, 0.8):
        method._gates[0] = torch.full_like(method.state["means"], gate)  # type: ignore[attr-defined]
        method.losses(Piece(output, torch.zeros(8), cross_entropies(output, torch.zeros(8, dtype=torch.int64)), 1.0))
        method.gradients(model)
    close(method.state["means"].unique(), [0.7])


def test_a_step_that_is_not_finite_leaves_the_means_of_the_gates_as_they_are() -> None:
    method, model = make("greedy")
    output = model(batch(model)[0])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for gate in (0.6, float("nan"), 0.8):
        method._gates[0] = torch.full_like(method.state["means"], gate)  # type: ignore[attr-defined]
        method.losses(Piece(output, torch.zeros(8), cross_entropies(output, torch.zeros(8, dtype=torch.int64)), 1.0))
        method.gradients(model)
    close(method.state["means"].unique(), [0.7])
    assert method.state["steps"] == 2


def forward(model: MultimodalModel, inputs: dict[str, Tensor], constant: dict[str, Tensor]) -> tuple[Any, Any]:
    """{modality: logits} and {modality: gates}; `constant` gates take the place of some."""
    encoders, exchange = dict(model.encoders.items()), model.exchange[0]
    maps = {m: encoders[m].second(encoders[m].first(value)) for m, value in inputs.items()}
    squeezed = torch.relu(exchange.squeeze(torch.cat([value.mean((2, 3)) for value in maps.values()], 1)))
    gates = {m: 2 * torch.sigmoid(excite(squeezed)) for m, excite in zip(maps, exchange.excite, strict=True)}
    scaled = {m: value * constant.get(m, gates[m])[..., None, None] for m, value in maps.items()}
    return {m: model.heads[m](value.mean((2, 3))) for m, value in scaled.items()}, gates


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("modalities", [2, 3])
def test_weights_follow_a_plain_loop(modalities: int, published: bool) -> None:
    options: dict[str, Any] = {"epsilon": 0.0, "window": 2, "warm_up_epochs": 0, "published": published}
    method, model = make("greedy", modalities, **options)
    twin = copy.deepcopy(make("greedy", modalities, **options)[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    begin(method, model, optimizer, 1)
    step = TrainingStep(model, method, optimizer)
    names, left, chosen, balanced = list(model.encoders), 0, "", []
    sums = {name: [0.0, 0.0] for name in names}
    means = {name: torch.zeros(6, dtype=torch.float64) for name in names}
    for number in range(7):
        inputs, label = batch(model, seed=number)
        step(inputs, label)
        logits, gates = forward(twin, inputs, {chosen: means[chosen]} if left else {})
        expected = plain_gradients(twin, torch.stack([F.cross_entropy(u, label) for u in logits.values()]).sum())
        parameters = dict(twin.named_parameters())
        for name in names:
            means[name] = (number * means[name] + gates[name].detach().mean(0)) / (number + 1)
        balanced.append(chosen if left else "")
        learning = set(expected)
        if left:
            left -= 1
            if not published:
                learning = {key for key in expected if key.startswith((f"encoders.{chosen}.", f"heads.{chosen}."))}
        else:
            for position, name in enumerate(names):
                for kind, prefixes in enumerate(
                    [("exchange.0.squeeze", f"exchange.0.excite.{position}."), (f"encoders.{name}.", f"heads.{name}.")]
                ):
                    keys = [key for key in expected if key.startswith(prefixes)]
                    squares = sum(expected[key].square().sum().item() for key in keys)
                    sums[name][kind] += squares / sum(parameters[key].square().sum().item() for key in keys)
            chosen, left = max(names, key=lambda name: sums[name][0] / sums[name][1]), 2
        with torch.no_grad():
            for key in learning:
                parameters[key] -= RATE * expected[key]
        assert_same(dict(model.named_parameters()), parameters, rtol=1e-9, atol=1e-12)
    assert [bool(name) for name in balanced] == [False, True, True] * 2 + [False]
    reliance = {f"reliance_{name}": relied(t(sums[name])).item() for name in names}
    assert method.figures() == pytest.approx(reliance, rel=1e-9)


def test_without_rebalancing_it_is_the_sum_of_the_unimodal_losses() -> None:
    for options, epoch in (({"epsilon": 1e9}, 2), ({"epsilon": 0.0}, 1)):
        method, model = make("greedy", 3, **options)
        begin(method, model, torch.optim.SGD(model.parameters()), epoch)
        inputs, label = batch(model)
        for _ in range(2):
            logits, _ = forward(model, inputs, {})
            expected = plain_gradients(model, torch.stack([F.cross_entropy(u, label) for u in logits.values()]).sum())
            assert_same(gradients(method, model, inputs, label), expected)
        assert int(method.state["left"]) == 0


def test_the_mean_of_a_gate_is_that_of_all_steps_and_evaluation_is_plain() -> None:
    method, model = make("greedy", window=4, warm_up_epochs=0, epsilon=0.0)
    gates: list[Tensor] = []
    model.exchange[0].excite[0].register_forward_hook(lambda *arguments: gates.append(arguments[2].detach()))
    begin(method, model, torch.optim.SGD(model.parameters()), 1)
    for seed in range(3):
        gradients(method, model, *batch(model, seed=seed))
    mean = torch.stack([2 * torch.sigmoid(gate).mean(0) for gate in gates]).mean(0)
    torch.testing.assert_close(method.state["means"][:6], mean)
    assert int(method.state["left"]) == 2
    inputs, _ = batch(model)
    logits, _ = forward(model, inputs, {})
    model.eval()
    torch.testing.assert_close(model(inputs).unimodal["x"], logits["x"])
    model.train()
    assert not torch.allclose(
        model(inputs).unimodal["xy"[int(method.state["chosen"])]], logits["xy"[int(method.state["chosen"])]]
    )


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        build_method("greedy", window=0)
    with pytest.raises(ValueError, match="epsilon"):
        build_method("greedy", epsilon=-1.0)
