"""Gradients of whole steps against plain autograd written for the test, invariants, and waits for the device."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods.small import Row, batch, close, gradients, make, t
from torch import Tensor

from mmpareto.benchmarks.counting import Calls
from mmpareto.integration import Uniform
from mmpareto.methods import METHODS, Method, Piece, agm, build_method, cross_entropies, gradnorm
from mmpareto.methods.base import SharedDraws
from mmpareto.methods.scalarizations import GROUP
from mmpareto.models import MultimodalModel, build_model
from mmpareto.models.mmtm import MMTM
from mmpareto.training.step import TrainingStep

# the plain routines have tests of their own in tests/integration
PLAIN = ("one_joint", "uniform", "uniform_gamma", "pareto", "mmpareto")
OWN = [*(name for name in METHODS.names(group="") if name not in (*PLAIN, "finetune")), *METHODS.names(group=GROUP)]
REFUSES = {name: build_method(name).refuses for name in OWN}
# what they draw for a sample comes from PyTorch's own generator, another one on each process and for each piece
RANDOM = ("opm", "synib")
# networks of their own that learn beside the model
WITH_NETWORKS = [
    ("synib", {"target": "gaussian"}),
    ("synib", {"target": "dirichlet"}),
    ("mcr", {"bottleneck": 1.0}),
]
DRAWING = [name for name in OWN if isinstance(build_method(name), SharedDraws)]


def plain_gradients(model: MultimodalModel, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(names, values, strict=True) if g is not None}


def joint_and_detached_heads(model: MultimodalModel, inputs: dict[str, Tensor], label: Tensor) -> Tensor:
    """The loss whose plain gradient is that of one joint loss: unimodal heads on detached features."""
    features = {m: encoder(inputs[m]) for m, encoder in model.encoders.items()}
    heads = [F.cross_entropy(head(features[m].detach()), label) for m, head in model.heads.items()]
    return F.cross_entropy(model.fusion(features), label) + sum(heads)


def parts(model: MultimodalModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Each modality's part of the joint logits, with its share of the bias."""
    weights, bias = model.fusion.head.weight.split(512, 1), model.fusion.head.bias / len(model.encoders)
    return [encoder(inputs[m]) @ w.T + bias for (m, encoder), w in zip(model.encoders.items(), weights, strict=True)]


def assert_same(computed: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    assert computed.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(computed[name], gradient, **{"rtol": 1e-9, "atol": 1e-12} | tolerance, msg=name)


def test_unimodal_training_is_each_encoder_with_its_head_alone() -> None:
    method, model = make("unimodal", 3)
    inputs, label = batch(model)
    computed = gradients(method, model, inputs, label)
    for name in model.encoders:
        alone = F.cross_entropy(model.heads[name](model.encoders[name](inputs[name])), label)
        for key, gradient in plain_gradients(model, alone).items():
            torch.testing.assert_close(computed[key], gradient, rtol=1e-10, atol=1e-14)
    features = {m: encoder(inputs[m]).detach() for m, encoder in model.encoders.items()}
    joint = plain_gradients(model, F.cross_entropy(model.fusion(features), label))
    assert all(torch.allclose(computed[key], gradient) for key, gradient in joint.items())


def test_an_ensemble_learns_as_unimodal_models_do() -> None:
    method, model = make("ensemble")
    other = make("unimodal")[1]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    other.load_state_dict(weights, strict=False)
    computed = gradients(method, model, *batch(model))
    expected = gradients(make("unimodal")[0], other, *batch(other))
    assert_same(computed, {name: g for name, g in expected.items() if not name.startswith("fusion.")})
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=0.1))
    assert step(*batch(model), diagnose=True).diagnostics == {}  # no joint gradient that could conflict


@pytest.mark.parametrize("modalities", [2, 3])
def test_ogm_scales_the_joint_gradient_of_each_encoder_s_weights(modalities: int) -> None:
    method, model = make("ogm", modalities, alpha=0.5)
    inputs, label = batch(model)
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    scores = [sum(u[i].softmax(0)[label[i]].item() for i in range(len(label))) for u in parts(model, inputs)]
    for k, name in enumerate(model.encoders):
        ratio = sum(scores[k] / scores[j] for j in range(modalities) if j != k) / (modalities - 1)
        factor = 1 - torch.tanh(torch.tensor(0.5 * ratio)).item() if ratio > 1 else 1.0
        for key in expected:
            if key.startswith(f"encoders.{name}.") and key.endswith("weight"):
                expected[key] = expected[key] * factor
    assert_same(gradients(method, model, inputs, label), expected, rtol=1e-6)


