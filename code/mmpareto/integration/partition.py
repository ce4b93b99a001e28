"""Which parameters belong to which encoder, and which to the heads; checked, with errors that name the parameter."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmpareto.integration import graph

# A module, its parameters, or its named parameters
Parameters = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


# classes of modules that average or shard gradients by themselves, and how messages name them
_WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "FSDPModule by fully_shard, whose parameters are DTensors between two steps",
}
_WRAPPED = (
    "which averages gradients itself and would mix the two sets; train the bare module: the integrator averages over "
    "processes by itself"
)


class PartitionError(ValueError):
    """A parameter is listed twice, or not at all although a loss reaches it, or cannot have a gradient."""


@dataclass(frozen=True)
class Partition:
    """The trainable parameters of each encoder and of everything else, each once; and the frozen ones of both."""

    encoders: dict[str, list[Tensor]]
    heads: list[Tensor]
    frozen: list[Tensor]

    @property
    def encoder_parameters(self) -> list[Tensor]:
        """The encoders' parameters, one encoder after the other."""
        return [p for parameters in self.encoders.values() for p in parameters]

    @property
    def all_parameters(self) -> list[Tensor]:
        """The encoders' parameters, then the heads'."""
        return [*self.encoder_parameters, *self.heads]


def partition(encoders: Mapping[str, Parameters], heads: Parameters) -> Partition:
    """Sort the parameters and check that each is listed once.

    Args:
        encoders: {encoder name: module, parameters or named parameters}; usually one per modality. An encoder that
            several modalities share is one entry of its own.
        heads: everything else: unimodal heads, fusion, joint head.

    Raises:
        PartitionError: naming the parameter and where it was found.
    """
    if not hasattr(encoders, "items") or not encoders:
        kind = "empty" if hasattr(encoders, "items") else type(encoders).__name__
        raise PartitionError(f"encoders is {kind}: give {{name: module or parameters}} with one entry per encoder")
    owner: dict[int, str] = {}
    listed: dict[str, list[tuple[str, Tensor]]] = {}
    for place, parameters in [*((f"encoders[{key!r}]", value) for key, value in encoders.items()), ("heads", heads)]:
        listed[place] = named_pairs(parameters, place)
        for name, parameter in listed[place]:
            if id(parameter) in owner:
                raise PartitionError(
                    f"parameter {name} of shape {list(parameter.shape)} is listed twice: in {owner[id(parameter)]} "
                    f"and in {place}; list it once (an encoder that modalities share is an entry of its own)"
                )
            owner[id(parameter)] = place
            if not parameter.is_leaf:
                raise PartitionError(f"{name} in {place} is no parameter: it was computed by {parameter.grad_fn}")
            if parameter.requires_grad:  # a frozen one may be quantised
                _check_whole(f"{name} in {place}", parameter)
    for key in encoders:
        if not listed[f"encoders[{key!r}]"]:
            raise PartitionError(
                f"encoder {key!r} has no parameters; a generator can be read only once, so give the module or a list"
            )
    trainable = {place: [p for _, p in pairs if p.requires_grad] for place, pairs in listed.items()}
    frozen = [p for pairs in listed.values() for _, p in pairs if not p.requires_grad]
    return Partition({key: trainable[f"encoders[{key!r}]"] for key in encoders}, trainable["heads"], frozen)


class Branch(NamedTuple):
    """What goes with one encoder alone: the unimodal losses that reach it, and the nodes of their graphs."""

    losses: list[Tensor]
    nodes: set[graph.Node]


def separate(part: Partition, losses: Sequence[Tensor], walks: Sequence[graph.Walk]) -> dict[str, Branch] | None:
    """A branch for each encoder that learns; None where no encoder does, or branches have a node in common.

    A loss that reaches no encoder, as that of a frozen one, goes with the first branch.

    Args:
        losses: the unimodal losses.
        walks: of each loss, beyond the walks before it.
    """
    owner = {id(p): name for name, parameters in part.encoders.items() for p in parameters}
    branches = {name: Branch([], set()) for name, parameters in part.encoders.items() if parameters}
    for loss, walk in zip(losses, walks, strict=True):
        reached = graph.leaves([*walk.nodes, *walk.met])
        names = {owner[id(leaf)] for leaf in reached if id(leaf) in owner}
        names |= {name for name, branch in branches.items() if not walk.met.isdisjoint(branch.nodes)}
        names = names or {*list(branches)[:1]}
        if len(names) != 1:
            return None
        branch = branches[names.pop()]
        branch.losses.append(loss)
        branch.nodes.update(walk.nodes)
    return branches or None


