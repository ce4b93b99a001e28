"""Averages of gradient sets over the processes of a group, in flat buckets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def start_average(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> Callable[[], list[Tensor]]:
    """Begins one all-reduce of all the tensors together; the result waits for it and gives the averages.

    Returns a function that blocks the stream (not the host, on a GPU) until the averages are there.

    Args:
        tensors: of any shapes; the same ones, in the same order, on every process. Types may differ: they travel in the
            widest one.
        group: process group; None is the default group.
    """
    if not tensors:
        return list
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    flat = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])
    # the sum and then a division: gloo has no average
    work = dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=group, async_op=True)
    assert work is not None

    def finish() -> list[Tensor]:
        work.wait()
        parts = flat.div_(dist.get_world_size(group)).split([tensor.numel() for tensor in tensors])
        return [
            torch.empty_like(tensor).copy_(part.view(tensor.shape))
            if not tensor.is_contiguous() or tensor.dtype != dtype
            else part.view(tensor.shape)
            for tensor, part in zip(tensors, parts, strict=True)
        ]

    return finish


def several_processes(group: dist.ProcessGroup | None) -> bool:
    """Whether there is more than one process to average over."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def gradients(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """`.grad` of each parameter."""
    return [parameter.grad for parameter in parameters]


def set_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
    """Sets `.grad` of each parameter; None for all of them clears them."""
    for t, parameter in enumerate(parameters):
        parameter.grad = None if gradients is None else gradients[t]


def filled(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """None as zeros: what one process does not reach another one may, and all must send the same."""
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
