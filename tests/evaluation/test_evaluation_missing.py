"""Missing modalities against plain passes of the model; Shapley values against their definition by orders."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest
import torch

from mmpareto.datasets import Batch, Modality
from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.collected import collect
from mmpareto.evaluation.missing import (
    ANY,
    accuracies_by_passes,
    accuracies_from_features,
    rate_cases,
    subset_cases,
    subsets,
)
from mmpareto.evaluation.shapley import imbalance, shapley
from mmpareto.models import MultimodalModel, build_model, fusion_maker

SIZES = {"x": 6, "y": 4, "z": 3}
MODALITIES = {name: Modality("vector", (size,)) for name, size in SIZES.items()}
CPU = torch.device("cpu")


def make_model() -> MultimodalModel:
    torch.manual_seed(0)
    model = build_model({name: ("vector", (size,)) for name, size in SIZES.items()}, 3, dict.fromkeys(SIZES, "mlp"))
    with torch.no_grad():
        model.fusion.head.bias += torch.tensor([0.0, 0.2, -0.1])
    return model


def data(samples: int = 50) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {name: 3 * torch.randn(samples, size, generator=generator) for name, size in SIZES.items()}
    return inputs, torch.randint(3, (samples,), generator=generator)


def batches(size: int = 16) -> Iterator[Batch]:
    inputs, label = data()
    for start in range(0, len(label), size):
        part = slice(start, start + size)
        ids = [f"clip{number}" for number in range(len(label))[part]]
        yield {"inputs": {name: value[part] for name, value in inputs.items()}, "label": label[part], "id": ids}


def test_a_pass_keeps_what_the_model_says_in_order() -> None:
    model = make_model()
    collected = collect(model, batches(), MODALITIES, CPU)
    inputs, label = data()
    with torch.no_grad():
        output = model.eval()(inputs)
    assert torch.equal(collected.label, label)
    assert torch.allclose(collected.joint, output.joint, atol=1e-6)
    for name in SIZES:
        assert torch.allclose(collected.features[name], output.features[name], atol=1e-6)
        assert torch.allclose(collected.logits()[name], output.unimodal[name], atol=1e-6)


@pytest.mark.parametrize("mean", [False, True])
def test_subsets_are_passes_with_the_missing_features_replaced(mean: bool) -> None:
    model = make_model()
    collected = collect(model, batches(), MODALITIES, CPU)
    instead = {name: value.mean(0) if mean else torch.zeros(512) for name, value in collected.features.items()}
    cases = subset_cases(collected.present)
    accuracies = accuracies_from_features(
        cases, model.fusion, collected.features, collected.label, CPU, batch_size=16, instead=instead if mean else None
    )
    if not mean:
        assert accuracies_by_passes(cases, model, batches(), MODALITIES, CPU) == accuracies
    assert len(accuracies) == 8
    inputs, label = data()
    weight, bias = model.fusion.head.weight.detach(), model.fusion.head.bias.detach()
    with torch.no_grad():
        for present, accuracy in accuracies.items():
            features = model(inputs).features
            used = [f if name in present else instead[name].expand_as(f) for name, f in features.items()]
            right = (torch.cat(used, 1) @ weight.T + bias).argmax(1) == label
            assert accuracy == pytest.approx(100 * right.double().mean().item())
            if not mean:  # what the fusion itself does without a modality
                plain = model.fusion(features, present=present).argmax(1) == label
                assert accuracy == pytest.approx(100 * plain.double().mean().item())
    assert len(set(accuracies.values())) > 4
    assert accuracies[frozenset(SIZES)] == 100 * int((collected.joint.argmax(1) == label).sum()) / 50


@pytest.mark.parametrize("fusion", ["cosine", "film"])
def test_features_of_mixed_precision_give_the_logits_of_their_pass(fusion: str) -> None:
    torch.manual_seed(0)
    about = dict.fromkeys(("x", "y"), ("vector", (16,)))
    model = build_model(about, 30, dict.fromkeys(about, "mlp"), fusion_maker(fusion, {}))
    modalities = {name: Modality("vector", (16,)) for name in about}
    inputs = {name: torch.randn(4000, 16) for name in about}
    batch: Batch = {"inputs": inputs, "label": torch.zeros(4000, dtype=torch.int64), "id": [""] * 4000}
    collected = collect(model, [batch], modalities, CPU, torch.bfloat16)
    assert set(collected.types.values()) == {torch.bfloat16}
    said = collected.joint.argmax(1)
    accuracies = accuracies_from_features(
        {"all": collected.present}, model.fusion, collected.features, said, CPU, batch_size=4000, amp=torch.bfloat16,
        types=collected.types,
    )  # fmt: skip
    assert accuracies == {"all": 100.0}


def test_what_is_not_finite_is_named() -> None:
    broken = list(batches())
    broken[1]["inputs"]["y"][3, 0] = float("nan")
    with pytest.raises(EvaluationError, match=r"features of y are not finite for 1 of 50 clips, such as clip19"):
        collect(make_model(), broken, MODALITIES, CPU)
    with pytest.raises(EvaluationError, match="no samples"):
        collect(make_model(), [], MODALITIES, CPU)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shapley_is_the_mean_of_what_a_modality_adds_over_all_orders(count: int) -> None:
    names = list("abcd")[:count]
    generator = torch.Generator().manual_seed(count)
    value = {subset: 100 * float(torch.rand((), generator=generator)) for subset in subsets(names)}
    assert len(value) == 2**count
    expected = dict.fromkeys(names, 0.0)
    orders = list(permutations(names))
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            expected[name] += (value[before | {name}] - value[before]) / len(orders)
    values = shapley(names, value)
    assert values == pytest.approx(expected)
    assert sum(values.values()) == pytest.approx(value[frozenset(names)] - value[frozenset()])


def test_shapley_by_hand() -> None:
    """Two modalities: v() = 10, v(a) = 60, v(b) = 20, v(a, b) = 90: a adds 50 or 70, b 10 or 30."""
    value = {frozenset(): 10.0, frozenset("a"): 60.0, frozenset("b"): 20.0, frozenset("ab"): 90.0}
    assert shapley(["a", "b"], value) == {"a": 60.0, "b": 20.0}


@pytest.mark.parametrize(
    ("contributions", "expected"),
    [((5, 5, 5), 0), ((8, 0, 0), 1), ((60, 20), 0.5), ((30, -10), 1), ((0, 0), None), ((-2, -6), 0.5)],
)
def test_imbalance(contributions: tuple[float, ...], expected: float | None) -> None:
    spread = imbalance({str(number): value for number, value in enumerate(contributions)})
    assert spread == expected if expected is None else spread == pytest.approx(expected)


def test_rates_drop_that_part_of_the_samples_and_more_of_the_same_at_a_greater_rate() -> None:
    having = {name: torch.ones(3000, dtype=torch.bool) for name in SIZES}
    having["x"][:1000] = False
    cases = rate_cases(having, [0.3, 0.6], seed=0)
    assert list(cases) == [(name, rate) for name in (*SIZES, ANY) for rate in (0.3, 0.6)]
    for (dropped, rate), case in cases.items():
        masks = torch.stack(list(case.values()))
        assert masks.any(0).all()
        assert not case["x"][:1000].any()
        for name, mask in case.items():
            share = (~mask)[1000:].double().mean().item()
            if dropped == ANY:  # a sample that would lose all keeps one
                assert rate - 0.1 < share < rate + 0.04
            else:
                assert share == pytest.approx(rate if name == dropped else 0.0, abs=0.04)
    assert not (cases["y", 0.6]["y"] & ~cases["y", 0.3]["y"]).any()
    again = rate_cases(having, [0.3, 0.6], seed=0)
    assert all(torch.equal(case[name], again[key][name]) for key, case in cases.items() for name in SIZES)
