"""The public interface: any module, any parameters, accumulation, mixed precision, errors that name the parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from integration import published
from integration.problems import ROUTINES, LateFusion
from torch import Tensor, nn

from mmpareto.integration import Integrator, MMPareto, OneJoint, PartitionError, Uniform
from mmpareto.methods import METHODS

SOLVED = ("cagrad", "fairgrad", "nash_mtl")  # by iterative solvers, to their own tolerance
DRAWN = ("random",)


class Plain(Integrator):
    """A routine of a user's own: the plain sum."""

    def coefficients(self, gramians: Tensor) -> Tensor:
        return gramians.new_ones(len(gramians), 2)


class WrongShape(Integrator):
    def coefficients(self, gramians: Tensor) -> Tensor:
        return gramians.new_ones(2)


def plain_sum(model: LateFusion, seed: int) -> dict[str, Tensor]:
    joint, unimodal = model.losses(*model.batch(seed))
    model.zero_grad()
    (joint + sum(unimodal.values())).backward()
    return model.gradients()


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert (gradient - theirs[name]).norm() <= tolerance * max(theirs[name].norm().item(), 1e-12), name


@pytest.mark.parametrize("method", ["uniform", "integration.test_interface:Plain"])
def test_the_plain_sum(method: str) -> None:
    model = LateFusion(3, seed=1)
    expected = plain_sum(model, 5)
    METHODS.build(method).backward(*model.losses(*model.batch(5)), **model.arguments())
    same(model.gradients(), expected)


@pytest.mark.parametrize("diagnose", [False, True])
def test_one_joint_loss(diagnose: bool) -> None:
    """Encoders and fusion: the joint loss's gradient. Unimodal heads: their own loss's."""
    model = LateFusion(2, seed=1)
    joint, unimodal = model.losses(*model.batch(5))
    expected = {}
    for name, p in model.named_parameters():
        loss = sum(unimodal.values()) if name.startswith("heads") else joint
        expected[name] = torch.autograd.grad(loss, p, retain_graph=True)[0]
    diagnostics = OneJoint().backward(*model.losses(*model.batch(5)), **model.arguments(), diagnose=diagnose)
    same(model.gradients(), expected)
    assert bool(diagnostics) == diagnose


@pytest.mark.parametrize("diagnose", [False, True])
def test_uniform_times_gamma(diagnose: bool) -> None:
    model = LateFusion(2, seed=1)
    expected = {n: g * (1.5 if n.startswith("encoders") else 1) for n, g in plain_sum(model, 5).items()}
    Uniform(1.5).backward(*model.losses(*model.batch(5)), **model.arguments(), diagnose=diagnose)
    same(model.gradients(), expected)


def test_diagnostics_are_those_of_the_two_gradients() -> None:
    model = LateFusion(2, seed=3, opposed=True)
    joint, unimodal = model.losses(*model.batch(5))
    for routine in (MMPareto(), Uniform(), OneJoint()):
        diagnostics = routine.backward(*model.losses(*model.batch(5)), **model.arguments(), diagnose=True)
        for name, encoder in model.encoders.items():
            parameters = list(encoder.parameters())
            j = published.joined(published.gradient(joint, parameters))
            u = published.joined(published.gradient(unimodal[name], parameters))
            assert diagnostics[name].joint_norm.item() == pytest.approx(np.linalg.norm(j))
            assert diagnostics[name].unimodal_norm.item() == pytest.approx(np.linalg.norm(u))
            assert diagnostics[name].cosine.item() == pytest.approx(j @ u / np.linalg.norm(j) / np.linalg.norm(u))
            assert diagnostics[name].conflict.item() == (j @ u < 0)
            assert diagnostics[name].gramians.shape == (4, 2, 2)
            assert routine.parameter_names(encoder) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("method", [name for name in ROUTINES if name not in DRAWN])
def test_micro_batches_are_one_batch(method: str) -> None:
    """Sums of the two gradient sets are integrated once, over two steps, so that a routine's state goes along."""
    whole, parts = (LateFusion(3, seed=2, opposed=True) for _ in range(2))
    integrators = [METHODS.build(method) for _ in range(2)]
    for step in range(2):
        inputs, label = whole.batch(step, size=12)
        integrators[0].backward(*whole.losses(inputs, label), **whole.arguments())
        for k in range(3):
            rows = slice(4 * k, 4 * k + 4)
            joint, unimodal = parts.losses({n: x[rows] for n, x in inputs.items()}, label[rows])
            arguments = (joint / 3, {name: loss / 3 for name, loss in unimodal.items()})
            call = integrators[1].backward if k == 2 else integrators[1].accumulate
            call(*arguments, **parts.arguments())
        same(parts.gradients(), whole.gradients(), 1e-4 if method in SOLVED else 1e-10)


