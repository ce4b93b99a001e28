"""The largest eigenvalue against numpy.linalg.eigvalsh, for chosen spectra and for the Hessian of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation.small_model import batches, flat, joined, make_model
from torch import Tensor

from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.landscape import hessian_product
from mmpareto.evaluation.sharpness import Product, largest_eigenvalue
from mmpareto.models import MultimodalModel

TOLERANCE = 1e-3
RANDOM = np.random.default_rng(0)
LINE = np.linspace(0, 1, 200)

SPECTRA: dict[str, list[float]] = {
    "negative dominant": [-10, 1, 0.8, 0.5, 0.1],
    "very negative dominant": [-1000, *RANDOM.uniform(-1, 1, 200), 1.2],
    "all but one negative": [*-RANDOM.uniform(1, 10, 200), 0.5],
    "all negative": [-1, -4, -2.5],
    "clustered": [*(1 - 0.01 * LINE)],
    "a cluster at the tolerance": [1, *[1 - TOLERANCE] * 50, *RANDOM.uniform(-3, 0.9, 100)],
    "degenerate": [2.0] * 10 + [1.0] * 50,
    "small beside the rest": [*[-1.0] * 10, 1e-6, *-RANDOM.uniform(0, 1, 100)],
    "one outlier of many alike": [1.0] * 300 + [1.3],
    "opposite": [5, -5, *[0.0] * 50],
    "opposite, alone": [5, -5],
    "zero": [0.0] * 5,
    "zero at the top": [0, 0, -3, -3],
    "rank one": [0.0] * 100 + [2],
    "rank one, negative": [0.0] * 100 + [-2],
    "a multiple of the identity": [-7.0] * 30,
    "tiny": [*1e-30 * RANDOM.normal(size=60)],
    "very tiny": [*1e-200 * RANDOM.normal(size=60)],
    "huge": [*1e30 * RANDOM.normal(size=60)],
    "many magnitudes": [*np.logspace(-12, 3, 100)],
    "hidden in the bulk": [*RANDOM.uniform(-10, 0.9, 300), 1.0],
    "1 x 1": [7.0],
    "1 x 1, negative": [-7.0],
    "1 x 1, zero": [0.0],
    "2 x 2": [0.25, -3],
    "2 x 2, degenerate": [-7, -7],
    "2 x 2, tiny": [1e-30, -1e-30],
}


def quadratic(eigenvalues: Sequence[float]) -> tuple[Product, np.ndarray]:
    """The Hessian of a quadratic with these eigenvalues, in a random basis: by its products, and itself."""
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(size, size)))
    matrix = basis @ np.diag(eigenvalues) @ basis.T
    matrix = (matrix + matrix.T) / 2
    products = torch.from_numpy(matrix)
    return lambda vector: products @ vector, matrix


def start(size: int, seed: int = 4) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", [4, 5])
def test_the_largest_eigenvalue_of_a_quadratic(name: str, seed: int) -> None:
    product, matrix = quadratic(SPECTRA[name])
    eigenvalues = np.linalg.eigvalsh(matrix)
    largest, rounding = float(eigenvalues[-1]), 1e-11 * float(np.abs(eigenvalues).max())
    estimate = largest_eigenvalue(product, start(len(matrix), seed), 400, TOLERANCE)
    assert estimate.converged
    assert estimate.value == pytest.approx(largest, rel=TOLERANCE, abs=rounding)
    assert estimate.residual <= TOLERANCE * abs(largest) + rounding
    for most in (2, 3, 5, 12, 30):  # with fewer products it is right or says that it is not
        estimate = largest_eigenvalue(product, start(len(matrix), seed), most, TOLERANCE)
        assert estimate.products <= most
        assert estimate.value <= largest + rounding
        if estimate.converged:
            assert estimate.value == pytest.approx(largest, rel=TOLERANCE, abs=rounding)


def test_it_says_when_it_has_not_converged() -> None:
    product, _ = quadratic([1 - 0.9 * place / 500 for place in range(500)])
    few, more = (largest_eigenvalue(product, start(500), most, 1e-6) for most in (2, 40))
    assert not few.converged
    assert not more.converged
    assert few.value < more.value < 1
    assert more.residual > 1e-6


def test_no_more_products_than_needed() -> None:
    product, _ = quadratic([100, *RANDOM.uniform(0, 1, 400)])
    estimate = largest_eigenvalue(product, start(401), 100, TOLERANCE)
    assert estimate.converged
    assert estimate.products < 30


def test_a_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(EvaluationError, match="is not finite"):
        largest_eigenvalue(lambda vector: vector * float("nan"), start(3), 5, 1e-3)
    calls = []

    def later(vector: Tensor) -> Tensor:
        calls.append(1)
        return vector * torch.tensor([1.0, 2.0, math.inf if len(calls) > 2 else 3.0])

    with pytest.raises(EvaluationError, match="is not finite"):
        largest_eigenvalue(later, start(3), 50, 1e-3)


def explicit_hessian(model: MultimodalModel) -> Tensor:
    """By torch.autograd.functional over all samples at once, of all parameters but the unimodal heads'."""
    inputs, label, _ = joined(batches())
    names = [name for name, _ in model.named_parameters() if not name.startswith("heads.")]
    parameters = [model.get_parameter(name).detach() for name in names]
    sizes = [p.numel() for p in parameters]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        values = {name: part.view_as(p) for name, part, p in zip(names, parts, parameters, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)).joint, label)

    hessian = torch.autograd.functional.hessian(loss, flat(parameters))
    assert isinstance(hessian, Tensor)
    return hessian


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_hessian_of_a_model(seed: int) -> None:
    model = make_model(seed)
    hessian = explicit_hessian(model)
    uneven = [
        *batches()[:3],
        *(
            type(part)({k: v[rows] for k, v in part.inputs.items()}, part.label[rows])
            for part in batches()[3:]
            for rows in (slice(0, 3), slice(3, 8))
        ),
    ]
    product, size = hessian_product(model, uneven)  # the mean over samples, not over batches
    assert size == len(hessian)
    for vector in torch.eye(size, dtype=torch.float64)[:5]:
        assert torch.allclose(product(vector), hessian @ vector, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    estimate = largest_eigenvalue(product, start(size), 500, 1e-9)
    assert estimate.converged
    assert estimate.value == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_is_mostly_concave() -> None:
    """The joint loss turned over: its Hessian's eigenvalue of largest magnitude is negative."""
    model = make_model()
    eigenvalues = torch.linalg.eigvalsh(-explicit_hessian(model))
    assert -eigenvalues[0] > eigenvalues[-1]
    product, size = hessian_product(model, batches())
    estimate = largest_eigenvalue(lambda vector: -product(vector), start(size), 2000, 1e-6)
    assert estimate.converged
    assert estimate.value == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
