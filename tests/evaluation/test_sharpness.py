"""Power iteration against matrices whose eigenvalues are known, and the Hessian's against autograd and Lanczos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation.small_model import batches, flat, joined, model
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.landscape import hessian_product
from mmpareto.evaluation.sharpness import Product, largest_eigenvalue
from mmpareto.models import MultimodalClassifier


def quadratic(eigenvalues: Sequence[float]) -> Product:
    """The Hessian of a quadratic with these eigenvalues, in a random basis."""
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator).double())
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return lambda vector: matrix @ vector


def start(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize(
    ("eigenvalues", "largest", "dominant"),
    [
        ([0.5, 3.0, 1.0, -2.0], 3.0, 3.0),
        ([0.5, 3.0, 1.0, -8.0], 3.0, -8.0),  # power iteration alone would end at -8
        ([-1.0, -4.0, -2.5], -1.0, -4.0),
        ([7.0], 7.0, 7.0),
        ([-7.0, -7.0], -7.0, -7.0),
        ([0.0, 0.0], 0.0, 0.0),
    ],
)
def test_the_largest_eigenvalue_of_a_quadratic(eigenvalues: list[float], largest: float, dominant: float) -> None:
    found = largest_eigenvalue(quadratic(eigenvalues), start(len(eigenvalues)), 400, 1e-10)
    assert found.converged
    assert found.value == pytest.approx(largest, rel=1e-8, abs=1e-12)
    assert found.dominant == pytest.approx(dominant, rel=1e-8, abs=1e-12)
    assert found.change <= 1e-10
    assert found.residual <= 1e-5


def test_it_says_when_it_has_not_converged() -> None:
    close = [1.0, 0.999, 0.998, 0.5]
    found = largest_eigenvalue(quadratic(close), start(4), 3, 1e-12)
    assert not found.converged
    assert found.iterations == 3
    assert 0 < found.change < 1
    # between eigenvalues of equal magnitude the quotient stands still, far from both
    still = largest_eigenvalue(
        lambda vector: vector * torch.tensor([5.0, -5.0]), torch.tensor([2.0, 1.0]).double(), 9, 1e-3
    )
    assert still.change < 1e-12
    assert not still.converged
    assert still.residual > 0.5


def test_no_more_iterations_than_needed() -> None:
    found = largest_eigenvalue(quadratic([100.0, 1.0, 0.5]), start(3), 50, 1e-3)
    assert found.converged
    assert found.iterations < 6


def test_a_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(EvaluationError, match="is not finite"):
        largest_eigenvalue(lambda vector: vector * float("nan"), start(3), 5, 1e-3)


def explicit_hessian(made: MultimodalClassifier) -> Tensor:
    """By torch.autograd.functional over all samples at once, of all parameters but the unimodal heads'."""
    inputs, label = joined(batches())
    names = [name for name, _ in made.named_parameters() if not name.startswith("heads.")]
    parameters = [made.get_parameter(name).detach() for name in names]
    sizes = [p.numel() for p in parameters]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        values = {name: part.view_as(p) for name, part, p in zip(names, parts, parameters, strict=True)}
        return F.cross_entropy(torch.func.functional_call(made, values, (inputs,)).joint, label)

    found = torch.autograd.functional.hessian(loss, flat(parameters))
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_hessian_of_a_model(seed: int) -> None:
    made = model(seed)
    hessian = explicit_hessian(made)
    uneven = [
        *batches()[:3],
        *(
            type(part)({k: v[rows] for k, v in part.inputs.items()}, part.label[rows])
            for part in batches()[3:]
            for rows in (slice(0, 3), slice(3, 8))
        ),
    ]
    product, size = hessian_product(made, uneven)  # the mean over samples, not over batches
    assert size == len(hessian)
    for vector in torch.eye(size, dtype=torch.float64)[:5]:
        assert torch.allclose(product(vector), hessian @ vector, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    found = largest_eigenvalue(product, start(size), 500, 1e-12)
    assert found.converged
    assert found.value == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    operator = LinearOperator((size, size), lambda v: product(torch.from_numpy(v).flatten()).numpy(), dtype=np.float64)
    assert found.value == pytest.approx(float(eigsh(operator, 1, which="LA", return_eigenvectors=False)[0]), rel=1e-6)
    assert all(p.grad is None for p in made.parameters())


def test_a_model_that_is_mostly_concave_is_shifted() -> None:
    """The joint loss turned over: its Hessian's dominant eigenvalue is negative."""
    made = model()
    hessian = -explicit_hessian(made)
    product, size = hessian_product(made, batches())
    found = largest_eigenvalue(lambda vector: -product(vector), start(size), 2000, 1e-12)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert found.dominant == pytest.approx(float(eigenvalues[0]), rel=1e-6)
    assert found.value == pytest.approx(float(eigenvalues[-1]), rel=1e-4)
