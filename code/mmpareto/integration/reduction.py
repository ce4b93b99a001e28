"""`.grad` filled by backward passes; averages of gradient sets over the processes of a group, in flat buckets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def start_average(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> Callable[[], list[Tensor]]:
    """Begin one all-reduce of all the tensors together; the result waits for it and gives the averages.

    Returns a function that blocks the stream (not the host, on a GPU) until the averages are there.

    Args:
        tensors: of any shapes; the same ones, in the same order, on every process. Types may differ: they travel in the
            widest one.
        group: process group; None is the default group.

    Raises:
        ValueError: for a sparse tensor.
    """
    if not tensors:
        return list
    for tensor in tensors:
        if tensor.layout != torch.strided:
            raise ValueError(
                f"a gradient of shape {list(tensor.shape)} is sparse; processes average dense ones (for an embedding: "
                "sparse=False)"
            )
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


def add_gradients(
    roots: Sequence[Any],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor] | None = None,
    *,
    beyond: Sequence[Any] = (),
    retain_graph: bool = False,
) -> None:
    """`torch.autograd.backward`, after which the `.grad` of each input has memory of its own.

    Args:
        roots: losses, tensors or edges that the pass begins at.
        inputs: leaf tensors that get a gradient.
        gradients: of the roots; None for losses.
        beyond: edges at which the pass ends as well.
        retain_graph: see `torch.autograd.backward`.
    """
    torch.autograd.backward(roots, gradients, inputs=[*inputs, *beyond], retain_graph=retain_graph)
    for parameter, gradient in zip(inputs, apart([parameter.grad for parameter in inputs]), strict=True):
        if gradient is not parameter.grad:
            parameter.grad = gradient


def apart(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients, with a copy in the place of one whose memory another one has, or that is to be conjugated yet.

    Autograd gives `a` and `b` views of one gradient in `a.view(-1) + b.view(-1)`: to scale one would scale the other.
    """
    results = [g.resolve_conj() if g is not None and g.is_conj() else g for g in gradients]
    places = [(g.data_ptr(), k) for k, g in enumerate(results) if g is not None and g.layout == torch.strided]
    end = 0
    for start, k in sorted(places):
        gradient = results[k]
        assert gradient is not None
        if start < end:
            results[k] = gradient.clone()
        else:
            end = start + gradient.nbytes
    return results


def gradients(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """`.grad` of each parameter."""
    return [parameter.grad for parameter in parameters]


def set_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
    """Set `.grad` of each parameter; None for all of them clears them."""
    for t, parameter in enumerate(parameters):
        parameter.grad = None if gradients is None else gradients[t]


def filled(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """None as zeros: what one process does not reach another one may, and all must send the same."""
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
