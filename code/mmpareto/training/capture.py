"""CUDA graphs: all that a function launches, launched at once."""

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mmpareto.inputs import map_tensors
from mmpareto.streams import side_by_side

R = TypeVar("R")


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    tensors: list[Tensor]  # of the batch, which replays read
    result: Any


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Iterator[None]:
    """Capture what is launched meanwhile.

    A loader's pinning thread goes on: what it asks of the driver must not end the capture. Python collects no garbage:
    a graph of an earlier run that it freed would end the capture.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()


class Captured(Generic[R]):
    """A function of a batch as CUDA graphs: the host copies the batch, launches one graph, and does nothing else.

    There is a graph for each shape of the batch and each set of constants. The first calls run eagerly, as capture
    demands; the next one is captured, and replayed from then on. The graphs share their memory: the next call
    overwrites the result of this one. Learning rates are read from the device: a new one needs no new graph.

    Args:
        function: of a batch and constants. All else that it reads or changes are tensors that stay where they are.
        optimizer: that steps in it, if one does.

    Raises:
        RuntimeError: where the function does something that cannot be captured.
    """

    WARM_UP = 3

    def __init__(self, function: Callable[..., R], optimizer: torch.optim.Optimizer | None = None) -> None:
        self._function = function
        self._groups = [] if optimizer is None else optimizer.param_groups
        self._rates = [torch.zeros((), device="cuda") for _ in self._groups]
        self._last_rates: list[float] = []
        self._calls: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()  # of the first calls: what they make must not belong to the main one

    def __call__(self, batch: Any, *constants: Hashable) -> R:
        """The function's result; its tensors hold until the next call."""
        rates = [group["lr"] for group in self._groups]
        if rates != self._last_rates:
            for tensor, rate in zip(self._rates, rates, strict=True):
                tensor.fill_(rate)
            self._last_rates = rates
        tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        key = (*constants, *(tensor.shape for tensor in tensors))
        known = self._graphs.get(key)
        if known is None:
            self._calls[key] += 1
            if self._calls[key] <= self.WARM_UP:
                return self._beside(batch, *constants)
            known = self._graphs[key] = self._capture(batch, *constants)
        for ours, theirs in zip(known.tensors, tensors, strict=True):
            ours.copy_(theirs, non_blocking=True)
        known.graph.replay()
        return known.result

    def _beside(self, batch: Any, *constants: Hashable) -> R:
        """The function, eagerly, on another stream."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side), self._rates_on_device():
            result = self._function(batch, *constants)
        torch.cuda.current_stream().wait_stream(self._side)
        return result

    def _capture(self, batch: Any, *constants: Hashable) -> _Graph:
        """A graph of the function, with encoders side by side (see `streams`); nothing is computed yet."""
        kept = map_tensors(lambda tensor: tensor.to("cuda", copy=True), batch)
        graph = torch.cuda.CUDAGraph()
        with recording(graph, self._pool), self._rates_on_device(), side_by_side():
            result = self._function(kept, *constants)
        return _Graph(graph, [leaf for leaf in pytree.tree_leaves(kept) if isinstance(leaf, Tensor)], result)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The optimiser reads its learning rates from tensors meanwhile; schedules and checkpoints see numbers."""
        for group, tensor in zip(self._groups, self._rates, strict=True):
            group["lr"] = tensor
        try:
            yield
        finally:
            for group, rate in zip(self._groups, self._last_rates, strict=True):
                group["lr"] = rate