def test_integrated_micro_batches_would_be_something_else() -> None:
    model = LateFusion(2, seed=2, opposed=True)
    inputs, label = model.batch(0, size=8)
    MMPareto().backward(*model.losses(inputs, label), **model.arguments())
    right = torch.cat([g.flatten() for g in model.gradients().values()])
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        MMPareto().backward(*model.losses({n: x[rows] for n, x in inputs.items()}, label[rows]), **model.arguments())
        halves.append(torch.cat([g.flatten() for g in model.gradients().values()]))
    assert (sum(halves) / 2 - right).norm() > 0.01 * right.norm()


@pytest.mark.filterwarnings("error:Casting complex values")
def test_complex_parameters_count_as_their_real_and_imaginary_parts() -> None:
    """A spectral encoder, against one that holds both parts as a real parameter."""
    torch.manual_seed(0)
    parts = nn.Parameter(torch.randn(3, 4, 2, dtype=torch.float64))
    weight = nn.Parameter(torch.view_as_complex(parts.detach().clone()))
    joint_head, head = nn.Linear(4, 2).double(), nn.Linear(4, 2).double()
    x, label = torch.randn(5, 3, dtype=torch.complex128), torch.tensor([0, 1, 0, 1, 1])
    results = []
    for encoder in (torch.view_as_complex(parts), weight):
        parameter = parts if encoder is not weight else weight
        features = (x @ encoder).abs()
        losses = F.cross_entropy(joint_head(features), 1 - label), {"a": F.cross_entropy(head(features), label)}
        results.append(
            MMPareto().backward(
                *losses, encoders={"a": [parameter]}, heads=[*joint_head.parameters(), *head.parameters()]
            )
        )
    assert results[0]["a"].conflict
    assert torch.allclose(results[1]["a"].gramians, results[0]["a"].gramians, rtol=1e-12)
    assert torch.allclose(torch.view_as_real(weight.grad), parts.grad, rtol=1e-10)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0][:, -1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embed(x)).mean(1)


def test_recurrent_and_attention_encoders() -> None:
    model = LateFusion(2, seed=0, encoders=[Recurrent(), Attention()])
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(6, 5, 3, generator=generator, dtype=torch.float64) for name in model.encoders}
    label = torch.arange(6) % 3
    parameters = {name: list(encoder.parameters()) for name, encoder in model.encoders.items()}
    heads = [p for _, p in model.others]
    truth, head_truth, _ = published.step(*model.losses(inputs, label), parameters, heads, 1.5, "tensor")
    MMPareto().backward(*model.losses(inputs, label), **model.arguments())
    for name, tensors in parameters.items():
        for parameter, gradient in zip(tensors, truth[name], strict=True):
            assert np.allclose(parameter.grad.numpy(), gradient, rtol=1e-10, atol=1e-14)
    for parameter, gradient in zip(heads, head_truth, strict=True):
        assert np.allclose(parameter.grad.numpy(), gradient, rtol=1e-12)


def test_frozen_unreached_and_shared_parameters() -> None:
    model = LateFusion(2, seed=0)
    frozen = next(model.encoders["m0"].parameters())
    frozen.requires_grad_(False)
    model.encoders["m1"].register_parameter("idle", nn.Parameter(torch.ones(3)))
    model.encoders["m1"].idle.grad = torch.ones(3)  # stale
    expected = plain_sum(model, 0)
    expected.pop("encoders.m1.idle", None)
    Plain().backward(*model.losses(*model.batch(0)), **model.arguments())
    assert frozen.grad is None
    assert model.encoders["m1"].idle.grad is None
    same(model.gradients(), expected)


def test_an_encoder_that_modalities_share_is_an_entry_of_its_own() -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 4).double(), nn.ModuleList(nn.Linear(4, 2).double() for _ in range(3))
    x, y, label = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])

    def losses() -> tuple[Tensor, dict[str, Tensor]]:
        a, b = trunk(x).tanh(), trunk(y).tanh()
        return (
            F.cross_entropy(heads[0](a + b), label),
            {"a": F.cross_entropy(heads[1](a), label), "b": F.cross_entropy(heads[2](b), label)},
        )

    joint, unimodal = losses()
    shared = list(trunk.parameters())
    truth, _ = published.mmpareto(
        published.gradient(joint, shared), published.gradient(sum(unimodal.values()), shared), 1.5, "tensor"
    )
    MMPareto().backward(*losses(), encoders={"trunk": trunk}, heads=heads)
    for parameter, gradient in zip(shared, truth, strict=True):
        assert np.allclose(parameter.grad.numpy(), gradient, rtol=1e-12)


