"""The arithmetic on gradients: Gramians out of two gradient sets, and the combination back into one.

T parameter tensors of one encoder; index 0 is the joint loss's gradient, index 1 the unimodal losses'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gramians(joint: Sequence[Tensor | None], unimodal: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Gramian of the two gradients of each parameter tensor, [T, 2, 2], symmetric, on the device, without a wait.

    joint, unimodal  T gradients each; None stands for zero.
    device           of the result where all gradients are None.

    float64 where a gradient is double, else float32: half-precision gradients are multiplied in float32. A complex
    gradient counts as its real and imaginary parts.
    """
    tensors = [gradient for gradient in (*joint, *unimodal) if gradient is not None]
    double = any(t.dtype in (torch.float64, torch.complex128) for t in tensors)
    dtype = torch.float64 if double else torch.float32
    zero = torch.zeros((), dtype=dtype, device=tensors[0].device if tensors else device)
    entries: list[Tensor] = []
    for pair in zip(joint, unimodal, strict=True):
        a, b = _flat_pair(*pair, dtype)
        cross = zero if a is None or b is None else torch.dot(a, b)
        entries += [zero if a is None else torch.dot(a, a), cross, cross, zero if b is None else torch.dot(b, b)]
    return torch.stack(entries).view(-1, 2, 2) if entries else zero.new_zeros(0, 2, 2)


def combine(joint: Tensor | None, unimodal: Tensor | None, coefficients: Tensor) -> Tensor | None:
    """coefficients[0] * joint + coefficients[1] * unimodal of one parameter tensor, in the memory of one of the two.

    joint, unimodal  gradients of one shape and type; None stands for zero.
    coefficients     [2], on the same device.
    """
    first, second = coefficients.unbind()
    if joint is None:
        joint, first, second, unimodal = unimodal, second, first, None
    if joint is None:
        return None
    if joint.dtype in (torch.float16, torch.bfloat16):  # a coefficient rounded to half would cost three digits
        total = joint.float() * first
        return (total if unimodal is None else total.addcmul_(unimodal.float(), second)).to(joint.dtype)
    joint.mul_(first)
    return joint if unimodal is None else joint.addcmul_(unimodal, second)


def _flat_pair(a: Tensor | None, b: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients as vectors, their elements in one common order; without a copy where their memory allows it."""
    like = a if a is not None else b
    if like is None or like.is_contiguous():
        order = None
    else:  # channels last, say: the dimensions in the order of the memory
        strides = like.stride()
        order = sorted(range(like.dim()), key=lambda d: -strides[d])

    def flat(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x if order is None else x.permute(order)
        return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1).to(dtype)

    return flat(a), flat(b)