def test_ogm_leaves_balanced_modalities_and_late_epochs_alone() -> None:
    method, model = make("ogm")
    inputs, label = batch(model)
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    changed = gradients(method, model, inputs, label)
    assert any(not torch.allclose(changed[key], expected[key]) for key in expected)
    method.state["active"].fill_(False)
    assert_same(gradients(method, model, inputs, label), expected)
    method.state["active"].fill_(True)
    with torch.no_grad():  # the features and the head's blocks are the same: nothing tells one modality from the other
        for encoder in model.encoders.values():
            encoder[2].weight.zero_()
            encoder[2].bias.fill_(0.3)
        model.fusion.head.weight[:, 512:].copy_(model.fusion.head.weight[:, :512])
    assert plain_gradients(model, model(inputs).joint.square().sum())["encoders.x.2.bias"].abs().max() > 0
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    assert_same(gradients(method, model, inputs, label), expected)


@pytest.mark.parametrize("modalities", [2, 3])
def test_agm_scales_what_flows_into_each_modality_s_part(modalities: int) -> None:
    """Behind a linear head the encoders' joint gradients count exactly kappa times."""
    method, model = make("agm", modalities, alpha=2.0)
    inputs, label = batch(model)
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    scores = [F.cross_entropy(u, label).item() for u in parts(model, inputs)]
    mean = sum(scores) / modalities
    factors = {
        name: torch.exp(2.0 * (1 - torch.exp(torch.tensor(modalities / (modalities - 1) * (mean - s))))).item()
        for name, s in zip(model.encoders, scores, strict=True)
    }
    computed = gradients(method, model, inputs, label)
    for name, factor in factors.items():
        assert factor != pytest.approx(1, abs=1e-4)
        for key in expected:
            if key.startswith(f"encoders.{name}."):
                torch.testing.assert_close(computed[key], factor * expected[key], rtol=1e-6, atol=1e-12)
    assert method.state["mean"].tolist() == pytest.approx(scores, rel=1e-6)
    # the second step: against the first one's scores, not its own
    inputs, label = batch(model, seed=2)
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    second = [F.cross_entropy(u, label).item() for u in parts(model, inputs)]

    def discrepancy(values: list[float], k: int) -> float:
        return math.exp(modalities / (modalities - 1) * (sum(values) / modalities - values[k]))

    computed = gradients(method, model, inputs, label)
    for k, name in enumerate(model.encoders):
        factor = math.exp(2.0 * (discrepancy(scores, k) - discrepancy(second, k)))
        key = f"encoders.{name}.0.weight"
        torch.testing.assert_close(computed[key], factor * expected[key], rtol=1e-5, atol=1e-12)
    assert method.state["steps"].item() == 2
    means = [(a + b) / 2 for a, b in zip(scores, second, strict=True)]
    assert method.state["mean"].tolist() == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize(("alpha", "half"), [(9.0, torch.float32), (1.5, torch.float16)])
def test_agm_s_loss_is_a_number_where_kappa_is_huge(alpha: float, half: torch.dtype) -> None:
    method, model = make("agm", alpha=alpha)
    model.float()
    inputs, label = batch(model)
    method.setup(model, 0, 4)
    method.state["mean"].copy_(torch.tensor((0.1, 4.0)))  # kappa of x: exp(10 alpha), nearly
    with torch.autocast("cpu", half, enabled=half == torch.float16):
        output = model({m: value.float() for m, value in inputs.items()})
        plain = cross_entropies(output, label)
        minimised = method.losses(Piece(output, label, plain, 1.0)).joint
    assert minimised.item() == pytest.approx(plain.joint.item(), rel=1e-3)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factors", [(10.0, 0.3), (100.0, 0.1), (0.01, 30.0)])
