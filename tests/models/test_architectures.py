"""Architectures: samples of a batch against samples alone, shared parameters against two passes, MMTM by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpareto.inputs import Input, Padded
from mmpareto.methods import build_method
from mmpareto.models import ARCHITECTURES, ModelError, MultimodalModel, Output, build_model, cross_entropies
from mmpareto.models.encoders.base import ConvolutionalEncoder, TokenEncoder
from mmpareto.models.fusions import FUSIONS
from mmpareto.models.mmtm import Excitation

CLASSES, BATCH = 3, 6
SIZES = {"a": 3, "v": 5, "t": 4}  # features of a token


class Tokens(TokenEncoder):
    """A token for each step of a sequence."""

    width = 8

    def __init__(self, size: int) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(size, 8), nn.Tanh())

    def tokens(self, x: Input) -> tuple[Tensor, Tensor | None]:
        assert isinstance(x, Padded)
        return self.map(x.values), x.mask


class Convolutions(ConvolutionalEncoder):
    """Two stages, without batch norm."""

    width, stage_widths = 6, (4, 6)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Tanh())

    def stages(self) -> list[nn.Module]:
        return [self.first, self.second]


def built(name: str, fusion: str = "concat", modalities: int = 3, seed: int = 0) -> MultimodalModel:
    torch.manual_seed(seed)
    kind = Convolutions if name == "mmtm" else Tokens
    encoders = {m: kind(size) for m, size in list(SIZES.items())[:modalities]}
    options: dict[str, Any] = {
        "mbt": {"token_width": 8, "layers": 2, "fusion_layer": 0, "heads": 2},
        "transformer": {"token_width": 8, "layers": 2, "heads": 2},
    }.get(name, {})
    maker = None if fusion == "concat" else lambda widths, classes, heads: FUSIONS.build(fusion, widths, classes)
    return ARCHITECTURES.build(name, encoders, CLASSES, maker, **options).double()


def data(name: str, modalities: int = 3, seed: int = 1, size: int = BATCH) -> dict[str, Input]:
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Input] = {}
    for m, width in list(SIZES.items())[:modalities]:
        if name == "mmtm":
            inputs[m] = torch.randn(size, width, 6, 5, generator=generator, dtype=torch.float64)
            continue
        lengths = torch.randint(1, 7, (size,), generator=generator)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        values = torch.randn(*mask.shape, width, generator=generator, dtype=torch.float64)
        inputs[m] = Padded(values * mask[..., None], mask)
    return inputs


def alone(inputs: dict[str, Input], row: int) -> dict[str, Input]:
    """One sample, without padding."""
    picked: dict[str, Input] = {}
    for name, value in inputs.items():
        if isinstance(value, Padded):
            length = int(value.mask[row].sum())
            picked[name] = Padded(value.values[row : row + 1, :length], value.mask[row : row + 1, :length])
        else:
            picked[name] = value[row : row + 1]
    return picked


def masks(seed: int = 2, size: int = BATCH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(SIZES), size, generator=generator) < 0.6
    drawn[0, ~drawn.any(0)] = True
    return dict(zip(SIZES, drawn, strict=True))


CASES = [
    *((name, "concat") for name in ARCHITECTURES.names()),
    *(("late_fusion", fusion) for fusion in FUSIONS.names() if fusion not in ("concat", "film", "gated")),
    ("mbt", "sum"),
]


@pytest.mark.parametrize(("name", "fusion"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_gives_what_its_samples_give_alone(name: str, fusion: str, training: bool) -> None:
    model = built(name, fusion).train(training)
    inputs, present = data(name), masks()
    for given in (None, present):
        whole = model(inputs, given)
        for row in range(BATCH):
            names = set(SIZES) if given is None else {m for m, mask in given.items() if mask[row]}
            single = model(alone(inputs, row), names)
            assert torch.allclose(whole.joint[row], single.joint[0], atol=1e-12)
            for m in names:
                assert torch.allclose(whole.features[m][row], single.features[m][0], atol=1e-12)
                assert torch.allclose(whole.unimodal[m][row], single.unimodal[m][0], atol=1e-12)
            for m in set(SIZES) - names:
                assert not whole.features[m][row].any()


@pytest.mark.parametrize("name", ARCHITECTURES.names())
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fill", [1e3, float("nan")])
def test_an_absent_input_has_no_influence(name: str, training: bool, fill: float) -> None:
    model, present = built(name).train(training), masks()
    label = torch.arange(BATCH) % CLASSES

    def run(inputs: dict[str, Input]) -> tuple[Output, dict[str, Tensor]]:
        model.zero_grad()
        output = model(inputs, present)
        losses = cross_entropies(output, label)
        torch.stack([losses.joint, *losses.unimodal.values()]).sum().backward()
        return output, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    inputs, other = data(name), data(name)
    for m, mask in present.items():
        value = other[m]
        (value.values if isinstance(value, Padded) else value)[~mask] = fill
    first, second = run(inputs), run(other)
    assert torch.equal(first[0].joint, second[0].joint)
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(gradient, second[1][key]) for key, gradient in first[1].items())


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_gradients_of_a_padded_batch_are_the_mean_of_its_samples(name: str) -> None:
    model, inputs = built(name), data(name)
    label = torch.arange(BATCH) % CLASSES

    def gradient(losses: Any) -> list[Tensor]:
        total = torch.stack([losses.joint, *losses.unimodal.values()]).sum()
        return list(torch.autograd.grad(total, list(model.parameters())))

    whole = gradient(cross_entropies(model(inputs), label))
    single = [gradient(cross_entropies(model(alone(inputs, row)), label[row : row + 1])) for row in range(BATCH)]
    for place, value in enumerate(whole):
        assert torch.allclose(value, torch.stack([row[place] for row in single]).mean(0), atol=1e-12)


@pytest.mark.parametrize("name", ["mbt", "mmtm", "transformer"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("method", ["uniform", "mmpareto", "one_joint"])
def test_integration_with_shared_parameters_is_that_of_two_passes(name: str, missing: bool, method: str) -> None:
    """Encoders: the coefficients times the gradients of the joint loss and of the sum of the unimodal ones."""
    model, inputs, label = built(name), data(name), torch.arange(BATCH) % CLASSES
    losses = cross_entropies(model(inputs, masks() if missing else None), label)
    parameters = list(model.parameters())
    both = [
        torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        for loss in (losses.joint, torch.stack(list(losses.unimodal.values())).sum())
    ]
    pairs = {id(p): pair for p, pair in zip(parameters, zip(*both, strict=True), strict=True)}
    integrator = build_method(method).integrator
    encoders, heads = model.partition()
    integrator.backward(losses.joint, losses.unimodal, encoders=encoders, heads=heads)
    for _, p in heads:
        assert p.grad is not None
        assert torch.allclose(p.grad, sum(pairs[id(p)]), atol=1e-12)
    for encoder in encoders.values():
        tensors = list(encoder.parameters())
        flat = [torch.stack([part.flatten() for part in pairs[id(p)]]) for p in tensors]
        gramians = torch.stack([rows @ rows.T for rows in flat])
        for p, rows, weights in zip(tensors, flat, integrator.coefficients(gramians), strict=True):
            expected = (weights.double() @ rows).view_as(p)
            assert torch.allclose(torch.zeros_like(p) if p.grad is None else p.grad, expected, atol=1e-10)


@pytest.mark.parametrize("name", ["mbt", "mmtm"])
def test_dense_fusion_lets_a_unimodal_loss_reach_the_other_encoders(name: str) -> None:
    model = built(name)
    losses = cross_entropies(model(data(name)), torch.arange(BATCH) % CLASSES)
    other = next(model.innermost()["v"].parameters())
    assert torch.autograd.grad(losses.unimodal["a"], other)[0].abs().max() > 0


def test_mmtm_by_hand() -> None:
    """s = (1, .5), A = [1, 1], E = (.4, -.2): gates .645656 and .425557 with a factor of 1."""
    module = Excitation((1, 1), ratio=4.0, factor=1.0)
    with torch.no_grad():
        module.squeeze.weight.fill_(1.0), module.squeeze.bias.zero_()
        for excite, weight in zip(module.excite, (0.4, -0.2), strict=True):
            excite.weight.fill_(weight), excite.bias.zero_()
        gates = module([torch.tensor([[1.0]]), torch.tensor([[0.5]])])
    assert [round(float(gate), 6) for gate in gates] == [0.645656, 0.425557]


def test_mmtm_averages_frames() -> None:
    model = built("mmtm")
    inputs = data("mmtm")
    frames = {name: torch.stack([value, value], 1) for name, value in inputs.items() if isinstance(value, Tensor)}
    assert torch.allclose(model(frames).joint, model(inputs).joint, atol=1e-12)


def test_batch_norm_sees_present_samples_alone() -> None:
    shapes = {"x": ("image", (1, 8, 8)), "y": ("image", (1, 8, 8))}
    torch.manual_seed(0)
    model = build_model(shapes, CLASSES, dict.fromkeys(shapes, "cnn"))
    inputs = {name: torch.randn(4, 1, 8, 8) for name in shapes}
    inputs["x"][2:] = inputs["x"][:2]  # what the absent ones are replaced by
    model(inputs)
    expected = model.encoders["x"][1].running_mean.clone()
    model.encoders["x"][1].reset_running_stats()
    inputs["x"][2:] = 100.0
    present = {"x": torch.tensor([True, True, False, False]), "y": torch.ones(4, dtype=torch.bool)}
    model(inputs, present)
    assert torch.allclose(model.encoders["x"][1].running_mean, expected)


@pytest.mark.parametrize("name", ARCHITECTURES.names())
@pytest.mark.parametrize("compile_", [False, True])
def test_a_batch_without_a_modality_leaves_its_encoder_alone(name: str, compile_: bool) -> None:
    """Also where the absent inputs are not finite, and over several forward passes before the backward pass."""
    torch.manual_seed(0)
    shapes = {"x": ("image", (1, 8, 8)), "y": ("image", (1, 8, 8))}
    model = build_model(shapes, CLASSES, dict.fromkeys(shapes, "cnn"), architecture=name)
    model(inputs := {m: torch.randn(4, 1, 8, 8) for m in shapes})  # statistics that are not the first ones
    before = {m: {key: value.clone() for key, value in e.named_buffers()} for m, e in model.innermost().items()}
    forward = torch.compile(model, backend="aot_eager") if compile_ else model
    present = {"x": torch.zeros(4, dtype=torch.bool), "y": torch.ones(4, dtype=torch.bool)}
    total = torch.zeros(())
    for fill in (7.0, float("nan")):
        output = forward({**inputs, "x": torch.full((4, 1, 8, 8), fill)}, present)
        losses = cross_entropies(output, torch.tensor([0, 1, 2, 0]))
        total = total + losses.joint + losses.unimodal["x"] + losses.unimodal["y"]
    total.backward()
    after = {m: dict(encoder.named_buffers()) for m, encoder in model.innermost().items()}
    assert before["x"]
    assert all(torch.equal(after["x"][key], value) for key, value in before["x"].items())
    assert all(not torch.equal(after["y"][key], value) for key, value in before["y"].items())
    gradients = {m: [p.grad for p in encoder.parameters()] for m, encoder in model.innermost().items()}
    assert not any(gradient is not None and gradient.any() for gradient in gradients["x"])
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(gradient is not None and gradient.any() for gradient in gradients["y"])


def test_a_batch_without_a_modality_trains_the_other_one() -> None:
    model = built("late_fusion")
    present = {name: torch.full((BATCH,), name != "a") for name in SIZES}
    losses = cross_entropies(model(data("late_fusion"), present), torch.arange(BATCH) % CLASSES)
    assert losses.unimodal["a"].item() == 0
    torch.stack([losses.joint, *losses.unimodal.values()]).sum().backward()
    gradients = {m: [p.grad for p in model.encoders[m].parameters()] for m in SIZES}
    assert all(gradient is not None and not gradient.any() for gradient in gradients["a"])
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients["v"])


@pytest.mark.parametrize(
    ("name", "options", "fusion", "message"),
    [
        ("mbt", {"layers": 2, "fusion_layer": 2}, "concat", "fusion_layer must be from 0 to layers - 1 = 1, found 2"),
        ("mbt", {"token_width": 10}, "concat", "4 attention heads must divide the width of the tokens, 10"),
        ("mmtm", {}, "concat", "Tokens of the modality a has none; choose cnn or resnet18"),
        ("transformer", {}, "sum", "the architecture transformer is its own fusion: leave --fusion out"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], fusion: str, message: str) -> None:
    encoders = {m: Tokens(size) for m, size in SIZES.items()}
    maker = None if fusion == "concat" else lambda widths, classes, heads: FUSIONS.build(fusion, widths, classes)
    with pytest.raises(ModelError, match=message):
        ARCHITECTURES.build(name, encoders, CLASSES, maker, **options)
