"""Triton kernels: what integration computes on a GPU, in few launches and one pass through memory, in float64.

PyTorch has no dot product of float32 vectors that is summed in float64: with its operations large vectors are read and
written as float64 as well. The arithmetic on Gramians is some hundred operations on a handful of numbers, each of which
costs a launch. `gramian`, `mmpareto` and `diagnostics` hold the same in PyTorch's operations, for other devices and
types.

T parameter tensors of one encoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_SMALL = 2**16  # elements of a vector that is joined with others, to be one launch with them
_BLOCK = 1024
_ROUNDS = 4  # blocks that a program goes through


@triton.jit
def _load_pair(a, b, index, inside):  # type: ignore[no-untyped-def]
    x = tl.load(a + index, mask=inside, other=0.0).to(tl.float64)
    y = tl.load(b + index, mask=inside, other=0.0).to(tl.float64)
    return x, y


@triton.jit
def _sums_of_shares(a, b, sums, n, block: tl.constexpr, rounds: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    aa = tl.zeros((block,), tl.float64)
    ab = tl.zeros((block,), tl.float64)
    bb = tl.zeros((block,), tl.float64)
    for k in range(rounds):
        index = (program.to(tl.int64) * rounds + k) * block + tl.arange(0, block)
        x, y = _load_pair(a, b, index, index < n)
        aa += x * x
        ab += x * y
        bb += y * y
    tl.store(sums + 3 * program, tl.sum(aa, 0))
    tl.store(sums + 3 * program + 1, tl.sum(ab, 0))
    tl.store(sums + 3 * program + 2, tl.sum(bb, 0))


@triton.jit
def _store_entries(entries, row, aa, ab, bb):  # type: ignore[no-untyped-def]
    tl.store(entries + 4 * row, aa)
    tl.store(entries + 4 * row + 1, ab)
    tl.store(entries + 4 * row + 2, ab)
    tl.store(entries + 4 * row + 3, bb)


@triton.jit
def _entries_of_shares(sums, starts, rows, entries, block: tl.constexpr):  # type: ignore[no-untyped-def]
    t = tl.program_id(0)
    end = tl.load(starts + t + 1)
    aa = tl.zeros((block,), tl.float64)
    ab = tl.zeros((block,), tl.float64)
    bb = tl.zeros((block,), tl.float64)
    first = tl.load(starts + t)
    while first < end:
        index = first + tl.arange(0, block)
        aa += tl.load(sums + 3 * index, mask=index < end, other=0.0)
        ab += tl.load(sums + 3 * index + 1, mask=index < end, other=0.0)
        bb += tl.load(sums + 3 * index + 2, mask=index < end, other=0.0)
        first += block
    _store_entries(entries, tl.load(rows + t), tl.sum(aa, 0), tl.sum(ab, 0), tl.sum(bb, 0))


@triton.jit
def _entries_of_segments(a, b, starts, rows, entries, block: tl.constexpr):  # type: ignore[no-untyped-def]
    t = tl.program_id(0)
    end = tl.load(starts + t + 1)
    aa = tl.zeros((block,), tl.float64)
    ab = tl.zeros((block,), tl.float64)
    bb = tl.zeros((block,), tl.float64)
    first = tl.load(starts + t)
    while first < end:
        index = first + tl.arange(0, block)
        x, y = _load_pair(a, b, index, index < end)
        aa += x * x
        ab += x * y
        bb += y * y
        first += block
    _store_entries(entries, tl.load(rows + t), tl.sum(aa, 0), tl.sum(ab, 0), tl.sum(bb, 0))


@triton.jit
def _combine(a, b, coefficients, n, block: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    x, y = _load_pair(a, b, index, index < n)
    combined = tl.load(coefficients) * x + tl.load(coefficients + 1) * y
    tl.store(a + index, combined.to(tl.float32), mask=index < n)


@triton.jit
def _combine_segments(a, b, starts, rows, coefficients, block: tl.constexpr):  # type: ignore[no-untyped-def]
    t = tl.program_id(0)
    index = tl.load(starts + t) + tl.program_id(1) * block + tl.arange(0, block)
    inside = index < tl.load(starts + t + 1)
    x, y = _load_pair(a, b, index, inside)
    pair = coefficients + 2 * tl.load(rows + t)
    tl.store(a + index, (tl.load(pair) * x + tl.load(pair + 1) * y).to(tl.float32), mask=inside)


@triton.jit
def _mmpareto(gramians, coefficients, constants, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    gamma = tl.load(constants)
    floor = tl.load(constants + 1)
    t = tl.arange(0, block)
    jj = tl.load(gramians + 4 * t, mask=t < size, other=0.0)
    ju = tl.load(gramians + 4 * t + 1, mask=t < size, other=0.0)
    uu = tl.load(gramians + 4 * t + 3, mask=t < size, other=0.0)
    # the minimum-norm weights of the whole encoder: `minimum_norm_weights`
    cross = tl.sum(ju, 0)
    joint = tl.sum(jj, 0)
    unimodal = tl.sum(uu, 0)
    largest = tl.maximum(joint, unimodal)
    largest = tl.where(largest == 0, 1.0, largest)
    scaled = cross / largest
    distance = joint / largest + unimodal / largest - 2 * scaled
    divisor = tl.where(distance == 0, 1.0, distance)
    first = tl.minimum(tl.maximum((unimodal / largest - scaled) / divisor, 0.0), 1.0)
    second = tl.minimum(tl.maximum((joint / largest - scaled) / divisor, 0.0), 1.0)
    a = 2 * tl.where(distance == 0, 0.5, tl.where(first <= second, first, 1 - second))
    b = 2 * tl.where(distance == 0, 0.5, tl.where(second <= first, second, 1 - first))
    # the enlargement of each tensor: `_enlargement`
    largest = tl.maximum(jj, uu)
    largest = tl.where(largest == 0, 1.0, largest)
    jj = jj / largest
    ju = ju / largest
    uu = uu / largest
    squares = a * a * jj + b * b * uu
    integrated = tl.maximum(squares + 2 * a * b * ju, floor * squares)
    ratio = tl.maximum(jj + 2 * ju + uu, 0.0) / tl.where(integrated > 0, integrated, 1.0)
    enlargement = tl.maximum(tl.sqrt(ratio), 1.0)
    tl.store(coefficients + 2 * t, gamma * tl.where(cross < 0, enlargement * a, 1.0), mask=t < size)
    tl.store(coefficients + 2 * t + 1, gamma * tl.where(cross < 0, enlargement * b, 1.0), mask=t < size)


@triton.jit
def _diagnose(gramians, coefficients, values, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    t = tl.arange(0, block)
    cross = tl.sum(tl.load(gramians + 4 * t + 1, mask=t < size, other=0.0), 0)
    joint = tl.sqrt(tl.sum(tl.load(gramians + 4 * t, mask=t < size, other=0.0), 0))
    unimodal = tl.sqrt(tl.sum(tl.load(gramians + 4 * t + 3, mask=t < size, other=0.0), 0))
    first = tl.sum(tl.load(coefficients + 2 * t, mask=t < size, other=0.0), 0)
    second = tl.sum(tl.load(coefficients + 2 * t + 1, mask=t < size, other=0.0), 0)
    norms = joint * unimodal
    cosine = tl.where(norms == 0, 0.0, cross / tl.where(norms == 0, 1.0, norms))
    cosine = tl.where(cosine < -1, -1.0, tl.where(cosine > 1, 1.0, cosine))  # NaN stays NaN
    tl.store(values, cosine)
    tl.store(values + 1, joint)
    tl.store(values + 2, unimodal)
    tl.store(values + 3, first / (first + second))
    tl.store(values + 4, cross)


def fill_gramians(entries: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], rows: Sequence[int]) -> None:
    """Write a.a, a.b, a.b and b.b of each pair into a row of `entries`.

    Args:
        entries: float64 [T, 4].
        pairs: float32 vectors, contiguous, both of a pair of one length.
        rows: of `entries`, one for each pair.
    """
    numbered = list(zip(rows, *zip(*pairs, strict=True), strict=True))
    small = [(row, a, b) for row, a, b in numbered if a.numel() <= _SMALL]
    large = [(row, a, b) for row, a, b in numbered if a.numel() > _SMALL]
    with torch.cuda.device_of(entries):
        if small:
            numbers, joint, unimodal = zip(*small, strict=True)
            starts, places = _cached(_places, tuple(a.numel() for a in joint), numbers, entries.device)
            grid = (len(small),)
            _entries_of_segments[grid](torch.cat(joint), torch.cat(unimodal), starts, places, entries, block=_BLOCK)
        if large:
            shares = tuple(triton.cdiv(a.numel(), _BLOCK * _ROUNDS) for _, a, _ in large)
            sums = entries.new_empty(sum(shares), 3)
            for (_, a, b), part in zip(large, sums.split(shares), strict=True):
                _sums_of_shares[(len(part),)](a, b, part, a.numel(), block=_BLOCK, rounds=_ROUNDS)
            starts, places = _cached(_places, shares, tuple(row for row, _, _ in large), entries.device)
            _entries_of_shares[(len(large),)](sums, starts, places, entries, block=_BLOCK)


def combine(coefficients: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], rows: Sequence[int]) -> list[Tensor]:
    """coefficients[row, 0] * a + coefficients[row, 1] * b of each pair, in the form of a, whose memory it may take.

    Args:
        coefficients: float64 [T, 2], contiguous.
        pairs: float32 tensors, dense, both of a pair of the same strides.
        rows: of `coefficients`, one for each pair.
    """
    results = [a for a, _ in pairs]
    small = [k for k, a in enumerate(results) if a.numel() <= _SMALL]
    with torch.cuda.device_of(coefficients):
        for k in set(range(len(pairs))).difference(small):
            a, b = pairs[k]
            _combine[(triton.cdiv(a.numel(), _BLOCK),)](a, b, coefficients[rows[k]], a.numel(), block=_BLOCK)
        if small:
            sizes = tuple(results[k].numel() for k in small)
            a, b = (
                torch.cat([pairs[k][side].as_strided((size,), (1,)) for k, size in zip(small, sizes, strict=True)])
                for side in (0, 1)
            )
            starts, places = _cached(_places, sizes, tuple(rows[k] for k in small), a.device)
            grid = (len(small), triton.cdiv(max(sizes), _BLOCK))
            _combine_segments[grid](a, b, starts, places, coefficients, block=_BLOCK)
            for k, part in zip(small, a.split(sizes), strict=True):
                results[k] = part.as_strided(results[k].shape, results[k].stride(), part.storage_offset())
    return results


def mmpareto(gramians: Tensor, gamma: float, floor: float) -> Tensor:
    """MMPareto's coefficients as its options are by default: float64 [T, 2, 2], contiguous, -> [T, 2]."""
    coefficients = gramians.new_empty(len(gramians), 2)
    with torch.cuda.device_of(gramians):
        # from memory: an argument of a kernel would be rounded to float32
        constants = _cached(_constants, (gamma, floor), gramians.device)
        block = triton.next_power_of_2(len(gramians))
        _mmpareto[(1,)](gramians, coefficients, constants, len(gramians), block=block)
    return coefficients


