"""The arithmetic on gradients: Gramians from two gradient sets, and the combination of the two sets into one.

T parameter tensors of one encoder; index 0 is the joint loss's gradient, index 1 the unimodal losses'.

Gramians and coefficients are float64. The square of a gradient of 1e-30 or 1e30 is outside float32, and so is the
coefficient that brings one gradient to the size of a much larger one. The gradients themselves are large. On a CPU,
where reading a value costs nothing, they stay in float32 as long as that is exact enough. Elsewhere reading a value
waits for the device, so float64 is always used. Apple's GPU (mps) has no float64: Gramians and coefficients are on the
CPU, and a step waits for the device once for each encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_WITHOUT_FLOAT64 = {"mps"}  # types of device


def float64_device(device: torch.device) -> torch.device:
    """Where float64 tensors of a device stand: the device itself, or the CPU where it has no float64 (mps)."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def to_float64(x: Tensor) -> Tensor:
    """A tensor as float64, on `float64_device`."""
    return x.to(float64_device(x.device), torch.float64)


def unscaled(gram: Tensor, loss_scale: Tensor | float, device: torch.device) -> Tensor:
    """Gramians of the gradients of losses that were multiplied by `loss_scale`, as they are without it."""
    scale = to_float64(loss_scale.to(device)) if isinstance(loss_scale, Tensor) else float(loss_scale)
    return gram if isinstance(scale, float) and scale == 1 else gram / scale**2


def gramians(
    joint: Sequence[Tensor | None], unimodal: Sequence[Tensor | None], device: torch.device, exact: bool = False
) -> Tensor:
    """Compute the Gramian of the two gradients of each parameter tensor, without waiting for the device.

    Returns [T, 2, 2], float64, symmetric, on `float64_device`. A complex gradient counts as its real and imaginary
    parts.

    Args:
        joint, unimodal: T gradients each; None stands for zero.
        device: of the result where all gradients are None.
        exact: compute products in float64 in any case.
    """
    tensors = [gradient for gradient in (*joint, *unimodal) if gradient is not None]
    device = tensors[0].device if tensors else device
    pairs = list(zip(joint, unimodal, strict=True))
    zero = torch.zeros((), dtype=torch.float64, device=float64_device(device))
    if not pairs:
        return zero.new_zeros(0, 2, 2)
    flat = [_flat_pair(*pair) for pair in pairs]
    if exact or not _values_are_read(device):
        return _wide_entries(flat, zero).view(-1, 2, 2)
    nothing = torch.zeros((), device=device)
    entries = _stacked([_products(_single(a), _single(b), nothing) for a, b in flat])
    for t, values in enumerate(entries.tolist()):
        if not _exact(*values):
            entries[t] = _stacked([_products(_double(flat[t][0]), _double(flat[t][1]), zero)])[0]
    return entries.view(-1, 2, 2)


def combine_all(
    joint: Sequence[Tensor | None], unimodal: Sequence[Tensor | None], coefficients: Tensor
) -> list[Tensor | None]:
    """Compute coefficients[t, 0] * joint[t] + coefficients[t, 1] * unimodal[t] of each parameter tensor.

    Args:
        joint, unimodal: T gradients each; None stands for zero. The results may take their memory.
        coefficients: [T, 2], float64, on their `float64_device`.
    """
    results: list[Tensor | None] = [None] * len(joint)
    rest = set(range(len(joint)))
    if not _values_are_read(coefficients.device):
        pairs = list(zip(joint, unimodal, strict=True))
        supported = _supported(pairs, coefficients.device)
        if supported:
            combined = kernels_on(coefficients.device).combine(
                coefficients.contiguous(), [pairs[t] for t in supported], supported
            )
            for t, gradient in zip(supported, combined, strict=True):
                results[t] = gradient
        rest.difference_update(supported)
    for t in rest:
        results[t] = combine(joint[t], unimodal[t], coefficients[t])
    return results