def test_agm_in_half_precision_scales_each_modality_by_its_own_kappa(
    half: torch.dtype, factors: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one joint loss in the same precision: nothing of one modality's kappa reaches the other encoder."""
    encoder_gradients = []
    for kappas in ((1.0, 1.0), factors):
        method, model = make("agm")
        model.float()
        method.setup(model, 0, 4)
        monkeypatch.setattr(agm, "kappa", lambda *_, kappas=kappas: torch.tensor(kappas))
        inputs, label = batch(model)
        with torch.autocast("cpu", half):
            output = model({m: value.float() for m, value in inputs.items()})
            losses = method.losses(Piece(output, label, cross_entropies(output, label), 1.0))
        encoders, heads = model.partition()
        method.integrator.backward(losses.joint * 8, losses.unimodal, encoders=encoders, heads=heads)
        encoder_gradients.append({name: encoder[0].weight.grad for name, encoder in model.encoders.items()})
    for factor, name in zip(factors, ("x", "y"), strict=True):
        right = factor * encoder_gradients[0][name]
        assert (encoder_gradients[1][name] - right).norm() <= 0.01 * right.norm()


def test_gradnorm_leaves_out_a_loss_that_is_zero() -> None:
    """As that of a modality which no sample of the batch has, in the first batch too."""
    moved = gradnorm.moved_weights(t([1, 1, 1]), t([5, 2, 1]), t([0, 0.5, 1]), alpha=1.5, rate=0.1)
    close(moved, [3 / 2.9, 2.4 / 2.9, 3.3 / 2.9])  # G r^alpha = 0.816497 and 2.309401 of the last two
    method, model = make("gradnorm")
    inputs, label = batch(model)
    for step in range(3):
        output = model(inputs)
        losses = cross_entropies(output, label)
        method.losses(Piece(output, label, losses._replace(joint=losses.joint * (step > 0)), 1.0))
        method.gradients(model)
        assert method.state["first"].isfinite().tolist() == [step > 0, True, True]
        method.losses(Piece(output, label, losses._replace(joint=losses.joint * float("nan")), 1.0))
        before = method.state["weights"].clone()
        method.gradients(model)
        assert torch.equal(method.state["weights"], before)
    assert method.state["first"][0] == cross_entropies(model(inputs), label).joint
    weights = method.state["weights"].tolist()
    assert len(set(weights)) == 3
    assert sum(weights) == pytest.approx(3)


@pytest.mark.parametrize("diagnose", [False, True])
@pytest.mark.parametrize(("name", "joint_alone"), [("one_joint", True), ("unimodal", False)])
@pytest.mark.parametrize("architecture", ["mmtm", "mbt"])
def test_what_lies_between_encoders_learns_as_they_do(
    architecture: str, name: str, joint_alone: bool, diagnose: bool
) -> None:
    """MMTM's gates and MBT's tokens get no gradient from a loss that does not reach the encoders."""
    torch.manual_seed(0)
    if architecture == "mmtm":
        model: MultimodalModel = MMTM({m: Row() for m in "xy"}, 3).double()
        inputs = {m: torch.randn(8, 1, 1, 6).double() for m in "xy"}
    else:
        about = dict.fromkeys("xy", ("image", (1, 8, 8)))
        options = {"token_width": 8, "layers": 2, "fusion_layer": 0, "heads": 2}
        model = build_model(about, 3, dict.fromkeys(about, "cnn"), None, "mbt", options).double().eval()
        inputs = {m: torch.randn(8, 1, 8, 8).double() for m in "xy"}
    output, label = model(inputs), torch.arange(8) % 3
    losses = cross_entropies(output, label)
    unimodal = torch.stack([*losses.unimodal.values()]).sum()
    expected = plain_gradients(model, losses.joint if joint_alone else unimodal)
    between = [key for key in expected if not key.startswith(("encoders.", "heads.", "fusion."))]
    assert between
    encoders, heads = model.partition()
    integrator = build_method(name).integrator
    integrator.backward(
        losses.joint, losses.unimodal, encoders=encoders, heads=heads, features=output.features, diagnose=diagnose
    )
    found = {key: p.grad for key, p in model.named_parameters()}
    for key in [*between, *(key for key in expected if key.startswith("encoders."))]:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-12)
    for key in (key for key in expected if key.startswith(("heads.", "fusion."))):
        assert found[key].abs().max() > 0  # they learn all the same


def test_agm_with_kappa_one_is_the_joint_loss() -> None:
    method, model = make("agm", 3, alpha=0.0)
    inputs, label = batch(model)
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    assert_same(gradients(method, model, inputs, label), expected)
    method, model = make("agm", 3, alpha=3.0)
    method.state["active"].fill_(False)
    assert_same(gradients(method, model, inputs, label), expected)