def diagnose(gramians: Tensor, coefficients: Tensor) -> Tensor:
    """Cosine, both norms, the joint gradient's weight and the product of both gradients of an encoder.

    Args:
        gramians, coefficients: float64 [T, 2, 2] and [T, 2], contiguous; the result is [5].
    """
    values = gramians.new_empty(5)
    with torch.cuda.device_of(gramians):
        block = triton.next_power_of_2(len(gramians))
        _diagnose[(1,)](gramians, coefficients, values, len(gramians), block=block)
    return values


def _cached(function: Any, *arguments: Any) -> Any:
    """Call a cached function; without its cache in a capture, in which its tensors hold no values yet."""
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return (function.__wrapped__ if capturing else function)(*arguments)


@cache
def _places(sizes: tuple[int, ...], rows: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where segments of these sizes begin and end, and the rows: filled on the device, without waiting for it."""
    starts = torch.cat([torch.full((1,), size, dtype=torch.int64, device=device) for size in (0, *sizes)]).cumsum(0)
    return starts, torch.cat([torch.full((1,), row, dtype=torch.int64, device=device) for row in rows])


@cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.cat([torch.full((1,), value, dtype=torch.float64, device=device) for value in values])


@cache
def available(device: torch.device) -> bool:
    """Whether the kernels can be compiled and run on a device: Triton needs a C compiler, for one."""
    pairs = [(torch.ones(size, device=device), torch.ones(size, device=device)) for size in (16, 2 * _SMALL)]
    entries = torch.zeros((2, 4), dtype=torch.float64, device=device)
    try:
        fill_gramians(entries, pairs, (0, 1))
        coefficients = mmpareto(entries.view(2, 2, 2), 1.0, 0.0)
        diagnose(entries.view(2, 2, 2), coefficients)
        combine(coefficients, pairs, (0, 1))
    except Exception as error:  # of whatever kind: PyTorch's own operations do the same
        warnings.warn(f"Triton does not work here, so integration takes more operations: {error!r}", stacklevel=2)
        return False
    return True
