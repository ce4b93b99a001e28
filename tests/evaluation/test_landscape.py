"""The loss along filter-normalised directions: by hand, at 0, and what is left of the weights afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation.small_model import batches, joined, make_model

from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.landscape import filter_normalised, hessian_product, mean_loss, surface
from mmpareto.models import build_model


def test_every_filter_of_a_direction_is_as_long_as_the_weights() -> None:
    torch.manual_seed(0)
    convolution, linear, bias = torch.randn(5, 2, 3, 3), torch.randn(4, 6), torch.randn(4)
    convolution[3] = 0  # a dead filter does not move
    weights = [convolution, linear, bias]
    direction = filter_normalised(weights, torch.Generator().manual_seed(1))
    for moved, fixed in zip(direction[:2], weights[:2], strict=True):
        for row, kept in zip(moved, fixed, strict=True):
            assert float(row.norm()) == pytest.approx(float(kept.norm()), rel=1e-6)
    assert not direction[2].any()
    # by hand: the same numbers, filter by filter
    drawn = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    for row, raw, kept in zip(direction[0].numpy(), drawn, convolution.numpy(), strict=True):
        assert np.allclose(row, raw / np.sqrt((raw**2).sum()) * np.sqrt((kept.astype(float) ** 2).sum()), atol=1e-6)


def test_batch_norm_and_biases_do_not_move() -> None:
    model = build_model({"a": ("image", (1, 8, 8)), "b": ("image", (3, 8, 8))}, 3, {"a": "cnn", "b": "pmr"})
    direction = filter_normalised(list(model.parameters()), torch.Generator().manual_seed(0))
    for (name, weights), moved in zip(model.named_parameters(), direction, strict=True):
        assert bool(moved.any()) == (weights.dim() > 1), name


def test_the_surface_is_the_loss_of_moved_weights() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grid = surface(model.train(), batches(), directions=2, distance=0.5, points=5, seed=7)
    assert grid.alphas == [-0.5, -0.25, 0.0, 0.25, 0.5]
    inputs, label, _ = joined(batches())
    model.eval()
    with torch.no_grad():
        output = model(inputs).joint
    plain = float(F.cross_entropy(output, label))
    right = 100 * float((output.argmax(1) == label).double().mean())
    assert [row[2] for row in grid.losses] == pytest.approx([plain, plain], rel=1e-12)
    assert [row[2] for row in grid.accuracies] == pytest.approx([right, right])
    generator = torch.Generator().manual_seed(7)
    for losses in grid.losses:
        direction = filter_normalised(list(model.parameters()), generator)
        for alpha, loss in zip(grid.alphas, losses, strict=True):
            values = {
                name: (p + alpha * d).detach() for (name, p), d in zip(model.named_parameters(), direction, strict=True)
            }
            moved = torch.func.functional_call(model, values, (inputs,)).joint
            assert loss == pytest.approx(float(F.cross_entropy(moved, label)), rel=1e-12)
    assert grid.losses[0] != grid.losses[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_end_as_they_were_even_where_the_loss_is_not_finite(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    with torch.no_grad():
        model.fusion.head.weight[0, 0] = -0.0  # which 0 would equal
    parts = [type(part)({k: v.to(dtype) for k, v in part.inputs.items()}, part.label) for part in batches()]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(EvaluationError, match="smaller --distance"):
        surface(model, parts, directions=1, distance=1e308 if dtype == torch.float64 else 1e39, points=3, seed=0)
    for now, then in zip(model.parameters(), before, strict=True):
        assert now.detach().numpy().tobytes() == then.numpy().tobytes()


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no samples"):
        mean_loss(make_model(), [])
    with pytest.raises(EvaluationError, match="no samples"):
        hessian_product(make_model(), [])
    broken = make_model()
    with torch.no_grad():
        broken.fusion.head.bias[0] = float("inf")
    with pytest.raises(EvaluationError, match="the model diverged"):
        surface(broken, batches(), directions=1, distance=1.0, points=3, seed=0)
