"""What a step measured in each encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmpareto.integration.gramian import kernels_on


class EncoderDiagnostics(NamedTuple):
    """What one step measured in one encoder: float64 tensors on its device (mps: on the CPU), so that nothing waits.

    Attributes:
        cosine: of the joint and the unimodal gradient over the whole encoder; 0 where one of them is zero
        joint_norm: of the joint gradient, without `loss_scale`
        unimodal_norm: of the unimodal gradient, likewise
        joint_weight: share of the joint gradient's coefficients in all coefficients: 1/2 for a plain sum
        conflict: bool: the cosine is negative
        gramians: [T, 2, 2], in the order of `Integrator.parameter_names`
        coefficients: [T, 2], likewise
    """

    cosine: Tensor
    joint_norm: Tensor
    unimodal_norm: Tensor
    joint_weight: Tensor
    conflict: Tensor
    gramians: Tensor
    coefficients: Tensor


def diagnose(gramians: Tensor, coefficients: Tensor) -> EncoderDiagnostics:
    """Diagnostics of one encoder from its Gramians [T, 2, 2] and coefficients [T, 2]."""
    kernels = kernels_on(gramians.device)
    if kernels is not None:
        values = kernels.diagnose(gramians.contiguous(), coefficients.contiguous())
        cosine, joint, unimodal, weight, cross = values.unbind()
        return EncoderDiagnostics(cosine, joint, unimodal, weight, cross < 0, gramians, coefficients)
    total = gramians.sum(0)
    joint_norm, unimodal_norm = total[0, 0].sqrt(), total[1, 1].sqrt()
    norms = joint_norm * unimodal_norm
    weights = coefficients.sum(0)
    return EncoderDiagnostics(
        cosine=torch.where(norms == 0, 0.0, total[0, 1] / norms).clamp(-1, 1),
        joint_norm=joint_norm,
        unimodal_norm=unimodal_norm,
        joint_weight=weights[0] / weights.sum(),
        conflict=total[0, 1] < 0,
        gramians=gramians,
        coefficients=coefficients,
    )
