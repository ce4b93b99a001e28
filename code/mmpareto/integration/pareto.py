"""Conventional Pareto: the minimum-norm point of the two gradients, always."""

from __future__ import annotations

import torch
from torch import Tensor

from mmpareto.integration.integrator import Integrator


def minimum_norm_weight(gramian: Tensor) -> Tensor:
    """Weight a in [0, 1] of the first gradient at the minimum-norm point a g_0 + (1 - a) g_1 of their segment.

    a = (|g_1|^2 - g_0.g_1) / |g_0 - g_1|^2, clipped to [0, 1] (Sener & Koltun, NeurIPS 2018, Algorithm 1; the step of
    Wei & Hu, ICML 2024, Algorithm 1, in conflict). 1/2 where the gradients are equal, zeros included.

    gramian  [..., 2, 2]; returns [...].
    """
    first, cross, second = gramian[..., 0, 0], gramian[..., 0, 1], gramian[..., 1, 1]
    distance = first + second - 2 * cross
    safe = torch.where(distance == 0, 1.0, distance)
    return torch.where(distance == 0, 0.5, ((second - cross) / safe).clamp(0, 1))


class Pareto(Integrator):
    """Conventional Pareto integration: MGDA for two losses (Sener & Koltun, NeurIPS 2018).

    h = 2 a g_joint + 2 (1 - a) g_unimodal with the minimum-norm weight a of the whole encoder, in conflict or not; the
    magnitude is left as it is. Two equal gradients give their sum. The point of Wei & Hu (ICML 2024) is that this is
    worse than the plain sum here: the minimum-norm point favours the smaller gradient, and shrinks. Two passes.
    """

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(2 a, 2 (1 - a)) for every tensor."""
        weight = minimum_norm_weight(gramians.sum(0))
        return (2 * torch.stack((weight, 1 - weight))).expand(len(gramians), 2)
