"""Readers of arrays whose length differs from sample to sample.

Shapes: l length of a sample, L greatest length, D features of a step, V size of a vocabulary.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from mmpareto.datasets.arrays import load_array
from mmpareto.datasets.base import DatasetError, Modality
from mmpareto.datasets.files import npy_shape
from mmpareto.datasets.readers import ArrayReader

LONGEST = 1024  # steps that a sample is cut to, unless another number is given


class SequenceReader(ArrayReader):
    """A sequence [l, D] in a .npy or .pt file: sensors, features, landmarks; it is read as float32.

    modality  of kind "sequence" and shape (L, D); longer samples are cut to L steps.
    """

    def fitted(self, array: Tensor, source: object) -> Tensor:
        """An array in the form of `read`; `source` names it in messages."""
        longest, width = self.modality.shape
        if array.dim() != 2 or array.shape[1] != width or not len(array):
            raise DatasetError(f"{source}: expected a sequence of shape [length, {width}], found {list(array.shape)}")
        return array[:longest].float()

    def saved(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"reader": self.modality.kind}

    def length(self, path: Path) -> int:
        """Steps, or tokens, of a sample."""
        return min(array_length(path), self.modality.shape[0])


class TokensReader(SequenceReader):
    """Token ids [l] in a .npy or .pt file; they are read as int64.

    modality  of kind "tokens" and shape (L, V); longer samples are cut to L tokens.
    """

    def fitted(self, array: Tensor, source: object) -> Tensor:
        """An array in the form of `read`; `source` names it in messages."""
        longest, vocabulary = self.modality.shape
        if array.dim() != 1 or not len(array):
            raise DatasetError(f"{source}: expected token ids of shape [length], found {list(array.shape)}")
        ids = array[:longest].long()
        if (ids != array[:longest]).any() or ids.min() < 0 or ids.max() >= vocabulary:
            raise DatasetError(
                f"{source}: values from {array.min():g} to {array.max():g}; expected whole numbers from 0 to "
                f"{vocabulary - 1}, the vocabulary of the training split"
            )
        return ids


def array_length(path: Path) -> int:
    """The first dimension of an array; of a .npy file only the header is read.

    Raises:
        DatasetError: where it cannot be read.
    """
    try:
        shape = npy_shape(path) if path.suffix == ".npy" else tuple(load_array(path).shape)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as an array: {error}") from error
    return shape[0] if shape else 0


def sequence_modality(paths: Iterable[Path], longest: int | None) -> Modality:
    """The modality of sequences like these training samples.

    Args:
        longest: L; None: that of the longest one, at most LONGEST.

    Raises:
        DatasetError: where the first one is no sequence.
    """
    paths = list(paths)
    first = load_array(paths[0])
    if first.dim() != 2 or not first.numel():
        raise DatasetError(f"{paths[0]}: expected a sequence of shape [length, features], found {list(first.shape)}")
    return Modality("sequence", (longest or greatest_length(paths), first.shape[1]))


def tokens_modality(paths: Iterable[Path], longest: int | None) -> Modality:
    """The modality of token ids like these training samples; the vocabulary ends with the greatest id in them.

    Args:
        longest: L; None: that of the longest one, at most LONGEST.

    Raises:
        DatasetError: for an array without ids, or with values that are not finite.
    """
    paths = list(paths)
    with ThreadPoolExecutor(4) as pool:
        greatest = max(pool.map(_greatest_id, paths))
    return Modality("tokens", (longest or greatest_length(paths), greatest + 1))


def _greatest_id(path: Path) -> int:
    ids = load_array(path)
    if not ids.numel() or not ids.isfinite().all():
        what = "values that are not finite" if ids.numel() else "an empty array"
        raise DatasetError(f"{path}: expected one token id or more, found {what}; make the file again")
    return int(ids.max())


def greatest_length(paths: Iterable[Path]) -> int:
    """Length of the longest array, at most LONGEST."""
    with ThreadPoolExecutor(4) as pool:
        return max(1, min(LONGEST, max(pool.map(array_length, paths))))
