"""Triton kernels: the arithmetic of `gramian` on large float32 gradients in one pass through memory, in float64.

PyTorch has no dot product of float32 vectors that is summed in float64: with its operations the vectors are read and
written as float64 as well, and memory is what this arithmetic waits for.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_ROUNDS = 4  # blocks that a program goes through
SHARE = _BLOCK * _ROUNDS  # elements of a program


@triton.jit(do_not_specialize_on_alignment=["sums"])
def _products_kernel(a, b, sums, n, block: tl.constexpr, rounds: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    aa = tl.zeros((block,), tl.float64)
    ab = tl.zeros((block,), tl.float64)
    bb = tl.zeros((block,), tl.float64)
    for k in range(rounds):
        index = (program.to(tl.int64) * rounds + k) * block + tl.arange(0, block)
        x = tl.load(a + index, mask=index < n, other=0.0).to(tl.float64)
        y = tl.load(b + index, mask=index < n, other=0.0).to(tl.float64)
        aa += x * x
        ab += x * y
        bb += y * y
    tl.store(sums + 3 * program, tl.sum(aa, 0))
    tl.store(sums + 3 * program + 1, tl.sum(ab, 0))
    tl.store(sums + 3 * program + 2, tl.sum(bb, 0))


@triton.jit
def _combine_kernel(a, b, coefficients, n, block: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    first = tl.load(coefficients)
    second = tl.load(coefficients + 1)
    x = tl.load(a + index, mask=index < n, other=0.0).to(tl.float64)
    y = tl.load(b + index, mask=index < n, other=0.0).to(tl.float64)
    tl.store(a + index, (first * x + second * y).to(tl.float32), mask=index < n)


def products(a: Tensor, b: Tensor, sums: Tensor) -> None:
    """Sums of a * a, a * b and b * b over shares of two vectors: [n / SHARE, 3], float64, into `sums`.

    Args:
        a, b: float32 [n], contiguous.
        sums: float64 [n / SHARE rounded up, 3], contiguous.
    """
    with torch.cuda.device_of(a):
        _products_kernel[(len(sums),)](a, b, sums, a.numel(), block=_BLOCK, rounds=_ROUNDS)


def combine(a: Tensor, b: Tensor, coefficients: Tensor) -> None:
    """Replace a by coefficients[0] * a + coefficients[1] * b, computed in float64.

    Args:
        a, b: float32, dense, of the same strides.
        coefficients: float64 [2], contiguous.
    """
    with torch.cuda.device_of(a):
        _combine_kernel[(triton.cdiv(a.numel(), _BLOCK),)](a, b, coefficients, a.numel(), block=_BLOCK)


@cache
def work(device: torch.device) -> bool:
    """Whether the kernels can be compiled and run on a device: Triton needs a C compiler, for one."""
    a, b = torch.full((2, 2), 3.0, device=device)
    sums, coefficients = (
        torch.empty(1, 3, dtype=torch.float64, device=device),
        torch.ones(2, dtype=torch.float64, device=device),
    )
    try:
        products(a, b, sums)
        combine(a, b, coefficients)
    except Exception:  # of whatever kind: PyTorch's own operations do the same
        return False
    return True