def combine(joint: Tensor | None, unimodal: Tensor | None, coefficients: Tensor) -> Tensor | None:
    """Compute coefficients[0] * joint + coefficients[1] * unimodal of one parameter tensor.

    Args:
        joint, unimodal: gradients of one shape and type; None stands for zero. The result takes the memory of one of
            them.
        coefficients: [2], float64, on their `float64_device`.
    """
    first, second = coefficients.split(1)  # [1] each
    if joint is None:
        joint, first, second, unimodal = unimodal, second, first, None
    if joint is None:
        return None
    if _values_are_read(joint.device) and joint.dtype not in _HALF and _ordinary(coefficients.tolist()):
        joint.mul_(first[0].to(joint))
        return joint if unimodal is None else joint.addcmul_(unimodal, second[0].to(joint))
    if joint.device != coefficients.device:  # no float64 there
        host = coefficients.device
        whole = combine(joint.to(host), None if unimodal is None else unimodal.to(host), torch.cat((first, second)))
        return None if whole is None else joint.copy_(whole)
    if not joint.dim():
        combine(joint.view(1), None if unimodal is None else unimodal.view(1), coefficients)
        return joint
    total = joint * first  # float64, since `first` has a dimension; one without would be rounded to the gradient's type
    return joint.copy_(total) if unimodal is None else torch.addcmul(total, unimodal, second, out=joint)


def _values_are_read(device: torch.device) -> bool:
    """Whether the host reads values of a device's Gramians: they are on the CPU."""
    return float64_device(device).type == "cpu"


@cache
def kernels_on(device: torch.device) -> Any:
    """The module of Triton kernels; None where they cannot be used on the device."""
    if device.type != "cuda":
        return None
    try:
        from mmpareto.integration import kernels  # Triton comes with PyTorch for GPUs
    except ImportError:
        return None
    return kernels if kernels.available(device) else None


def _supported(pairs: Sequence[tuple[Tensor | None, Tensor | None]], device: torch.device) -> list[int]:
    """Numbers of the pairs that the kernels take: two float32 gradients that fill one piece of memory each, alike."""
    if kernels_on(device) is None:
        return []
    return [
        t
        for t, (a, b) in enumerate(pairs)
        if a is not None and b is not None and a.dtype == b.dtype == torch.float32 and a.stride() == b.stride()
        if a.numel() and (a.is_contiguous() or (a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last)))
    ]


def _wide_entries(flat: Sequence[tuple[Tensor | None, Tensor | None]], zero: Tensor) -> Tensor:
    """The Gramians' entries in order, [T, 4], in float64."""
    entries = zero.new_zeros(len(flat), 4)
    supported = _supported(flat, zero.device)
    if supported:
        kernels_on(zero.device).fill_gramians(entries, [flat[t] for t in supported], supported)
    rest = [t for t in sorted(set(range(len(flat))).difference(supported)) if flat[t] != (None, None)]
    if rest:
        others = _stacked([_products(_double(flat[t][0]), _double(flat[t][1]), zero) for t in rest])
        for t, values in zip(rest, others, strict=True):
            entries[t] = values
    return entries


def _single(x: Tensor | None) -> Tensor | None:
    """Half precision as float32."""
    return x.float() if x is not None and x.dtype in _HALF else x


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else to_float64(x)


def _products(a: Tensor | None, b: Tensor | None, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a.a, a.b and b.b of two vectors."""
    return (
        zero if a is None else torch.dot(a, a),
        zero if a is None or b is None else torch.dot(a, b),
        zero if b is None else torch.dot(b, b),
    )


def _stacked(products: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """[T, 4], float64: the Gramians' entries in order. One kernel for all."""
    return to_float64(torch.stack([entry for a, cross, b in products for entry in (a, cross, cross, b)])).view(-1, 4)


def _exact(joint_square: float, cross: float, _: float, unimodal_square: float) -> bool:
    """Whether products computed in float32 are exact enough.

    They are not near the limits of float32, where parts of a sum are lost, and not for nearly opposed gradients, whose
    sum is small beside its rounding error. A NaN is not exact; float64 gives it again.
    """
    return (
        1e-24 < joint_square < 1e36
        and 1e-24 < unimodal_square < 1e36
        and cross > -0.99 * (joint_square * unimodal_square) ** 0.5
    )


def _ordinary(coefficients: Sequence[float]) -> bool:
    """Whether float32 holds the coefficients."""
    return all(c == 0 or 1e-30 < abs(c) < 1e30 for c in coefficients)


def _flat_pair(a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients as vectors, their elements in one common order; without a copy where the memory allows it."""
    like = a if a is not None else b
    if like is None:
        return None, None
    order = None
    if not like.is_contiguous():
        # the dimensions in the order of the memory, which differs from their own order for channels last
        strides = like.stride()
        order = sorted(range(like.dim()), key=lambda d: -strides[d])

    def flat(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x if order is None else x.permute(order)
        return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1)

    return flat(a), flat(b)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch automatic mixed precision off for a region, on devices that have it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