def test_a_loss_that_does_not_reach_an_encoder() -> None:
    """The joint loss leaves m1 out: its encoder gets gamma times the unimodal gradient, and no conflict."""
    model = LateFusion(2, seed=0)
    inputs, label = model.batch(0)

    def losses() -> tuple[Tensor, dict[str, Tensor]]:
        features = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
        joint = F.cross_entropy(model.heads["m0"](features["m0"]), label)
        return joint, {name: F.cross_entropy(head(features[name]), label) for name, head in model.heads.items()}

    expected = torch.autograd.grad(losses()[1]["m1"], list(model.encoders["m1"].parameters()))
    diagnostics = MMPareto(gamma=2.0).backward(*losses(), **model.arguments())
    for parameter, gradient in zip(model.encoders["m1"].parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, 2.0 * gradient, rtol=1e-12)
    assert not diagnostics["m1"].conflict
    assert diagnostics["m1"].cosine == 0


def test_a_scaled_loss_scales_the_gradient() -> None:
    for method in ROUTINES:
        if method in DRAWN:
            continue
        model = LateFusion(2, seed=2, opposed=True)
        gradients = []
        for scale in (1.0, 65536.0):
            joint, unimodal = model.losses(*model.batch(0))
            METHODS.build(method).backward(
                scale * joint, {name: scale * loss for name, loss in unimodal.items()}, **model.arguments()
            )
            gradients.append({name: g / scale for name, g in model.gradients().items()})
        same(gradients[1], gradients[0], 1e-4 if method in SOLVED else 1e-8)


def test_bfloat16_autocast_stays_close() -> None:
    model = LateFusion(2, seed=2).float()
    inputs, label = model.batch(0)
    inputs = {name: x.float() for name, x in inputs.items()}
    MMPareto().backward(*model.losses(inputs, label), **model.arguments())
    exact = torch.cat([g.flatten() for g in model.gradients().values()])
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(inputs, label)
    diagnostics = MMPareto().backward(*losses, **model.arguments())
    rounded = torch.cat([g.flatten() for g in model.gradients().values()])
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()
    assert diagnostics["m0"].gramians.dtype == torch.float64