def test_metabalance_with_nothing_relaxed_is_the_uniform_sum() -> None:
    method, model = make("metabalance", relax=0.0)
    expected = gradients(*make("uniform"), *batch(model))
    assert_same(gradients(method, model, *batch(model)), expected)


def test_metabalance_with_everything_relaxed_gives_both_gradients_one_norm() -> None:
    method, model = make("metabalance", relax=1.0)
    inputs, label = batch(model)
    loss = cross_entropies(model(inputs), label)
    joint, unimodal = plain_gradients(model, loss.joint), plain_gradients(model, loss.unimodal["x"])
    computed = gradients(method, model, inputs, label)
    for key in ("encoders.x.0.weight", "encoders.x.2.bias"):
        expected = joint[key] + unimodal[key] * (joint[key].norm() / unimodal[key].norm())
        torch.testing.assert_close(computed[key], expected, rtol=1e-9, atol=1e-14)


def test_metabalance_averages_norms_over_the_steps_per_encoder() -> None:
    method, model = make("metabalance", relax=0.7, beta=0.9)
    kept: dict[str, list[float]] = {}
    for seed in (1, 2, 3):
        inputs, label = batch(model, seed=seed)
        loss = cross_entropies(model(inputs), label)
        joint = plain_gradients(model, loss.joint)
        computed = gradients(method, model, inputs, label)
        for name in ("x", "y"):
            key = f"encoders.{name}.0.weight"
            alone = plain_gradients(model, loss.unimodal[name])[key]
            before = kept.get(name, [0.0, 0.0])
            now = joint[key].norm().item(), alone.norm().item()
            kept[name] = [0.9 * n + 0.1 * g for n, g in zip(before, now, strict=True)]
            factor = 0.7 * kept[name][0] / kept[name][1] + 0.3
            torch.testing.assert_close(computed[key], joint[key] + factor * alone, rtol=1e-9, atol=1e-14)


def test_metabalance_stays_finite_where_a_modality_falls_silent() -> None:
    routine = build_method("metabalance").integrator
    loud = torch.ones(1, 2, 2, dtype=torch.float32)
    silent = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    routine.coefficients(loud)
    for _ in range(1000):  # 0.9^821 is below the smallest number
        weights = routine.coefficients(silent)
        assert weights.isfinite().all()


def test_g_blending_with_equal_weights_is_a_scaled_uniform_sum() -> None:
    method, model = make("gblending", 3)
    expected = {key: g / 4 for key, g in gradients(*make("uniform", 3), *batch(model)).items()}
    assert_same(gradients(method, model, *batch(model)), expected)


def test_gradnorm_begins_as_the_uniform_sum_and_moves_by_the_norms_at_the_features() -> None:
    method, model = make("gradnorm", alpha=0.5, rate=0.1)
    inputs, label = batch(model)
    assert_same(gradients(method, model, inputs, label), gradients(*make("uniform"), inputs, label))
    output = model(inputs)
    loss = cross_entropies(output, label)
    joint = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss.joint, [*output.features.values()], retain_graph=True)]
    )
    norms = [joint.norm().item()] + [
        torch.autograd.grad(loss.unimodal[m], output.features[m], retain_graph=True)[0].norm().item()
        for m in ("x", "y")
    ]
    mean = sum(norms) / 3  # the first step: all weights and all progress are 1
    moved = [1 - 0.1 * g * ((g > mean) - (g < mean)) for g in norms]
    assert method.state["weights"].tolist() == pytest.approx([3 * w / sum(moved) for w in moved], rel=1e-9)
    weights = method.state["weights"].clone()
    losses = method.losses(Piece(output, label, loss, 1.0))
    assert losses.joint.item() == pytest.approx((weights[0] * loss.joint).item())
    assert losses.unimodal["y"].item() == pytest.approx((weights[2] * loss.unimodal["y"]).item())
    first = [loss.joint.item(), loss.unimodal["x"].item(), loss.unimodal["y"].item()]
    assert method.state["first"].tolist() == pytest.approx(first)
    gradients(method, model, *batch(model, seed=2))
    assert method.state["first"].tolist() == pytest.approx(first)  # of the first step, for good


