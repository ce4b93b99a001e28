"""Which parameters belong to which encoder, and which to the heads; checked, with errors that name the parameter."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# A module, its parameters, or its named parameters
Parameters = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


class PartitionError(ValueError):
    """A parameter is listed twice, or not at all although a loss reaches it, or cannot have a gradient."""


@dataclass(frozen=True)
class Partition:
    """The trainable parameters of each encoder and of everything else, each once. Frozen ones are left out."""

    encoders: dict[str, list[Tensor]]
    heads: list[Tensor]
    names: dict[str, list[str]]  # of the encoders' parameters, same order

    @property
    def encoder_parameters(self) -> list[Tensor]:
        """The encoders' parameters, one encoder after the other."""
        return [p for parameters in self.encoders.values() for p in parameters]


def partition(encoders: Mapping[str, Parameters], heads: Parameters) -> Partition:
    """Sorts the parameters and checks that each is listed once.

    encoders  {encoder name: module, parameters or named parameters}; usually one per modality. An encoder that several
              modalities share is one entry of its own.
    heads     everything else: unimodal heads, fusion, joint head.

    Raises PartitionError, naming the parameter and where it was found.
    """
    if not encoders:
        raise PartitionError("encoders is empty: give {name: parameters} with one entry per encoder")
    owner: dict[int, str] = {}
    listed: dict[str, list[tuple[str, Tensor]]] = {}
    for place, given in [*((f"encoders[{key!r}]", value) for key, value in encoders.items()), ("heads", heads)]:
        listed[place] = _named(given, place)
        for name, parameter in listed[place]:
            if id(parameter) in owner:
                raise PartitionError(
                    f"parameter {name} of shape {list(parameter.shape)} is listed twice: in {owner[id(parameter)]} "
                    f"and in {place}; list it once (an encoder that modalities share is an entry of its own)"
                )
            owner[id(parameter)] = place
            if not parameter.is_leaf:
                raise PartitionError(f"{name} in {place} is no parameter: it was computed by {parameter.grad_fn}")
    for key in encoders:
        if not listed[f"encoders[{key!r}]"]:
            raise PartitionError(
                f"encoder {key!r} has no parameters; a generator can be read only once, so give the module or a list"
            )
    trainable = {place: [(n, p) for n, p in pairs if p.requires_grad] for place, pairs in listed.items()}
    return Partition(
        encoders={key: [p for _, p in trainable[f"encoders[{key!r}]"]] for key in encoders},
        heads=[p for _, p in trainable["heads"]],
        names={key: [n for n, _ in trainable[f"encoders[{key!r}]"]] for key in encoders},
    )


def check_reached(part: Partition, losses: Sequence[Tensor]) -> None:
    """Raises PartitionError for a leaf tensor that the losses would give a gradient but that the partition lacks."""
    listed = {id(p) for p in (*part.encoder_parameters, *part.heads)}
    for leaf in _leaves(losses):
        if id(leaf) not in listed:
            raise PartitionError(
                f"{_describe(leaf)} gets a gradient from the losses but is listed neither under encoders nor under "
                "heads; list it (under heads if it belongs to no encoder), or freeze it with requires_grad_(False)"
            )


def _named(given: Parameters, place: str) -> list[tuple[str, Tensor]]:
    if isinstance(given, DistributedDataParallel):
        raise PartitionError(
            f"{place} is wrapped in DistributedDataParallel, whose own averaging would mix the two gradient sets; give "
            "the bare module: the integrator averages over processes by itself"
        )
    if isinstance(given, nn.Module):
        return list(given.named_parameters())
    if isinstance(given, Tensor):
        raise PartitionError(f"{place} is a tensor; give a module or a list of parameters")
    pairs: list[tuple[str, Tensor]] = []
    for position, item in enumerate(given):
        pair: Any = item if isinstance(item, tuple) else (f"{place}[{position}]", item)
        if len(pair) != 2 or not isinstance(pair[1], Tensor):
            raise PartitionError(
                f"{place}[{position}] is {type(item).__name__}; expected a parameter or (name, parameter)"
            )
        pairs.append(pair)
    return pairs


def _leaves(losses: Sequence[Tensor]) -> Iterable[Tensor]:
    """The leaf tensors at the ends of the losses' graphs."""
    stack: list[Any] = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


def _describe(parameter: Tensor) -> str:
    """A parameter by its name in the outermost module that holds it; by its shape where there is none."""
    shape = f"of shape {list(parameter.shape)}"
    found: list[tuple[str, str]] = []
    for module in gc.get_objects():  # slow, and only on the way to an error
        if issubclass(type(module), nn.Module):
            found += [(name, type(module).__name__) for name, p in module.named_parameters() if p is parameter]
    if found:
        name, owner = max(found, key=lambda pair: pair[0].count("."))
        return f"parameter {name} {shape} of the module {owner}"
    return f"a leaf tensor {shape} and type {str(parameter.dtype).removeprefix('torch.')}"


def check_losses(joint: Tensor, unimodal: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a loss is no scalar or needs no gradient, TypeError where it is no tensor."""
    if not unimodal:
        raise ValueError(
            "unimodal_losses is empty: give {modality: scalar loss}; with none there is nothing to integrate"
        )
    for name, loss in [
        ("joint_loss", joint),
        *((f"unimodal_losses[{key!r}]", value) for key, value in unimodal.items()),
    ]:
        if not isinstance(loss, torch.Tensor):
            raise TypeError(f"{name} is {type(loss).__name__}; expected a scalar tensor")
        if loss.numel() != 1:
            raise ValueError(f"{name} has shape {list(loss.shape)}; expected a scalar: take its mean or sum first")
        if not loss.requires_grad:
            raise ValueError(f"{name} needs no gradient: is the forward pass under torch.no_grad(), or detached?")