def check_reached(part: Partition, leaves: Iterable[Tensor]) -> None:
    """Raise PartitionError for a leaf tensor that the losses would give a gradient but that the partition lacks."""
    listed = {id(p) for p in part.all_parameters}
    for leaf in leaves:
        if id(leaf) not in listed:
            raise PartitionError(
                f"{_describe(leaf)} gets a gradient from the losses but is listed neither under encoders nor under "
                "heads; list it (under heads if it belongs to no encoder), or freeze it with requires_grad_(False)"
            )


def check_placement(part: Partition) -> None:
    """Raise PartitionError where another wrapper averages or shards the gradients of the same parameters.

    It searches all live objects once (0.1 s), and only where processes train together.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    listed = {id(p) for p in part.all_parameters}
    for module in _modules():
        wrapper = _wrapper(module)
        if wrapper and any(id(p) in listed for p in module.parameters()):
            raise PartitionError(f"the parameters belong to a model that is wrapped in {wrapper}, {_WRAPPED}")


def check_dense(gradients: Iterable[Tensor | None]) -> None:
    """Raise ValueError for a sparse gradient."""
    for gradient in gradients:
        if gradient is not None and gradient.layout != torch.strided:
            raise ValueError(
                f"an encoder's gradient of shape {list(gradient.shape)} is sparse; integration needs dense ones "
                "(for an embedding: sparse=False)"
            )


def _check_whole(name: str, parameter: Tensor) -> None:
    """Raise PartitionError for a parameter whose `.grad` is not the whole gradient, or is used before integration."""
    if is_traceable_wrapper_subclass(parameter):
        raise PartitionError(
            f"{name} is a {type(parameter).__name__}: a sharded (FSDP, tensor parallel) or quantised parameter, whose "
            "gradient the integrator cannot read as a whole. Give plain parameters: do not call fully_shard or "
            "parallelize_module on the model; the integrator averages over processes by itself"
        )
    if getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise PartitionError(
            f"{name} has a post-accumulate-grad hook, which would run after each of the two backward passes, before "
            "the gradients are integrated. Remove it (an optimiser that steps inside the backward pass cannot be "
            "used), and do its work after `backward`"
        )


def named_pairs(parameters: Parameters, place: str) -> list[tuple[str, Tensor]]:
    """Parameters with their names; those without a name are called by `place` and number.

    Raises:
        PartitionError: for a wrapped module, and for what are no parameters.
    """
    if isinstance(parameters, nn.Module):
        wrapper = _wrapper(parameters)
        if wrapper and not any(is_traceable_wrapper_subclass(p) for p in parameters.parameters()):
            raise PartitionError(f"{place} is wrapped in {wrapper}, {_WRAPPED}")
        return list(parameters.named_parameters())
    if isinstance(parameters, Tensor):
        raise PartitionError(f"{place} is a tensor; give a module or a list of parameters")
    if not isinstance(parameters, Iterable):
        raise PartitionError(f"{place} is {type(parameters).__name__}; give a module or a list of parameters")
    pairs: list[tuple[str, Tensor]] = []
    for position, item in enumerate(parameters):
        pair: Any = item if isinstance(item, tuple) else (f"{place}[{position}]", item)
        if len(pair) != 2 or not isinstance(pair[1], Tensor):
            raise PartitionError(
                f"{place}[{position}] is {type(item).__name__}; expected a parameter or (name, parameter)"
            )
        pairs.append(pair)
    return pairs


def _wrapper(module: nn.Module) -> str:
    """What averages or shards the module's gradients by itself, for a message; "" where nothing does."""
    return next((_WRAPPERS[base.__name__] for base in type(module).__mro__ if base.__name__ in _WRAPPERS), "")


def _modules() -> Iterable[nn.Module]:
    """All live modules; slow."""
    return (value for value in gc.get_objects() if issubclass(type(value), nn.Module))


def _describe(parameter: Tensor) -> str:
    """A parameter by its name in the outermost module that holds it; by its shape where there is none."""
    shape = f"of shape {list(parameter.shape)}"
    holders = [
        (name, type(module).__name__)
        for module in _modules()
        for name, p in module.named_parameters()
        if p is parameter
    ]
    if holders:
        name, owner = max(holders, key=lambda pair: pair[0].count("."))
        return f"parameter {name} {shape} of the module {owner}"
    return f"a leaf tensor {shape} and type {str(parameter.dtype).removeprefix('torch.')}"
