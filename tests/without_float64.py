"""A made-up device without float64, as Apple's GPU is: no such machine is needed to run what it would refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mmpareto.integration import gramian

DEVICE = torch.device("meta")  # the type of device that needs no driver and that autograd knows
_COPIES = (torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_)
_JOINS = (torch.ops.aten.stack, torch.ops.aten.cat)  # of one device, even of tensors without dimensions


class OnDevice(Tensor):
    """A tensor that says it is on DEVICE; `inner` holds its values on the CPU.

    An operation raises where it gives float64, or meets a tensor of the CPU that has dimensions or is joined to it.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        if inner.dtype == torch.float64:
            raise TypeError("the made-up device has no float64")
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """The values: PyTorch reads no wrapped tensor."""
        return self.inner.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A checkpoint holds the values."""
        return self.inner.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        return _run(operation, args, dict(kwargs or {}))


def _run(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operation on the values; what it gives is on the device, unless it is copied to the CPU."""
    names = [argument.name for argument in operation._schema.arguments[: len(args)]]
    if "device" in names:
        place = names.index("device")
        kwargs |= dict(zip(names[place:], args[place:], strict=True))
        args = args[:place]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    target = kwargs.get("device")
    joins = operation.overloadpacket in _JOINS
    of_cpu = [tensor for tensor in tensors if type(tensor) is Tensor and (joins or tensor.dim())]
    if operation.overloadpacket not in _COPIES and of_cpu:
        raise RuntimeError(f"{operation}: tensors on the device and on the CPU")
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    args, kwargs = tree_map_only(OnDevice, lambda x: x.inner, (args, kwargs))
    result = operation(*args, **kwargs)
    if operation._schema.name.endswith("_"):  # in place
        return tensors[0] if operation._schema.returns else None
    if target is not None and torch.device(target).type == "cpu":
        return result
    return tree_map_only(Tensor, OnDevice, result)


class _Made(TorchDispatchMode):
    """Tensors that are made on DEVICE, or moved there from the CPU, are made-up ones."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs))) or (
            device is not None and torch.device(device).type == DEVICE.type
        ):
            return _run(operation, args, kwargs)
        return operation(*args, **kwargs)


@contextmanager
def device_without_float64() -> Iterator[torch.device]:
    """The made-up device, in the place of Apple's."""
    known = gramian._WITHOUT_FLOAT64
    gramian._WITHOUT_FLOAT64 = {DEVICE.type}
    try:
        with _Made():
            yield DEVICE
    finally:
        gramian._WITHOUT_FLOAT64 = known
