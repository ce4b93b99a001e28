"""Operators and waits of a piece of code."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts of the operators that run inside, and of those among them that bring a value or a tensor to the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_assert_async")

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.operators[name] += 1
        self.waits += name in self.WAITS or (name == "_to_copy" and _to_host(args[0], kwargs.get("device")))
        return func(*args, **kwargs)


def _to_host(source: Tensor, target: torch.device | str | None) -> bool:
    return target is not None and torch.device(target).type == "cpu" and source.device.type != "cpu"
