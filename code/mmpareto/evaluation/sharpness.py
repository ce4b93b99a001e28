"""The largest eigenvalue of a symmetric matrix that is known only by its products with vectors, by Lanczos' method."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import norm
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from mmpareto.evaluation import EvaluationError

Product = Callable[[Tensor], Tensor]

BASIS = 20  # Lanczos vectors between two restarts
BASIS_BYTES = 2**30  # of them at most, where P is large
ROUNDING = 1e-12  # of the longest product: below this, an eigenvalue is zero as far as float64 can tell


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue (algebraic, not by magnitude), as a Rayleigh quotient v . H v with |v| = 1.

    value      never above the largest eigenvalue, up to rounding.
    residual   |H v - value v|: some eigenvalue lies within this distance of `value`.
    products   products with the matrix.
    converged  whether the residual is within the tolerance.
    """

    value: float
    residual: float
    products: int
    converged: bool


class _SpentError(Exception):
    """No more products are allowed."""


def largest_eigenvalue(product: Product, start: Tensor, most: int, tolerance: float) -> Eigenvalue:
    """The largest eigenvalue of the symmetric H, by scipy's eigsh.

    It has converged where the residual is at most a tenth of `tolerance` times |value|: the margin keeps a neighbour of
    the largest eigenvalue from being taken for it. An eigenvalue of zero has no relative precision: there the residual
    must be within the rounding of the longest product. Without convergence the value is the best one so far.

    product    v -> H v.
    start      float64 [P], not zero; random, so that it has a share of the eigenvector.
    most       products allowed.
    tolerance  relative.

    Raises EvaluationError where a product is not finite.
    """
    size, products, longest = len(start), 0, 0.0

    def multiply(vector: np.ndarray) -> np.ndarray:
        nonlocal products, longest
        if products >= most:
            raise _SpentError
        products += 1
        image = product(torch.from_numpy(vector.reshape(-1).copy()).to(start.device)).double().cpu().numpy()
        length = norm(image, check_finite=False)
        if not math.isfinite(length):
            raise EvaluationError("a product with the Hessian is not finite: the model diverged, or the split did")
        longest = max(longest, length / norm(vector))
        return image

    def quotient(vector: np.ndarray) -> tuple[float, float]:
        """Rayleigh quotient and residual of a vector of length 1."""
        image = multiply(vector)
        value = float(vector @ image)
        return value, float(norm(image - value * vector))

    first = start.double().cpu().numpy()
    first = first / norm(first)
    value, residual = quotient(first)
    if residual <= ROUNDING * longest:  # H is 1 x 1, or a multiple of the identity as far as random numbers can tell
        return Eigenvalue(value, residual, products, True)

    def converged() -> bool:
        return residual <= max(tolerance / 10 * abs(value), ROUNDING * longest)

    scale, vector = longest, first
    # ARPACK compares with numbers of its own, so products are scaled to about 1
    operator = LinearOperator((size, size), matvec=lambda v: multiply(v) / scale, dtype=np.float64)
    # the first call ends after one basis, however accurate: it has a value where the second one runs out of products
    for accuracy in (math.inf, tolerance / 20):
        basis = min(size, max(4, min(BASIS, BASIS_BYTES // (8 * size))), max(2, most - products - 1))
        # what the first call found, and the random vector: the first one alone may have lost the eigenvector
        begin = first if accuracy == math.inf else first + math.copysign(1, first @ vector) * vector
        try:
            vectors = eigsh(operator, 1, which="LA", v0=begin, ncv=basis, maxiter=most, tol=min(accuracy, 1e300))[1]
            candidate = vectors[:, 0] / norm(vectors[:, 0])
            new_value, new_residual = quotient(candidate)
        except (_SpentError, ArpackError):
            break
        if new_value >= value - ROUNDING * longest:
            vector, value, residual = candidate, new_value, new_residual
        if converged():
            break
    return Eigenvalue(value, residual, products, converged())