def test_gradnorm_s_progress_is_the_loss_over_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(gradnorm, "moved_weights", lambda w, norms, progress, *_: seen.append(progress.clone()) or w)
    method, model = make("gradnorm")
    inputs, label = batch(model)
    for factor in (1.0, 0.25):
        output = model(inputs)
        losses = cross_entropies(output, label)
        method.losses(Piece(output, label, losses._replace(joint=losses.joint * factor), 1.0))
        method.gradients(model)
    close(seen[0], [1, 1, 1])
    close(seen[1], [0.25, 1, 1])


def test_agm_s_scores_have_a_floor_and_an_overflow_leaves_their_means() -> None:
    """log(1e-8), as in the published code; the modalities' parts have half of the bias each."""
    method, model = make("agm")
    inputs, label = batch(model)
    label = torch.zeros_like(label)

    def means(bias: float) -> list[float]:
        with torch.no_grad():
            model.fusion.head.weight.zero_()
            model.fusion.head.bias.copy_(t([0.0, bias, bias]))
        output = model(inputs)
        method.losses(Piece(output, label, cross_entropies(output, label), 1.0))
        return method.state["mean"].tolist()

    assert means(200.0) == pytest.approx([8 * math.log(10)] * 2)
    assert means(float("nan")) == pytest.approx([8 * math.log(10)] * 2)
    assert method.state["steps"] == 1


def test_mmcosine_is_one_joint_loss_on_cosines() -> None:
    method, model = make("mmcosine", scale=5.0)
    inputs, label = batch(model)
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    assert_same(gradients(method, model, inputs, label), expected)
    f = {m: encoder(inputs[m]) for m, encoder in model.encoders.items()}
    w = model.fusion.head.weight.split(512, 1)
    by_hand = sum(5.0 * F.cosine_similarity(f[m][:, None], w[k][None], dim=2) for k, m in enumerate(("x", "y")))
    torch.testing.assert_close(model(inputs).joint, by_hand)


def test_pmr_before_its_prototypes_and_after_its_last_epoch_is_the_joint_loss() -> None:
    method, model = make("pmr")
    inputs, label = batch(model)
    expected = plain_gradients(model, joint_and_detached_heads(model, inputs, label))
    assert_same(gradients(method, model, inputs, label), expected)  # the weights of the terms are still zero
    method.state["weights"].copy_(torch.tensor((1.0, 0.0)))
    for name in ("x", "y"):
        method.state[f"prototypes_{name}"].normal_(generator=torch.Generator().manual_seed(0))
    changed = gradients(method, model, inputs, label)
    slower = [
        name
        for name in ("x", "y")
        if not torch.allclose(changed[f"encoders.{name}.0.weight"], expected[f"encoders.{name}.0.weight"])
    ]
    assert len(slower) == 1  # of two modalities only the slow one is drawn


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in (*PLAIN, "finetune", *OWN)), *WITH_NETWORKS])
def test_no_step_waits_for_the_device(name: str, options: dict[str, Any], modalities: int) -> None:
    method, model = make(name, modalities, **options)
    inputs, label = batch(model)
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=0.1))
    step(inputs, label)  # the first one may look at the parameters
    with Calls() as calls:
        step(inputs, label)
    assert calls.waits == 0
    assert not calls.operators["lift_fresh"]  # a tensor of host values, which a GPU would wait for


@pytest.mark.parametrize("name", [name for name in OWN if name not in DRAWING])  # whose generator cannot be there
def test_a_step_holds_no_tensor_of_the_cpu(name: str) -> None:
    """On the device without memory: what mixes devices, or reads a value, raises there."""
    method, model = make(name)
    inputs, label = batch(model)
    model.to("meta")
    method.setup(model, 0, 4)
    for _ in range(2):
        computed = gradients(method, model, {m: value.to("meta") for m, value in inputs.items()}, label.to("meta"))
        assert all(gradient.is_meta for gradient in computed.values())


@pytest.mark.parametrize("name", [name for name in OWN if "accumulate" not in REFUSES[name] and name not in RANDOM])
def test_micro_batches_make_the_whole_batch_s_step(name: str) -> None:
    results = []
    for parts in (1, 3):
        method, model = make(name)
        step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=parts)
        for seed in (1, 2):  # the second step has the first one's state
            step(*batch(model, seed=seed))
        results.append({key: p.detach().clone() for key, p in model.named_parameters()} | method.state_dict()["own"])
    assert_same(results[0], results[1], equal_nan=True)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in (*OWN, "finetune")), *WITH_NETWORKS])
