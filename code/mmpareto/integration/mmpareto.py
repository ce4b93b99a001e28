"""MMPareto: Pareto direction where the gradients conflict, magnitude restored (Wei & Hu, ICML 2024, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmpareto.integration.gramian import kernels_on
from mmpareto.integration.integrator import Integrator
from mmpareto.integration.moving_averages import MovingAverages
from mmpareto.integration.one_pass import positive
from mmpareto.integration.pareto import minimum_norm_weights, unit_scale

# The least |h|^2 over the sum of its two parts' squares that counts as a direction. A float32 gradient is rounded to
# 6e-8 of its size. What is left of exactly opposed gradients is that rounding, which must not grow to full size.
_FLOOR = 1e-8

Place = Literal["tensor", "encoder"]
Transition = Literal["jump", "linear", "cone"]


class MMPareto(Integrator):
    """MMPareto (Wei & Hu, ICML 2024, Section 3.4 and Algorithm 1), and variants that are an experiment of this project.

    With the joint gradient g_j and the unimodal gradient g_u of an encoder:
    1. direction   no conflict (g_j.g_u >= 0): h = g_j + g_u. Conflict: h = 2 a g_j + 2 (1 - a) g_u, a the minimum-norm
                   weight of the whole encoder.
    2. magnitude   in conflict h is enlarged to the norm of the plain sum where it is shorter:
                   h <- max(1, |g_j + g_u| / |h|) h.
    3. everything times gamma, with or without conflict.

    Homogeneous of degree 1: a loss scale passes through. Exactly opposed gradients of equal norm give 0, where the
    published code gives NaN. Two backward passes.

    The variants change the direction alone; each is off by default. With `momentum` give `loss_scale` to `backward`.

    Args:
        gamma: factor of the encoders' gradients, 1.5 in the published code.
        rescale: where step 2 takes its norms: "tensor", each parameter tensor on its own, as the published code does;
            or "encoder", once for the whole encoder, as the paper's Algorithm 1 reads. Rescaling tensor by tensor can,
            rarely, leave the cone of common descent; rescaling per encoder cannot.
        transition: "jump", as published: the direction jumps where the cosine changes sign. Two variants without a
            jump: "linear", in conflict a moves from 1/2 to the minimum-norm weight as the cosine falls from 0 to -1;
            "cone", a is the weight nearest to 1/2 whose h is not opposed to either gradient.
        conflict: where the sign of the cosine and a are taken: "encoder", as published. Variant "tensor": in each
            parameter tensor on its own, which needs rescale="tensor".
        momentum: variant: the Gramians that decide on conflict and a are moving averages over the steps,
            G <- momentum G + (1 - momentum) Gramian of the step; 0, as published, takes those of the step alone.

    Raises:
        ValueError: for a gamma that is not a positive finite number, an unknown name, or a momentum outside 0 .. 1.
    """

    def __init__(
        self,
        gamma: float = 1.5,
        rescale: Place = "tensor",
        transition: Transition = "jump",
        conflict: Place = "encoder",
        momentum: float = 0.0,
    ) -> None:
        choices = (
            ("rescale", rescale, get_args(Place)),
            ("transition", transition, get_args(Transition)),
            ("conflict", conflict, get_args(Place)),
        )
        for option, value, known in choices:
            if value not in known:
                raise ValueError(f"{option} must be one of {', '.join(known)}, found {value!r}")
        if conflict == "tensor" and rescale == "encoder":
            raise ValueError("conflict=tensor gives each tensor a direction of its own: leave rescale at tensor")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be from 0 up to but not including 1, found {momentum}")
        self.gamma, self.momentum = positive(gamma, "gamma"), float(momentum)
        self.rescale, self.transition, self.conflict = rescale, transition, conflict
        self._averages = MovingAverages(self.momentum)  # [T, 2, 2]

    def coefficients(self, gramians: Tensor) -> Tensor:
        """[T, 2, 2] -> [T, 2]: gamma for both without conflict, else gamma * enlargement_t * (2 a, 2 (1 - a))."""
        default = (self.rescale, self.transition, self.conflict) == ("tensor", "jump", "encoder")
        takes = default and gramians.dtype == torch.float64 and len(gramians)
        kernels = kernels_on(gramians.device) if takes else None
        if kernels is not None:
            return kernels.mmpareto(gramians.contiguous(), self.gamma, _FLOOR)
        return self._chosen(gramians.double(), gramians.double()).to(gramians.dtype)

    def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
        """See `coefficients`; with momentum by the moving averages of this encoder."""
        if not self.momentum:
            return self.coefficients(gramians)
        tensors = gramians.double()
        return self._chosen(tensors, self._averages.update(encoder, tensors)).to(gramians.dtype)

    def _chosen(self, tensors: Tensor, deciding: Tensor) -> Tensor:
        """The coefficients [T, 2] of a step's Gramians, with conflict and a by those that decide, [T, 2, 2] each."""
        if self.conflict == "encoder":
            deciding = deciding.sum(0, keepdim=True)
        weights = _cone_weights(deciding) if self.transition == "cone" else minimum_norm_weights(deciding)
        pareto = 2 * weights  # [1, 2], or [T, 2] of each tensor
        if self.transition == "linear":
            pareto = 1 + (pareto - 1) * _opposition(deciding)
        enlargement = _enlargement(tensors if self.rescale == "tensor" else tensors.sum(0, keepdim=True), pareto)
        coefficients = self.gamma * torch.where(deciding[:, 0, 1:] < 0, enlargement * pareto, 1.0)
        return coefficients.expand(len(tensors), 2)

    def state_dict(self) -> dict[str, Any]:
        """{encoder: moving averages of its Gramians, [T, 2, 2]}; empty without momentum."""
        return self._averages.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: for a state of another routine.
        """
        if not self.momentum:
            super().load_state_dict(state)
        self._averages.load_state_dict(state, (2, 2), "MMPareto keeps Gramians of shape [T, 2, 2]")


def _opposition(gramians: Tensor) -> Tensor:
    """How far the gradients are opposed: minus their cosine, clipped to 0 .. 1; [T, 2, 2] -> [T, 1]."""
    scaled = unit_scale(gramians)
    norms = scaled.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().prod(1)
    return (-scaled[:, 0, 1] / torch.where(norms > 0, norms, 1.0)).clamp(0, 1).unsqueeze(1)


def _cone_weights(gramians: Tensor) -> Tensor:
    """Weights a and 1 - a nearest to 1/2 whose h has no negative product with either gradient; [T, 2, 2] -> [T, 2].

    With g_j.g_u = -c < 0 these are |g_u|^2 / (|g_u|^2 + c) >= a >= c / (|g_j|^2 + c). Of no meaning without conflict.
    """
    scaled = unit_scale(gramians)
    conflict = (-scaled[:, 0, 1]).clamp(min=0)
    squares = scaled.diagonal(dim1=1, dim2=2)
    bounds = torch.stack((conflict, squares[:, 0]), 1), torch.stack((squares[:, 1], conflict), 1)
    least, most = (bound / torch.where(bound.sum(1, True) > 0, bound.sum(1, True), 1.0) for bound in bounds)
    weights = torch.where(least[:, :1] > 0.5, least, 0.5)
    return torch.where((most[:, :1] < 0.5) & (conflict[:, None] > 0), most, weights)


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