def test_float16_autocast_under_a_gradient_scaler_stays_close() -> None:
    model = LateFusion(2, seed=2, opposed=True).float()
    inputs, label = model.batch(0)
    inputs = {name: x.float() for name, x in inputs.items()}
    expected = MMPareto().backward(*model.losses(inputs, label), **model.arguments())
    exact = torch.cat([g.flatten() for g in model.gradients().values()])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.autocast("cpu", torch.float16):
        joint, unimodal = model.losses(inputs, label)
    scaled = {name: scaler.scale(loss) for name, loss in unimodal.items()}
    diagnostics = MMPareto().backward(scaler.scale(joint), scaled, **model.arguments())
    scaler.unscale_(optimizer)
    rounded = torch.cat([g.flatten() for g in model.gradients().values()])
    assert 0 < (rounded - exact).norm() < 0.01 * exact.norm()
    assert any(d.conflict for d in expected.values())
    assert [bool(d.conflict) for d in diagnostics.values()] == [bool(d.conflict) for d in expected.values()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters(dtype: torch.dtype) -> None:
    model = LateFusion(2, seed=2).to(dtype)
    inputs, label = model.batch(0)
    losses = model.losses({name: x.to(dtype) for name, x in inputs.items()}, label)
    diagnostics = MMPareto().backward(*losses, **model.arguments())
    assert diagnostics["m0"].gramians.dtype == torch.float64
    assert all(p.grad is not None and p.grad.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("method", ["mmpareto", "uniform_gamma", "upgrad", "nash_mtl"])
def test_an_overflow_reaches_the_gradient_scaler(method: str) -> None:
    model = LateFusion(2, seed=2).float()
    inputs, label = model.batch(0)
    inputs = {name: x.float() for name, x in inputs.items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    joint, unimodal = model.losses(inputs, label)
    scaled = {name: scaler.scale(loss * 1e3) for name, loss in unimodal.items()}
    METHODS.build(method).backward(scaler.scale(joint * 1e3), scaled, **model.arguments())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1e38  # it saw the overflow
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))  # and skipped the step


def errors(**changed: Any) -> str:
    model = LateFusion(2, seed=0)
    joint, unimodal = model.losses(*model.batch(0))
    arguments = {**model.arguments(), **{key: make(model) for key, make in changed.items()}}
    with pytest.raises(PartitionError) as caught:
        MMPareto().backward(joint, unimodal, **arguments)
    return str(caught.value)


def test_errors_name_the_parameter() -> None:
    both = errors(
        encoders=lambda m: {"m0": m.encoders["m0"], "m1": [*m.encoders["m1"].parameters(), m.encoders["m0"][0].bias]}
    )
    assert "is listed twice: in encoders['m0'] and in encoders['m1']" in both
    assert "shape [7]" in both
    twice = errors(heads=lambda m: [*m.others, ("encoders.m1.2.weight", m.encoders["m1"][2].weight)])
    assert "parameter encoders.m1.2.weight of shape [4, 7] is listed twice: in encoders['m1'] and in heads" in twice
    missing = errors(heads=lambda m: [pair for pair in m.others if pair[0] != "heads.m0.bias"])
    assert missing.startswith("parameter heads.m0.bias of shape [3] of the module LateFusion gets a gradient")
    spent = errors(encoders=lambda m: {"m0": m.encoders["m0"], "m1": iter(())})
    assert "encoder 'm1' has no parameters" in spent
    assert "encoders is empty" in errors(encoders=lambda m: {})
    assert "encoders is list: give {name: module" in errors(encoders=lambda m: [m.encoders["m0"]])
    assert "encoders['m0'] is NoneType; give a module" in errors(encoders=lambda m: {"m0": None})
    assert "is a tensor" in errors(heads=lambda m: m.fusion.weight)
    assert "is no parameter: it was computed" in errors(heads=lambda m: [*m.others, m.fusion.weight * 2])
    assert "heads[0] is str" in errors(heads=lambda m: ["fusion"])


@pytest.mark.parametrize("method", ["mmpareto", "uniform", "one_joint"])
def test_a_model_finds_its_heads(method: str) -> None:
    listed, whole = LateFusion(2, seed=0, opposed=True), LateFusion(2, seed=0, opposed=True)
    first, second = METHODS.build(method), METHODS.build(method)
    for seed in range(2):
        first.accumulate(*listed.losses(*listed.batch(seed)), **listed.arguments())
        second.accumulate(*whole.losses(*whole.batch(seed)), encoders=dict(whole.encoders.items()), model=whole)
    first.backward(*listed.losses(*listed.batch(2)), **listed.arguments())
    pairs = {name: iter(list(encoder.named_parameters())) for name, encoder in whole.encoders.items()}
    second.backward(*whole.losses(*whole.batch(2)), encoders=pairs, model=whole)
    gradients = whole.gradients()
    assert len(gradients) == len(list(whole.parameters()))
    for name, gradient in listed.gradients().items():
        assert torch.equal(gradient, gradients[name])


@pytest.mark.parametrize("method", ["mmpareto", "uniform"])
def test_lists_and_dicts_of_losses(method: str) -> None:
    results = []
    for form in (
        lambda joint, unimodal: (2 * joint, unimodal),
        lambda joint, unimodal: ([joint, joint], list(unimodal.values())),
        lambda joint, unimodal: ({"a": joint, "b": joint}, tuple(unimodal.values())),
    ):
        model = LateFusion(2, seed=0, opposed=True)
        METHODS.build(method).backward(*form(*model.losses(*model.batch(0))), **model.arguments())
        results.append(model.gradients())
    for name, gradient in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(other[name], gradient)


@pytest.mark.parametrize("method", ["mmpareto", "uniform"])
def test_errors_about_a_model_and_lists(method: str) -> None:
    model = LateFusion(2, seed=0)
    integrator = METHODS.build(method)
    encoders = dict(model.encoders.items())
    losses = model.losses(*model.batch(0))
    with pytest.raises(PartitionError, match="give heads or the model, not both"):
        integrator.backward(*losses, encoders=encoders, heads=model.others, model=model)
    with pytest.raises(ValueError, match="joint_loss is empty: give a scalar loss, or several"):
        integrator.backward([], losses[1], **model.arguments())
    with pytest.raises(ValueError, match=r"unimodal_losses\['1'\] needs no gradient"):
        integrator.backward(losses[0], [losses[1]["m0"], losses[1]["m1"].detach()], **model.arguments())
    with pytest.raises(PartitionError, match="of the module LateFusion gets a gradient"):
        integrator.backward(*losses, encoders=encoders, model=model.heads)  # a part of the model: the fusion is lacking


def test_errors_about_losses_and_routines() -> None:
    model = LateFusion(2, seed=0)
    joint, unimodal = model.losses(*model.batch(0))
    with pytest.raises(ValueError, match=r"joint_loss has shape \[2\]; expected a scalar"):
        MMPareto().backward(torch.stack([joint, joint]), unimodal, **model.arguments())
    with pytest.raises(ValueError, match=r"unimodal_losses\['m1'\] needs no gradient"):
        MMPareto().backward(joint, {**unimodal, "m1": unimodal["m1"].detach()}, **model.arguments())
    with pytest.raises(TypeError, match="joint_loss is float"):
        MMPareto().backward(1.0, unimodal, **model.arguments())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unimodal_losses is empty"):
        MMPareto().backward(joint, {}, **model.arguments())
    for wrong in (None, unimodal["m0"], 3.0):
        with pytest.raises(TypeError, match=r"unimodal_losses is \w+; expected \{modality: scalar loss\}"):
            MMPareto().backward(joint, wrong, **model.arguments())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="joint_loss holds NoneType; expected scalar tensors"):
        MMPareto().backward([joint, None], unimodal, **model.arguments())  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"gave shape \[2\]; expected a tensor \[T, 2\] = \[4, 2\]"):
        WrongShape().backward(*model.losses(*model.batch(0)), **model.arguments())