def test_what_is_saved_and_taken_back_goes_on_alike(name: str, options: dict[str, Any]) -> None:
    method, model = make(name, seed=3, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = TrainingStep(model, method, optimizer)
    step(*batch(model, seed=1))
    saved: Any = copy.deepcopy((method.state_dict(), model.state_dict(), optimizer.state_dict()))
    torch.manual_seed(7)
    step(*batch(model, seed=2))
    again, twin = make(name, seed=4, **options)
    for key, value in again.state.items():
        if key != "generator":  # whose bytes are no numbers
            value.copy_(~value if value.dtype == torch.bool else value.nan_to_num() + 10)
    again.load_state_dict(saved[0])
    assert_same(again.state, saved[0]["own"], rtol=0, atol=0, equal_nan=True)
    twin.load_state_dict(saved[1])
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    other.load_state_dict(saved[2])
    torch.manual_seed(7)
    TrainingStep(twin, again, other)(*batch(model, seed=2))
    for key, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key
    with pytest.raises(ValueError, match=r"keeps|carries"):
        Method(make("uniform")[0].integrator).load_state_dict({"integrator": {}, "own": {"strange": torch.zeros(1)}})


@pytest.mark.parametrize("name", ["uniform", "one_joint"])
def test_weights_equal_plain_training_bit_for_bit(name: str) -> None:
    """Three steps with momentum, three modalities, float32; nothing of this project in the second."""
    method, model = make(name, 3)
    model.float()
    plain = copy.deepcopy(model)
    step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for seed in (1, 2, 3):
        inputs, label = batch(model, seed=seed)
        inputs = {m: value.float() for m, value in inputs.items()}
        step(inputs, label)
        if name == "uniform":
            output = plain(inputs)
            loss = F.cross_entropy(output.joint, label)
            for logits in output.unimodal.values():
                loss = loss + F.cross_entropy(logits, label)
        else:
            loss = joint_and_detached_heads(plain, inputs, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_a_method_sees_gradients_without_the_scaler_s_factor() -> None:
    results = {}

    class Looks(Method):
        def gradients(self, model: MultimodalModel) -> None:
            results[scaled] = model.encoders["x"][0].weight.grad.clone()

    for scaled in (True, False):
        _, model = make("uniform")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        TrainingStep(model, Looks(Uniform()), optimizer, scaler=scaler)(*batch(model))
    torch.testing.assert_close(results[True], results[False], rtol=1e-6, atol=1e-9)


def test_ogm_ge_s_noise_has_the_unbiased_spread_and_none_of_a_single_number() -> None:
    method, _ = make("ogm_ge")
    weights = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(1, 1)]
    noise = torch.empty(2, 2).normal_(generator=torch.Generator().manual_seed(0))
    method._modulate(weights, torch.tensor(1.0))
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 1.290994 * noise
    torch.testing.assert_close(weights[0], expected, rtol=1e-5, atol=1e-5)
    assert weights[1].item() == pytest.approx(1.0, abs=1e-6)


def test_the_plain_method_is_the_integrator_alone() -> None:
    method, model = make("mmpareto")
    inputs, label = batch(model)
    loss = cross_entropies(model(inputs), label)
    encoders, heads = model.partition()
    method.integrator.backward(loss.joint, loss.unimodal, encoders=encoders, heads=heads)
    alone = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    computed = gradients(method, model, inputs, label)
    assert all(torch.equal(computed[key], gradient) for key, gradient in alone.items())


@pytest.mark.parametrize("name", [*OWN, "mmpareto", "pcd", "cr_mogm"])
def test_a_gradient_scaler_whose_scale_changes_in_every_step_changes_nothing(name: str) -> None:
    """In float64, where a power of two costs no rounding; GradNorm, which refuses fp16, included."""
    weights = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_factor=4.0, growth_interval=1)):
        method, model = make(name)
        step = TrainingStep(model, method, torch.optim.SGD(model.parameters(), 0.1), scaler=scaler)
        for seed in range(4):
            step(*batch(model, seed=seed), diagnose=True)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-9, atol=1e-12)
