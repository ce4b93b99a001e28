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

_SMALL = 2**16  # elements of a vector that is joined with others
_HALF = (torch.float16, torch.bfloat16)
_WITHOUT_FLOAT64 = {"mps"}  # types of device


def float64_device(device: torch.device) -> torch.device:
    """Where float64 tensors of a device stand: the device itself, or the CPU where it has no float64 (mps)."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def to_float64(x: Tensor) -> Tensor:
    """A tensor as float64, on `float64_device`."""
    return x.to(float64_device(x.device), torch.float64)


def gramians(joint: Sequence[Tensor | None], unimodal: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Compute the Gramian of the two gradients of each parameter tensor, without waiting for the device.

    Returns [T, 2, 2], float64, symmetric, on `float64_device`. A complex gradient counts as its real and imaginary
    parts.

    Args:
        joint, unimodal: T gradients each; None stands for zero.
        device: of the result where all gradients are None.
    """
    tensors = [gradient for gradient in (*joint, *unimodal) if gradient is not None]
    device = tensors[0].device if tensors else device
    pairs = list(zip(joint, unimodal, strict=True))
    zero = torch.zeros((), dtype=torch.float64, device=float64_device(device))
    if not pairs:
        return zero.new_zeros(0, 2, 2)
    flat = [_flat_pair(*pair) for pair in pairs]
    if not _values_are_read(device):
        return _stacked(_wide_products(flat, zero)).view(-1, 2, 2)
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

    Where reading a value would wait for the device, small tensors are joined: a few kernels for all of them.

    Args:
        joint, unimodal: T gradients each; None stands for zero. The results may take their memory.
        coefficients: [T, 2], float64, on their `float64_device`.
    """
    results: list[Tensor | None] = [None] * len(joint)
    rest = set(range(len(joint)))
    coefficients = coefficients.contiguous()
    if not _values_are_read(coefficients.device):
        flat = [_flat_pair(*pair) for pair in zip(joint, unimodal, strict=True)]
        for members in _small_groups(flat):
            members = [t for t in members if _in_memory_order(joint[t])]
            if not members:
                continue
            sizes = tuple(flat[t][0].numel() for t in members)  # type: ignore[union-attr]
            a, b = (_joined(flat, members, k) for k in (0, 1))
            weights = torch.stack([coefficients[t] for t in members])
            weights = weights.repeat_interleave(_lengths(sizes, a.device), 0, output_size=len(a))  # of each element
            total = torch.addcmul(a * weights[:, 0], b, weights[:, 1])
            forms: list[Any] = [joint[t] for t in members]
            for t, form, part in zip(members, forms, total.to(forms[0].dtype).split(sizes), strict=True):
                results[t] = part.as_strided(form.shape, form.stride(), part.storage_offset())
            rest.difference_update(members)
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
    both: Any = (joint, unimodal)
    if _in_one_pass(*both) and _in_memory_order(joint) and both[0].stride() == both[1].stride():
        _kernels(both[0].device).combine(*both, coefficients)
        return joint
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
    total = joint * first  # float64, since `first` has a dimension; one without would be rounded to the gradient's type
    return joint.copy_(total) if unimodal is None else torch.addcmul(total, unimodal, second, out=joint)


def _values_are_read(device: torch.device) -> bool:
    """Whether the host reads values of a device's Gramians: they are on the CPU."""
    return float64_device(device).type == "cpu"


def _wide_products(
    flat: Sequence[tuple[Tensor | None, Tensor | None]], zero: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """a.a, a.b and b.b of each pair, in float64.

    Small vectors are joined: a network has dozens of them, and each kernel costs more than its work.
    """
    products: list[tuple[Tensor, Tensor, Tensor]] = [(zero, zero, zero)] * len(flat)
    groups = _small_groups(flat)
    rest = set(range(len(flat))).difference(*groups)
    large = [t for t in sorted(rest) if _in_one_pass(*flat[t])]
    if large:
        totals = _products_in_one_pass([flat[t] for t in large])
        for t, aa, ab, bb in zip(large, *totals.unbind(1), strict=True):
            products[t] = (aa, ab, bb)
    for t in rest.difference(large):
        products[t] = _products(_double(flat[t][0]), _double(flat[t][1]), zero)
    for members in groups:
        a, b = (_joined(flat, members, k) for k in (0, 1))
        lengths = _lengths(tuple(flat[t][0].numel() for t in members), a.device)  # type: ignore[union-attr]
        sums = [torch.segment_reduce(x * y, "sum", lengths=lengths, unsafe=True) for x, y in ((a, a), (a, b), (b, b))]
        for t, *entries in zip(members, *(values.unbind() for values in sums), strict=True):
            products[t] = (entries[0], entries[1], entries[2])
    return products


@cache
def _kernels(device: torch.device) -> Any:
    """The module of Triton kernels; None where it cannot be used on the device."""
    if device.type != "cuda":
        return None
    try:
        from mmpareto.integration import kernels  # Triton comes with PyTorch for GPUs
    except ImportError:
        return None
    return kernels if kernels.work(device) else None


def _in_one_pass(a: Any, b: Any) -> bool:
    """Whether the kernels take a pair of gradients."""
    if a is None or b is None or not a.dtype == b.dtype == torch.float32 or a.numel() <= _SMALL:
        return False
    return _kernels(a.device) is not None


def _products_in_one_pass(pairs: Sequence[tuple[Any, Any]]) -> Tensor:
    """a.a, a.b and b.b of each pair of float32 vectors: [pairs, 3], float64."""
    device = pairs[0][0].device
    kernels = _kernels(device)
    shares = tuple(-(-a.numel() // kernels.SHARE) for a, _ in pairs)
    sums = torch.empty(sum(shares), 3, dtype=torch.float64, device=device)
    for (a, b), part in zip(pairs, sums.split(shares), strict=True):
        kernels.products(a.contiguous(), b.contiguous(), part)
    return torch.segment_reduce(sums, "sum", lengths=_lengths(shares, device), unsafe=True)


def _small_groups(flat: Sequence[tuple[Tensor | None, Tensor | None]]) -> list[list[int]]:
    """Numbers of the pairs of small vectors that are joined, by type."""
    groups: dict[torch.dtype, list[int]] = {}
    for t, (a, b) in enumerate(flat):
        if a is not None and b is not None and 0 < a.numel() <= _SMALL:
            groups.setdefault(a.dtype, []).append(t)
    return list(groups.values())


def _joined(flat: Sequence[tuple[Tensor | None, Tensor | None]], members: Sequence[int], k: int) -> Tensor:
    """The members' first or second vectors as one, float64: no product leaves the range of the gradients' type."""
    return torch.cat([flat[t][k] for t in members]).double()  # type: ignore[misc]


@cache
def _lengths(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Sizes as int64 on the device, filled there: a copy from the host would wait for it."""
    return torch.cat([torch.full((1,), size, dtype=torch.int64, device=device) for size in sizes])


def _in_memory_order(x: Tensor | None) -> bool:
    """Whether the elements fill one piece of memory, and are real: a part of a joined vector can take its form."""
    if x is None or x.is_complex():
        return False
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


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