def test_sparse_gradients_are_refused() -> None:
    table, joint_head, head = nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2), nn.Linear(4, 2)
    features = table(torch.tensor([0, 3]))
    label = torch.tensor([0, 1])
    losses = F.cross_entropy(joint_head(features), label), {"t": F.cross_entropy(head(features), label)}
    with pytest.raises(ValueError, match=r"gradient of shape \[5, 4\] is sparse"):
        MMPareto().backward(*losses, encoders={"t": table}, heads=[*joint_head.parameters(), *head.parameters()])


def test_a_failed_pass_leaves_no_micro_batch_behind() -> None:
    model = LateFusion(2, seed=0)
    integrator = MMPareto()
    integrator.accumulate(*model.losses(*model.batch(0)), **model.arguments())
    joint, unimodal = model.losses(*model.batch(1))
    joint.backward()  # frees the graph that integration needs
    with pytest.raises(RuntimeError):
        integrator.backward(joint, unimodal, **model.arguments())
    integrator.backward(*model.losses(*model.batch(2)), **model.arguments())
    alone = model.gradients()
    MMPareto().backward(*model.losses(*model.batch(2)), **model.arguments())
    same(model.gradients(), alone)


def test_methods_by_name() -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'; known: agm, dgl, ensemble, finetune"):
        METHODS.build("magic")
    with pytest.raises(ValueError, match="the method uniform has no option 'gamma'"):
        METHODS.build("uniform", gamma=2.0)
    with pytest.raises(ValueError, match="cannot be imported"):
        METHODS.build("no.such:Routine")
    with pytest.raises(ValueError, match="is no subclass"):
        METHODS.build("torch.nn:Identity")
    assert METHODS.build("mmpareto", gamma=2.0, rescale="encoder").gamma == 2.0  # type: ignore[attr-defined]
    assert METHODS.build("uniform_gamma").gamma == 1.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [True, False])
def test_micro_batches_of_one_step_are_measured_alike(first: bool) -> None:
    """The two ways gather in different places: mixed, a micro-batch would be lost without a word."""
    model, integrator = LateFusion(2, seed=0), Uniform()
    for _ in range(2):  # and nothing of the refused step is left for the next one
        integrator.accumulate(*model.losses(*model.batch(0)), **model.arguments(), diagnose=first)
        with pytest.raises(ValueError, match="same for all micro-batches"):
            integrator.backward(*model.losses(*model.batch(1)), **model.arguments(), diagnose=not first)
        integrator.backward(*model.losses(*model.batch(2)), **model.arguments(), diagnose=not first)
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        Uniform().backward(*model.losses(*model.batch(2)), **model.arguments(), diagnose=not first)
        assert all(torch.equal(a, b.grad) for a, b in zip(gradients, model.parameters(), strict=True))
