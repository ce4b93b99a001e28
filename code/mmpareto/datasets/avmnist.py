"""`avmnist`: a spoken digit and an image of the same digit, both made hard; arrays that `prepare.py avmnist` writes.

After AV-MNIST (Vielzeuf, Lechervy, Pateux & Jurie, "CentralNet", ECCV workshops 2018; MultiBench, Liang et al., NeurIPS
2021): MNIST without its leading principal components, and spoken digits of FSDD under noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmpareto.data_folders import DESCRIPTION, require_root
from mmpareto.datasets.base import DATASETS, DatasetError, Modality, Split
from mmpareto.datasets.files import load_npy
from mmpareto.datasets.in_memory import InMemoryImages
from mmpareto.datasets.prepared import read_description

CLASSES = [str(digit) for digit in range(10)]
FRAMES, BINS = 48, 32  # of a sound's log-mel spectrogram
SHAPES = {"sound": (1, FRAMES, BINS), "image": (1, 28, 28)}


@DATASETS.register("avmnist")
class AVMNIST(InMemoryImages):
    """Spoken digits in noise and images of digits, modalities `sound` [1, 48, 32] and `image` [1, 28, 28].

    Args:
        root: what `prepare.py avmnist` wrote.
        split: "train", "val" or "test".
    """

    recipe = {"epochs": 10, "learning_rate": 0.1, "model": "cnn"}
    must_hold = (DESCRIPTION,)

    def __init__(self, root: Path | None, split: Split, *, seed: int = 0) -> None:
        root = require_root(root, "avmnist")
        read_description(root, "avmnist")
        arrays = {name: read_array(root, name, split) for name in ("sound", "image", "label")}
        labels = arrays.pop("label")
        if (
            labels.dtype != np.int64
            or labels.ndim != 1
            or not len(labels)
            or not 0 <= labels.min() <= labels.max() < 10
        ):
            raise DatasetError(
                f"{root / 'label' / f'{split}.npy'}: expected labels 0 to 9, int64 [N]; prepare the dataset again"
            )
        for name, array in arrays.items():
            if array.dtype != np.float16 or array.shape != (len(labels), *SHAPES[name]):
                raise DatasetError(
                    f"{root / name / f'{split}.npy'}: expected float16 {[len(labels), *SHAPES[name]]}, found "
                    f"{array.dtype} {list(array.shape)}; prepare the dataset again"
                )
        super().__init__(
            name="avmnist",
            images={name: torch.from_numpy(array) for name, array in arrays.items()},
            modalities={
                "sound": Modality("spectrogram", SHAPES["sound"]),
                "image": Modality("image", SHAPES["image"]),
            },
            labels=labels,
            classes=CLASSES,
            ids=pair_ids(split, len(labels)),
            seed=seed,
        )


def pair_ids(split: Split, count: int) -> list[str]:
    """Names of a split's pairs, in their order."""
    return [f"{split}_{index:05d}" for index in range(count)]


def read_array(root: Path, name: str, split: Split) -> np.ndarray:
    """One modality's array of a split, or the labels.

    Raises:
        DatasetError: where it is missing or damaged.
    """
    file = root / name / f"{split}.npy"
    try:
        return load_npy(file)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file}: cannot be read ({error}); prepare the dataset again") from error
