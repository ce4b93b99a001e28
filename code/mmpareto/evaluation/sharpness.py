"""The largest eigenvalue of a symmetric matrix that is known only by its products with vectors, by power iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmpareto.evaluation import EvaluationError

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Eigenvalue:
    """What power iteration found.

    value       the largest eigenvalue (not the largest in magnitude), as a Rayleigh quotient v . H v.
    dominant    the eigenvalue of largest magnitude: `value`, or a negative one.
    iterations  products with the matrix, those of both rounds where there were two.
    change      relative change of the Rayleigh quotient in the last iteration, of the worse round.
    residual    |H v - value v| / |value|, of the worse round: an eigenvalue lies within this relative distance.
    converged   whether every round converged within the iterations allowed.
    """

    value: float
    dominant: float
    iterations: int
    change: float
    residual: float
    converged: bool


def largest_eigenvalue(product: Product, start: Tensor, most: int, tolerance: float) -> Eigenvalue:
    """The largest eigenvalue of the symmetric H.

    Power iteration finds the eigenvalue of largest magnitude. Where that is negative, a second round with H shifted by
    its magnitude (all eigenvalues are then zero or more) finds the largest one.

    It has converged where the Rayleigh quotient changes by no more than the tolerance and the residual is no greater
    than its square root: the quotient's error goes with the residual's square, and the quotient alone stands still as
    well between two eigenvalues of equal magnitude and opposite sign.

    product    v -> H v.
    start      float64 [P], not zero; random, so that it has a share of the eigenvector.
    most       iterations allowed in each round, two or more.
    tolerance  relative.

    Raises EvaluationError where a product is not finite.
    """
    first, length = _round(product, start, 0.0, most, tolerance)
    if first.value >= 0:
        return first
    second, _ = _round(product, start, length, most, tolerance)
    return Eigenvalue(
        second.value,
        first.value,
        first.iterations + second.iterations,
        max(first.change, second.change),
        max(first.residual, second.residual),
        first.converged and second.converged,
    )


def _round(product: Product, start: Tensor, shift: float, most: int, tolerance: float) -> tuple[Eigenvalue, float]:
    """Power iteration with H + shift: what it found of H, and the length of the last H v."""
    vector = start / start.norm()
    value, change, residual, length, done, converged = 0.0, float("inf"), float("inf"), 0.0, 0, False
    while done < most and not converged:
        image = product(vector)
        before, value = value, float(vector @ image)
        if not abs(value) < float("inf"):
            raise EvaluationError("a product with the Hessian is not finite: the model diverged, or the split did")
        done += 1
        length = float(image.norm())
        residual = _ratio(float((image - value * vector).norm()), value)
        change = _ratio(abs(value - before), value) if done > 1 else float("inf")
        moved = image + shift * vector
        if not moved.any():  # every vector is an eigenvector, as far as random numbers can tell
            change, converged = 0.0, True
        else:
            converged = change <= tolerance and residual <= tolerance**0.5
            vector = moved / moved.norm()
    return Eigenvalue(value, value, done, change, residual, converged), length


def _ratio(part: float, whole: float) -> float:
    return 0.0 if part == 0 else part / abs(whole) if whole else float("inf")
