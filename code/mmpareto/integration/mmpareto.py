"""MMPareto: Pareto direction where the gradients conflict, magnitude restored (Wei & Hu, ICML 2024, Algorithm 1)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmpareto.integration.integrator import Integrator
from mmpareto.integration.one_pass import positive
from mmpareto.integration.pareto import minimum_norm_weights, unit_scale

# The least |h|^2 over the sum of its two parts' squares that counts as a direction. A float32 gradient is rounded to
# 6e-8 of its size. What is left of exactly opposed gradients is that rounding, which must not grow to full size.
_FLOOR = 1e-8

Rescale = Literal["tensor", "encoder"]


class MMPareto(Integrator):
    """MMPareto (Wei & Hu, ICML 2024, Section 3.4 and Algorithm 1).

    With the joint gradient g_j and the unimodal gradient g_u of an encoder:
    1. direction   no conflict (g_j.g_u >= 0): h = g_j + g_u. Conflict: h = 2 a g_j + 2 (1 - a) g_u, a the minimum-norm
                   weight of the whole encoder.
    2. magnitude   in conflict h is enlarged to the norm of the plain sum where it is shorter:
                   h <- max(1, |g_j + g_u| / |h|) h.
    3. everything times gamma, with or without conflict.

    Homogeneous of degree 1: a loss scale passes through. Exactly opposed gradients of equal norm give 0, where the
    published code gives NaN. Two backward passes.

    Args:
        gamma: factor of the encoders' gradients, 1.5 in the published code.
        rescale: where step 2 takes its norms: "tensor", each parameter tensor on its own, as the published code does;
            or "encoder", once for the whole encoder, as the paper's Algorithm 1 reads. Rescaling tensor by tensor can,
            rarely, leave the cone of common descent; rescaling per encoder cannot.

    Raises:
        ValueError: for a gamma that is not a positive finite number or an unknown rescale.
    """

    def __init__(self, gamma: float = 1.5, rescale: Rescale = "tensor") -> None:
        if rescale not in get_args(Rescale):
            raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, found {rescale!r}")
        self.gamma = positive(gamma, "gamma")
        self.rescale = rescale

    def coefficients(self, gramians: Tensor) -> Tensor:
        """[T, 2, 2] -> [T, 2]: gamma for both without conflict, else gamma * enlargement_t * (2 a, 2 (1 - a))."""
        tensors = gramians.double()
        total = tensors.sum(0, keepdim=True)
        pareto = 2 * minimum_norm_weights(total)  # [1, 2]
        enlargement = _enlargement(tensors if self.rescale == "tensor" else total, pareto)
        conflict = total[:, 0, 1] < 0
        coefficients = self.gamma * torch.where(conflict, enlargement * pareto, 1.0)
        return coefficients.to(gramians.dtype).expand(len(gramians), 2)


def _enlargement(gramians: Tensor, pareto: Tensor) -> Tensor:
    """max(1, |g_j + g_u| / |h|) for h with the coefficients `pareto` [1, 2]; gramians [T, 2, 2], returns [T, 1]."""
    gramians = unit_scale(gramians)
    whole = gramians.sum((1, 2))
    # written out: a matrix product of these would be rounded to TF32 where that is switched on
    squares = pareto.square() * gramians.diagonal(dim1=1, dim2=2)
    integrated = squares.sum(1) + 2 * pareto[:, 0] * pareto[:, 1] * gramians[:, 0, 1]
    integrated = torch.maximum(integrated, _FLOOR * squares.sum(1))
    ratio = whole.clamp(min=0) / torch.where(integrated > 0, integrated, 1.0)
    return ratio.sqrt().clamp(min=1).unsqueeze(1)
