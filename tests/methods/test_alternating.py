"""Methods whose modalities learn alternately: worked values, plain float64 loops, and who moves when."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods.small import batch, close, gradients, make, t
from methods.test_method_gradients import assert_same
from torch import Tensor, nn

from mmpareto.methods import Boundary, Method, Piece, build_method, cross_entropies
from mmpareto.methods.mla import without
from mmpareto.methods.reconboost import boosting
from mmpareto.models import BoostedSum, EnsembleFusion, ModelError, MultimodalModel, build_model
from mmpareto.training.step import TrainingStep

RATE, DECAY, SAMPLES, BATCH = 0.05, 0.1, 32, 8


def sgd(parameters: Any) -> torch.optim.SGD:
    """With what would move a parameter that does not learn."""
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=DECAY)


def begin(method: Method, model: MultimodalModel, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    method.boundary(Boundary(epoch, 9, {}, torch.zeros(SAMPLES), model, optimizer, None))  # type: ignore[arg-type]


def test_mla_s_projection() -> None:
    changed = without(torch.eye(2).double(), t([1, 2]), 0.1, normalise=True)
    close(changed, [[0.803767, -0.392081], [-0.392081, 0.215645]])
    close(t([[1, 1], [0, 2]]) @ changed, [[0.411686, -0.176437], [-0.784163, 0.431290]])
    first = without(torch.eye(2).double(), t([1, 0]), 1.0, normalise=True)
    close(first, [[0.447214, 0], [0, 0.894427]])
    close(without(first, t([1, 1]), 0.1, normalise=True), [[0.511028, -0.459639], [-0.459639, 0.562418]])
    close(without(torch.eye(2).double(), t([1, 0]), 1.0, normalise=False), [[0.5, 0], [0, 1]])


def test_mla_weighs_predictions_by_their_entropy() -> None:
    logits = {"a": t([[2, 0, 0], [0.1, 0, 0]]), "v": t([[0.5, 0, 0], [0, 0, 3]])}
    fusion = EnsembleFusion(nn.ModuleDict({name: nn.Identity() for name in logits}), "certainty")
    joint = fusion(logits)
    for row, weight in enumerate((0.599378, 0.325001)):
        close(joint[row], (weight * logits["a"][row] + (1 - weight) * logits["v"][row]).tolist())
    masks = {"a": torch.tensor([True, False]), "v": torch.tensor([True, True])}
    torch.testing.assert_close(fusion(logits, present=masks), torch.stack((joint[0], logits["v"][1])))


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("modalities", [2, 3])
def test_mla_follows_a_plain_loop(modalities: int, project: bool) -> None:
    """An optimiser for each encoder, and one for the head, which takes a step a modality."""
    method, model = make("mla", modalities, project=project)
    twin = copy.deepcopy(model)
    head = twin.heads["x"]
    optimizers = {name: sgd(encoder.parameters()) for name, encoder in twin.encoders.items()}
    optimizers["head"] = sgd(head.parameters())
    projection = torch.eye(512, dtype=torch.float64)
    ours = sgd(model.parameters())
    step = TrainingStep(model, method, ours)
    for number in range(6):  # an epoch and a half
        if number % (SAMPLES // BATCH) == 0:
            begin(method, model, ours, 1 + number // (SAMPLES // BATCH))
        inputs, label = batch(model, BATCH, seed=number)
        step(inputs, label)
        for name, encoder in twin.encoders.items():
            feature = encoder(inputs[name])
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            F.cross_entropy(head(feature), label).backward()
            if project:
                head.weight.grad = head.weight.grad @ projection.T
                mean = feature.detach().mean(0, keepdim=True).T
                k = projection @ mean
                alpha = 0.1 ** (1 + number % (SAMPLES // BATCH) / (SAMPLES // BATCH))
                projection = projection - k @ k.T / (alpha + mean.T @ k)
            optimizers[name].step()
            optimizers["head"].step()
    assert_same(dict(model.named_parameters()), dict(twin.named_parameters()), rtol=1e-7, atol=1e-10)


def test_mla_s_head_keeps_its_answer_to_the_mean_feature_of_the_turn_before() -> None:
    moves = []
    for project in (True, False):
        method, model = make("mla", project=project)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        begin(method, model, optimizer, 1)
        inputs, label = batch(model)
        with torch.no_grad():
            mean = model.encoders["x"](inputs["x"]).mean(0)
        weights: list[Tensor] = []  # before the head's steps
        optimizer.register_step_pre_hook(
            lambda *_, model=model, kept=weights: kept.append(model.heads["x"].weight.clone())
        )
        TrainingStep(model, method, optimizer)(inputs, label)
        moves.append(((model.heads["x"].weight - weights[1]) @ mean).norm().item())
    size = mean.square().sum().item()
    assert moves[0] == pytest.approx(moves[1] * 0.1 / (0.1 + size), rel=0.2)  # alpha / (alpha + r'r)


@pytest.mark.parametrize("modalities", [2, 3])
def test_reconboost_follows_a_plain_loop(modalities: int) -> None:
    """Stages of two epochs alone and one together, a step each, with a fresh optimiser for each part of a stage."""
    options: dict[str, Any] = {"alone_epochs": 2, "together_epochs": 1, "hidden": 8}
    method, model = make("reconboost", modalities, **options)
    twin = copy.deepcopy(model)
    head, boost, names = twin.heads["x"], twin.fusion.boost, list(twin.encoders)
    ours = sgd(model.parameters())
    step = TrainingStep(model, method, ours)
    for epoch in range(1, 3 * (modalities + 1) + 1):
        stage, part = divmod(epoch - 1, 3)
        name, before = names[stage % modalities], names[(stage - 1) % modalities]
        begin(method, model, ours, epoch)
        if part == 0:
            theirs = sgd([*twin.encoders[name].parameters(), *head.parameters()])
        elif part == 2:
            theirs = sgd(twin.parameters())
        inputs, label = batch(model, seed=epoch)
        step(inputs, label)
        u = {m: head(encoder(inputs[m])) for m, encoder in twin.encoders.items()}
        if part == 2:
            loss = F.cross_entropy(boost * sum(u.values()), label)
        else:
            q = (boost * sum(u[m] for m in names if m != name)).softmax(1)
            p = u[name].softmax(1)
            rows = [(1.0 * q[i, y].item() - 5.0) * p[i, y].log() / 3 for i, y in enumerate(label.tolist())]
            loss = torch.stack(rows).mean()
            if stage:
                loss = loss + 0.5 * (p - u[before].softmax(1).detach()).square().mean()
        twin.zero_grad()
        loss.backward()
        theirs.step()
        assert_same(dict(model.named_parameters()), dict(twin.named_parameters()), rtol=1e-7, atol=1e-10)
    assert method.figures() == {"learner": float((modalities) % modalities), "together": 1.0}


@pytest.mark.parametrize(("name", "still"), [("mla", ()), ("reconboost", ("encoders.y.", "fusion."))])
def test_momentum_and_weight_decay_do_not_move_what_does_not_learn(name: str, still: tuple[str, ...]) -> None:
    method, model = make(name)
    optimizer = sgd(model.parameters())
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    begin(method, model, optimizer, 1)
    TrainingStep(model, method, optimizer)(*batch(model))
    kept = {key for key, p in model.named_parameters() if torch.equal(p, before[key])}
    assert kept == {key for key in before if key.startswith(still or ("none",))}


def test_boosting_against_no_rivals_is_the_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(5, 4, generator=generator).double(), torch.tensor([0, 1, 2, 3, 0])
    rivals = torch.randn(5, 4, generator=generator).double().softmax(1)
    loss = F.cross_entropy(logits, label) / 4
    logs = logits.log_softmax(1)
    torch.testing.assert_close(boosting(logs, rivals, label, 5.0, 0.0, every_class=False), 5 * loss)
    # q log p over all classes differs from the divergence by the entropy of q, which has no gradient
    divergence = (rivals * (rivals.log() - logs)).sum(1).mean() / 4
    entropy = -(rivals * rivals.log()).sum(1).mean() / 4
    expected = 5 * loss - 2 * (divergence + entropy)
    torch.testing.assert_close(boosting(logs, rivals, label, 5.0, 2.0, every_class=True), expected)


@pytest.mark.parametrize(
    ("name", "without_it", "epoch"),
    [
        ("mla", {"project": False}, 1),
        ("mla", {"normalise": True}, 1),
        ("reconboost", {"label_weight": 1.0}, 1),
        ("reconboost", {"rival_weight": 0.0}, 1),
        ("reconboost", {"every_class": True}, 1),
        ("reconboost", {"agreement": 0.0}, 9),
    ],
)
def test_every_term_changes_a_gradient(name: str, without_it: dict[str, Any], epoch: int) -> None:
    results = []
    for options in ({}, without_it):
        method, model = make(name, **options)
        begin(method, model, sgd(model.parameters()), epoch)
        results.append(gradients(method, model, *batch(model)))
    assert results[0].keys() == results[1].keys()
    changed = [key for key, g in results[0].items() if not torch.allclose(g, results[1][key], rtol=1e-6)]
    # a projection is of the head alone
    assert changed == ["heads.x.weight"] if name == "mla" else any(key.startswith("encoders.") for key in changed)


def test_reconboost_goes_on_in_the_stage_that_was_saved() -> None:
    method, model = make("reconboost", 3)
    for epoch in (9, 13, 17, 25):
        begin(method, model, sgd(model.parameters()), epoch)
        again = make("reconboost", 3)[0]
        again.load_state_dict(method.state_dict())
        assert again.turns == method.turns
    assert method.turns == (("encoders.x.", "heads."),)


def test_absent_modalities_do_not_count() -> None:
    heads = nn.ModuleDict({name: nn.Identity() for name in "ab"})
    logits, fusion = {"a": t([[1, 2], [3, 4]]), "b": t([[5, 5], [7, 7]])}, BoostedSum(heads)
    close(fusion(logits, present=["b"]).detach(), [[5, 5], [7, 7]])
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor([True, True])}
    close(fusion(logits, present=masks).detach(), [[6, 7], [7, 7]])


def test_mla_takes_the_mean_over_the_samples_that_have_the_modality() -> None:
    method, model = make("mla")
    inputs, label = batch(model)
    present = {"x": torch.arange(8) < 5, "y": torch.ones(8, dtype=torch.bool)}
    begin(method, model, sgd(model.parameters()), 1)
    output = model(inputs, present)
    method.losses(Piece(output, label, cross_entropies(output, label), 1.0))
    mean = model.encoders["x"](inputs["x"][:5]).mean(0)
    torch.testing.assert_close(method._mean, mean.detach())  # type: ignore[attr-defined]


def test_one_head_needs_features_of_one_width() -> None:
    for name in ("mla", "reconboost"):
        with pytest.raises(ModelError, match="needs features of one width, found x 512, y 7"):
            build_model(
                {"x": ("vector", (6,)), "y": ("vector", (4,))},
                3,
                {"x": "mlp", "y": "mlp"},
                lambda widths, classes, heads, name=name: build_method(name).fusion(widths | {"y": 7}, classes, heads),
            )


def test_options_out_of_range_are_refused() -> None:
    for name, options, message in (
        ("mla", {"combine": "vote"}, "certainty, logits"),
        ("reconboost", {"alone_epochs": 0}, "alone_epochs"),
        ("reconboost", {"agreement": -1.0}, "agreement"),
    ):
        with pytest.raises(ValueError, match=message):
            build_method(name, **options)
