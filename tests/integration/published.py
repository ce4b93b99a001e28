"""The published procedure in plain numpy, from its description: the truth that integration is held against.

One backward pass for the joint loss, one for every unimodal loss, one for their sum; weights per encoder, magnitudes
per tensor or per encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Gradients = list[np.ndarray]


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """Gradient of a loss by a backward pass of its own; zeros where it does not reach a parameter."""
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    return [np.zeros(p.shape) if g is None else g.numpy().copy() for g, p in zip(gradients, parameters, strict=True)]


def joined(gradients: Gradients) -> np.ndarray:
    return np.concatenate([g.ravel() for g in gradients])


def mmpareto(joint: Gradients, unimodal: Gradients, gamma: float, rescale: str) -> tuple[Gradients, bool]:
    """The integrated gradient of one encoder, and whether its two gradients were in conflict."""
    j, u = joined(joint), joined(unimodal)
    conflict = bool(j @ u < 0)
    weight = (u @ u - j @ u) / ((j - u) @ (j - u)) if conflict else 0.5
    result = [2 * weight * a + 2 * (1 - weight) * b for a, b in zip(joint, unimodal, strict=True)]
    sums = [a + b for a, b in zip(joint, unimodal, strict=True)]
    if rescale == "encoder":
        factors = [np.linalg.norm(joined(sums)) / np.linalg.norm(joined(result))] * len(result)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = [np.linalg.norm(s) / np.linalg.norm(h) for s, h in zip(sums, result, strict=True)]
    factors = [f if np.isfinite(f) and f > 1 else 1.0 for f in factors]
    return [gamma * f * h for f, h in zip(factors, result, strict=True)], conflict


def step(
    joint_loss: Tensor,
    unimodal_losses: Mapping[str, Tensor],
    encoders: Mapping[str, Sequence[Tensor]],
    heads: Sequence[Tensor],
    gamma: float,
    rescale: str,
) -> tuple[dict[str, Gradients], Gradients, dict[str, bool]]:
    """Gradients of every encoder and of the heads, and which encoders saw a conflict; late fusion."""
    total = joint_loss + sum(unimodal_losses.values())
    integrated, conflicts = {}, {}
    for name, parameters in encoders.items():
        joint, unimodal = gradient(joint_loss, parameters), gradient(unimodal_losses[name], parameters)
        integrated[name], conflicts[name] = mmpareto(joint, unimodal, gamma, rescale)
    return integrated, gradient(total, heads), conflicts
