"""Fusions, with values that can be worked out in the head."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmpareto.models import FUSIONS, ModelError

TWO, THREE = {"a": 3, "v": 2}, {"a": 3, "v": 2, "t": 5}
NAMES = ["attention", "concat", "cosine", "film", "gated", "lmf", "mlp", "sum", "tensor"]
PAIRS = {"film", "gated"}  # defined for two modalities
SMALL: dict[str, dict[str, Any]] = {"attention": {"width": 8}, "gated": {"width": 4}, "mlp": {"width": 6}}


def fusion(name: str, widths: dict[str, int], classes: int = 4, **options: Any) -> Any:
    torch.manual_seed(0)
    return FUSIONS.build(name, widths, classes, **(SMALL.get(name, {}) | options))


def features(widths: dict[str, int], batch: int = 6) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {name: torch.randn(batch, width, generator=random) for name, width in widths.items()}


def set_linear(layer: nn.Module, weight: list[list[float]], bias: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def cases() -> list[Any]:
    return [
        pytest.param(name, widths, id=f"{name}-{len(widths)}")
        for name in NAMES
        for widths in (TWO, THREE)
        if not (name in PAIRS and len(widths) > 2)
    ]


def test_these_are_all() -> None:
    assert [name for name in FUSIONS if FUSIONS[name].make.__module__.startswith("mmpareto.")] == NAMES


@pytest.mark.parametrize(("name", "widths"), cases())
def test_unequal_widths_and_a_batch_of_one(name: str, widths: dict[str, int]) -> None:
    module = fusion(name, widths).eval()
    given = features(widths)
    with torch.no_grad():
        whole = module(given)
        assert whole.shape == (6, 4)
        first = module({key: value[:1] for key, value in given.items()})
    torch.testing.assert_close(first, whole[:1])


@pytest.mark.parametrize(("name", "widths"), cases())
def test_every_parameter_and_every_feature_gets_a_gradient(name: str, widths: dict[str, int]) -> None:
    module = fusion(name, widths)
    given = {key: value.requires_grad_() for key, value in features(widths).items()}
    module(given).square().sum().backward()
    for key, tensor in [*module.named_parameters(), *given.items()]:
        assert tensor.grad is not None, key
        assert tensor.grad.abs().sum() > 0, key


@pytest.mark.parametrize(("name", "widths"), cases())
@pytest.mark.parametrize("present", [("a",), ("v",), ()], ids=str)
def test_absent_modalities(name: str, widths: dict[str, int], present: tuple[str, ...]) -> None:
    """An absent feature counts as zero; attention masks its token. What the feature was does not matter."""
    module = fusion(name, widths).eval()
    given = features(widths)
    zero = {key: value if key in present else torch.zeros_like(value) for key, value in given.items()}
    masks = {key: torch.full((6,), key in present) for key in widths}
    with torch.no_grad():
        logits = module(given, present)
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(module(given, masks), logits)
        torch.testing.assert_close(module(zero, present), logits)
        if name != "attention":
            torch.testing.assert_close(module(zero), logits)


@pytest.mark.parametrize(("name", "widths"), cases())
def test_masks_differ_by_sample(name: str, widths: dict[str, int]) -> None:
    module = fusion(name, widths).eval()
    given = features(widths, 2)
    masks = {key: torch.tensor([True, key != "v"]) for key in widths}
    others = [key for key in widths if key != "v"]
    with torch.no_grad():
        mixed, full, without = module(given, masks), module(given), module(given, others)
    torch.testing.assert_close(mixed, torch.stack([full[0], without[1]]))
    assert not torch.allclose(full[1], without[1])


@pytest.mark.parametrize("name", ["concat", "cosine", "sum"])
def test_contributions_sum_up_to_the_joint_logits(name: str) -> None:
    module, given = fusion(name, THREE), features(THREE)
    torch.testing.assert_close(torch.stack(list(module.contributions(given).values())).sum(0), module(given))


def test_only_sums_have_contributions() -> None:
    offering = {name for name in NAMES if hasattr(fusion(name, TWO), "contributions")}
    assert offering == {"concat", "cosine", "sum"}


def test_sum_equals_concat_with_the_biases_added() -> None:
    added, concat = fusion("sum", TWO), fusion("concat", TWO)
    with torch.no_grad():
        concat.head.weight.copy_(torch.cat([head.weight for head in added.heads.values()], 1))
        concat.head.bias.copy_(added.heads["a"].bias + added.heads["v"].bias)
    torch.testing.assert_close(added(features(TWO)), concat(features(TWO)))


def test_film_by_hand() -> None:
    """gamma = (0.5, 2), beta = (0.1, -0.1), y = (1, 3): gamma * y + beta = (0.6, 5.9)."""
    module = fusion("film", {"x": 1, "y": 2}, 2)
    set_linear(module.film, [[0.5], [2.0], [0.1], [-0.1]], [0.0] * 4)
    set_linear(module.head, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    given = {"x": torch.tensor([[1.0]]), "y": torch.tensor([[1.0, 3.0]])}
    assert module(given)[0].tolist() == pytest.approx([0.6, 5.9])


def test_gated_by_hand() -> None:
    """sigmoid(0, 1) * (2, 3) = (1, 2.193176); `condition` turns the two around."""
    for condition, x, y in ((None, "x", "y"), ("y", "y", "x")):
        module = fusion("gated", {"x": 2, "y": 2}, 2, width=2, condition=condition)
        for layer in (module.gate, module.value, module.head):
            set_linear(layer, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
        given = {x: torch.tensor([[0.0, 1.0]]), y: torch.tensor([[2.0, 3.0]])}
        assert module(given)[0].tolist() == pytest.approx([1.0, 2.193176])


def test_tensor_by_hand() -> None:
    """[1; 1, 2] x [1; 3] = (1, 3, 1, 3, 2, 6)."""
    given = {"a": torch.tensor([[1.0, 2.0]]), "v": torch.tensor([[3.0]])}
    assert fusion("tensor", {"a": 2, "v": 1}).product(given).tolist() == [[1, 3, 1, 3, 2, 6]]


def test_lmf_by_hand() -> None:
    """F_a = (0.1, 0.2, 0.3), (0, 1, 0.5), F_v = (0.5, 0.5), (1, 0), the first for the 1; w = (1, 2): 5.8."""
    module = fusion("lmf", {"a": 2, "v": 1}, 1, rank=2)
    set_linear(module.factors["a"], [[0.2, 0.3], [1.0, 0.5]], [0.1, 0.0])
    set_linear(module.factors["v"], [[0.5], [0.0]], [0.5, 1.0])
    with torch.no_grad():
        module.weight.copy_(torch.tensor([1.0, 2.0]))
    given = {"a": torch.tensor([[1.0, 2.0]]), "v": torch.tensor([[3.0]])}
    assert module(given).tolist() == [[pytest.approx(5.8)]]


def test_lmf_is_a_tensor_fusion_of_low_rank() -> None:
    low, full = fusion("lmf", THREE, rank=3), fusion("tensor", THREE)
    factors = [
        torch.cat([factor.bias[:, None], factor.weight], 1).view(3, 4, -1).movedim(2, 0)  # [D + 1, R, C]
        for factor in low.factors.values()
    ]
    weight = torch.einsum("r,irc,jrc,krc->cijk", low.weight, *factors).flatten(1)
    with torch.no_grad():
        full.head.weight.copy_(weight)
        full.head.bias.copy_(low.bias)
    torch.testing.assert_close(full(features(THREE)), low(features(THREE)))


def test_an_mlp_by_hand() -> None:
    module = fusion("mlp", {"a": 1, "v": 1}, 2, width=2)
    set_linear(module.layers[0], [[1.0, 1.0], [-1.0, -1.0]], [0.0, 0.0])
    set_linear(module.layers[2], [[1.0, 1.0], [2.0, 0.0]], [0.0, 1.0])
    assert module({"a": torch.tensor([[1.0]]), "v": torch.tensor([[2.0]])}).tolist() == [[3.0, 7.0]]


def test_attention_does_not_see_an_absent_token() -> None:
    """Without t the fusion equals one that never had t, with the same weights."""
    three, two = fusion("attention", THREE).eval(), fusion("attention", TWO).eval()
    two.load_state_dict({key: value for key, value in three.state_dict().items() if not key.startswith("maps.t.")})
    given = features(THREE)
    with torch.no_grad():
        torch.testing.assert_close(three(given, ("a", "v")), two({name: given[name] for name in TWO}))


def test_fusions_that_cannot_be_made_are_refused() -> None:
    for name in PAIRS:
        with pytest.raises(ModelError, match=f"fusion {name} is defined for two modalities.* found 3: a, v, t"):
            fusion(name, THREE)
        with pytest.raises(ModelError, match="condition=t is no modality; they are a and v"):
            fusion(name, TWO, condition="t")
    wide = {"a": 512, "v": 512}
    with pytest.raises(ModelError, match=r"263169 columns .* 512, 512; the most are 65536: .* width=32"):
        fusion("tensor", wide)
    assert fusion("tensor", wide, width=32).head.in_features == 33**2
    assert fusion("tensor", wide, width=255).head.in_features == 2**16
    with pytest.raises(ModelError, match="width=15"):
        fusion("tensor", {str(number): 512 for number in range(4)})
    with pytest.raises(ModelError, match="take --fusion lmf"):
        fusion("tensor", {str(number): 512 for number in range(17)})
    with pytest.raises(ModelError, match="3 attention heads must divide the width of the tokens, 8"):
        fusion("attention", TWO, heads=3)
    for name, option in (("lmf", "rank"), ("mlp", "width"), ("tensor", "width"), ("attention", "layers")):
        with pytest.raises(ModelError, match=f"option {option} must be 1 or more, found 0"):
            fusion(name, TWO, **{option: 0})


def test_lmf_starts_at_the_size_of_one_product() -> None:
    assert fusion("lmf", TWO, rank=9).weight.tolist() == pytest.approx([1 / math.sqrt(9)] * 9)


def test_the_documentation_has_a_row_for_each_fusion() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    page = text.partition("\n## Fusions\n")[2]
    for name in NAMES:
        rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1, name
        assert all(f"`{option}`" in rows[0] for option in FUSIONS[name].options), name


def test_the_cosine_with_an_absent_modality_is_zero_in_half_precision_too() -> None:
    """The least norm that float32 divides by is zero in float16."""
    fusion = FUSIONS.build("cosine", widths={"a": 3, "b": 2}, classes=4)
    features = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    masks = {"a": torch.tensor([True, False, True, True, False]), "b": torch.ones(5, dtype=torch.bool)}
    expected = fusion(features, present=masks)
    half = {name: value.half().requires_grad_() for name, value in features.items()}
    with torch.autocast("cpu", torch.float16):
        logits = fusion(half, present=masks)
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.05)
    logits.sum().backward()
    for value in half.values():
        assert value.grad is not None
        assert value.grad.isfinite().all()
