"""What a caller gives to integrate: losses and parameters in one form, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpareto.integration.partition import Parameters, PartitionError, named_pairs

# A scalar loss, or several, which count as their sum
LossOrLosses = Tensor | Iterable[Tensor] | Mapping[str, Tensor]


class Given(NamedTuple):
    """What `backward` and `accumulate` are given, checked and in one form."""

    joint: Tensor
    unimodal: list[Tensor]
    encoders: Mapping[str, Parameters]
    heads: Parameters
    features: Mapping[str, Tensor]


def losses_of(
    joint: LossOrLosses, unimodal: Mapping[str, Tensor] | Iterable[Tensor]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """One joint loss, the sum where several are given, and unimodal losses by name, or by number where a list is given.

    Raises:
        ValueError: where there is no joint loss, TypeError for what are no losses.
    """
    total: Any = joint
    if not isinstance(joint, Tensor) and isinstance(joint, Iterable):
        parts = list(joint.values() if isinstance(joint, Mapping) else joint)
        if not parts:
            raise ValueError("joint_loss is empty: give a scalar loss, or several")
        for part in parts:
            if not isinstance(part, Tensor):
                raise TypeError(f"joint_loss holds {type(part).__name__}; expected scalar tensors")
        total = sum(parts[1:], start=parts[0])
    if not isinstance(unimodal, Mapping):
        if isinstance(unimodal, Tensor) or not isinstance(unimodal, Iterable):
            raise TypeError(f"unimodal_losses is {type(unimodal).__name__}; expected {{modality: scalar loss}}")
        unimodal = {str(number): loss for number, loss in enumerate(unimodal)}
    return total, unimodal


def check_losses(joint: Tensor, unimodal: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a loss is no scalar or needs no gradient, TypeError where it is no tensor."""
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


def parameters_of(
    encoders: Mapping[str, Parameters], heads: Parameters, model: nn.Module | None
) -> tuple[Mapping[str, Parameters], Parameters]:
    """Encoders and heads; with a model its heads are all parameters of it that belong to no encoder.

    Raises:
        PartitionError: where heads and a model are given, or the model is wrapped.
    """
    if model is None or not hasattr(encoders, "items"):
        return encoders, heads
    if isinstance(heads, nn.Module) or list(heads):
        raise PartitionError("give heads or the model, not both: all other parameters of the model count as its heads")
    named = {name: named_pairs(given, f"encoders[{name!r}]") for name, given in encoders.items()}
    inside = {id(parameter) for pairs in named.values() for _, parameter in pairs}
    return named, [(name, parameter) for name, parameter in named_pairs(model, "model") if id(parameter) not in inside]
