"""Conventional Pareto: the minimum-norm point of the two gradients, always."""

from __future__ import annotations

import torch
from torch import Tensor

from mmpareto.integration.integrator import Integrator


def minimum_norm_weights(gramian: Tensor) -> Tensor:
    """Weights a and 1 - a of the two gradients at the minimum-norm point a g_0 + (1 - a) g_1 of their segment.

    a = (|g_1|^2 - g_0.g_1) / |g_0 - g_1|^2, clipped to [0, 1] (Sener & Koltun, NeurIPS 2018, Algorithm 1; the step of
    Wei & Hu, ICML 2024, Algorithm 1, in conflict). 1/2 where the gradients are equal, zeros included.

    The smaller weight comes from its own quotient, since 1 - a would leave it a's rounding error: with norms of 1 and
    10,000 in float32 the larger gradient's weight would be off by a thousandth. The weights do not depend on the scale
    of the gradients, which is divided out first.

    Args:
        gramian: [..., 2, 2]; returns [..., 2].
    """
    scaled = unit_scale(gramian)
    squares, cross = scaled.diagonal(dim1=-2, dim2=-1), scaled[..., :1, 1]
    distance = squares.sum(-1, keepdim=True) - 2 * cross
    shares = ((squares.flip(-1) - cross) / torch.where(distance == 0, 1.0, distance)).clamp(0, 1)
    others = 1 - shares.flip(-1)
    return torch.where(distance == 0, 0.5, torch.where(shares <= shares.flip(-1), shares, others))


def unit_scale(gramian: Tensor) -> Tensor:
    """Divide a Gramian [..., 2, 2] by the larger of its two squared norms; zeros stay zeros."""
    largest = gramian.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
    return gramian / torch.where(largest == 0, 1.0, largest)


class Pareto(Integrator):
    """Conventional Pareto integration: MGDA for two losses (Sener & Koltun, NeurIPS 2018).

    h = 2 a g_joint + 2 (1 - a) g_unimodal with the minimum-norm weight a of the whole encoder, in conflict or not; the
    magnitude is left as it is. Two equal gradients give their sum. The point of Wei & Hu (ICML 2024) is that this is
    worse than the plain sum here: the minimum-norm point favours the smaller gradient, and shrinks. Two passes.
    """

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(2 a, 2 (1 - a)) for every tensor."""
        total = gramians.double().sum(0)  # a sum in float32 could leave its range
        return (2 * minimum_norm_weights(total)).to(gramians.dtype).expand(len(gramians), 2)
