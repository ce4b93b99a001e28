"""What a model takes for one modality: a tensor, or values of varying length with a mask.

A batch's inputs are {modality: Input}, a pytree (`torch.utils._pytree`): what moves, cuts, copies or captures them maps
a function over their tensors.

Shapes: B batch, L length of the longest sample of a batch.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Kind = Literal["image", "frames", "spectrogram", "vector", "waveform", "sequence", "tokens"]
KINDS: frozenset[str] = frozenset(get_args(Kind))
VARIABLE: frozenset[str] = frozenset({"waveform", "sequence", "tokens"})  # samples differ in length: `Padded`

T = TypeVar("T")


class Padded(NamedTuple):
    """Samples of different lengths, padded with zeros at the end to the longest of the batch.

    Attributes:
        values: [B, L] (waveform, floating point; tokens, int64) or [B, L, D] (sequence, floating point).
        mask: bool [B, L], True where there is data.
    """

    values: Tensor
    mask: Tensor


Input = Tensor | Padded
Inputs = Mapping[str, Input]


def values_of(value: Input) -> Tensor:
    """The values without their mask."""
    return value.values if isinstance(value, Padded) else value


def map_tensors(change: Callable[[Tensor], Tensor], tree: T) -> T:
    """`tree` with every tensor in it changed; all else stays."""
    return pytree.tree_map_only(Tensor, change, tree)


def chunks(tree: T, parts: int) -> list[T]:
    """`tree` cut along the batch into at most `parts` pieces, as torch.chunk cuts every tensor in it."""
    samples = next(len(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
    size = -(-samples // parts)
    cuts = [slice(start, start + size) for start in range(0, samples, size)]
    return [map_tensors(operator.itemgetter(cut), tree) for cut in cuts]


def wide(values: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
