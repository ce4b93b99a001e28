"""Images that fit into memory: batches are cut out by index, without Python for each sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmpareto.datasets.base import Batch, DatasetError, Modality, MultimodalDataset, Sample, Split
from mmpareto.datasets.files import load_npy

DIGITS = [str(digit) for digit in range(10)]  # the classes


class InMemoryImages(MultimodalDataset):
    """Images of several modalities held in memory as uint8.

    images  {modality: [N, channels, H, W]}; labels [N]; ids N names.
    """

    def __init__(
        self,
        name: str,
        images: Mapping[str, Tensor],
        modalities: Mapping[str, Modality],
        labels: np.ndarray,
        classes: list[str],
        ids: Sequence[str],
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.name = name
        self.images = dict(images)
        self.modalities = dict(modalities)
        self.labels = labels.astype(np.int64)
        self.classes = classes
        self.ids = np.array(ids)
        self._label = torch.from_numpy(self.labels)

    @property
    def stored(self) -> Mapping[str, Tensor] | None:  # type: ignore[override]
        """The images; None where a subclass reads its samples in another way."""
        cls = type(self)
        plain = cls.__getitem__ is InMemoryImages.__getitem__ and cls.__getitems__ is InMemoryImages.__getitems__
        return self.images if plain else None

    def sample_ids(self) -> list[str]:
        """The samples' ids, in their order."""
        return self.ids.tolist()

    def __getitem__(self, index: int) -> Sample:
        inputs = {name: images[index] for name, images in self.images.items()}
        return {"inputs": inputs, "label": int(self.labels[index]), "id": str(self.ids[index])}

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        return {
            "inputs": {name: images[index] for name, images in self.images.items()},
            "label": self._label[index],
            "id": self.ids[indices].tolist(),
        }


def numbered_ids(split: Split, count: int) -> list[str]:
    """Names of a split's samples, in their order."""
    return [f"{split}_{index:05d}" for index in range(count)]


def prepared_arrays(
    root: Path, split: Split, forms: Mapping[str, tuple[type[np.generic], tuple[int, ...]]]
) -> tuple[dict[str, Tensor], np.ndarray]:
    """{modality: [N, ...]} of a split and its labels, digits int64 [N], as `prepare.py` writes them.

    forms  {modality: type and shape of a sample}.

    Raises DatasetError where a file is missing, damaged, or of another form.
    """
    files = {name: root / name / f"{split}.npy" for name in (*forms, "label")}
    arrays = {name: read_array(file) for name, file in files.items()}
    labels = arrays.pop("label")
    check_digits(labels, files["label"])
    for name, (kind, shape) in forms.items():
        array, expected = arrays[name], (len(labels), *shape)
        if array.dtype != kind or array.shape != expected:
            raise DatasetError(
                f"{files[name]}: expected {kind.__name__} {list(expected)}, found {array.dtype} {list(array.shape)}; "
                "prepare the dataset again"
            )
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, labels


def read_array(file: Path) -> np.ndarray:
    """An array of a prepared dataset; raises DatasetError where it is missing or damaged."""
    try:
        return load_npy(file)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read ({error}); prepare the dataset again") from error


def check_digits(labels: np.ndarray, source: object) -> None:
    """Raise DatasetError unless these are labels int64 [N], 0 to 9."""
    if labels.dtype != np.int64 or labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise DatasetError(
            f"{source}: expected labels 0 to 9, int64 [N], found {labels.dtype} {list(labels.shape)} or other labels; "
            "make the file again"
        )
