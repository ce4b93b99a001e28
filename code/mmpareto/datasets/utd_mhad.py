"""`utd-mhad`: 27 actions by 8 subjects, skeleton and inertial sequences that `prepare.py utd-mhad` writes.

Chen, Jafari & Kehtarnavaz, "UTD-MHAD: A multimodal dataset for human action recognition utilizing a depth camera and a
wearable inertial sensor", ICIP 2015.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmpareto.datasets.base import DATASETS, DatasetError, Modality, MultimodalDataset, Sample, Split
from mmpareto.datasets.files import load_npy
from mmpareto.datasets.prepared import read_description, read_split, require_root

# action 1, 2, ...
# fmt: off
ACTIONS = [
    "swipe_left", "swipe_right", "wave", "clap", "throw", "arm_cross", "basketball_shoot", "draw_x",
    "draw_circle_clockwise", "draw_circle_counter_clockwise", "draw_triangle", "bowling", "boxing", "baseball_swing",
    "tennis_swing", "arm_curl", "tennis_serve", "push", "knock", "catch", "pickup_and_throw", "jog", "walk",
    "sit_to_stand", "stand_to_sit", "lunge", "squat",
]
# fmt: on
# greatest number of samples in the dataset, and values of a sample
SHAPES = {"skeleton": (125, 60), "inertial": (326, 6)}
RECORDED = {"skeleton": 30, "inertial": 50}  # samples a second


@DATASETS.register("utd-mhad")
class UTDMHAD(MultimodalDataset):
    """Human actions, modalities `skeleton` [l, 60] and `inertial` [l, 6], held in memory.

    Args:
        root: what `prepare.py utd-mhad` wrote.
        split: "train", "val" or "test".
    """

    recipe = {"epochs": 25, "batch_size": 32, "learning_rate": 0.001, "optimizer": "Adam"}

    def __init__(self, root: Path | None, split: Split, *, seed: int = 0) -> None:
        super().__init__(seed)
        self.name, self.classes = "utd-mhad", list(ACTIONS)
        root = require_root(root, self.name)
        rate = read_description(root, self.name)["parameters"].get("rate")
        if type(rate) not in (int, float) or not rate > 0:
            raise DatasetError(f"{root}: dataset.json has the rate {rate!r:.100}; prepare the dataset again")
        shapes = {name: (-(-length // block(name, rate)), width) for name, (length, width) in SHAPES.items()}
        items = read_split(root, self.name, split, {}, self.classes)
        self.modalities = {name: Modality("sequence", shape) for name, shape in shapes.items()}
        self.labels = np.array([self.classes.index(label) for label in items.labels], np.int64)
        self._ids = items.ids
        self._sequences = [{name: _read(item.paths[name], shape) for name, shape in shapes.items()} for item in items]

    def sample_ids(self) -> list[str]:
        """The recordings' ids, in their order."""
        return self._ids

    def __getitem__(self, index: int) -> Sample:
        """A recording: inputs float32 [l, 60] and [l, 6], of its own lengths."""
        return {"inputs": dict(self._sequences[index]), "label": int(self.labels[index]), "id": self._ids[index]}

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Recordings by index; there is no file to read."""
        return [self[index] for index in indices]


def block(modality: str, rate: float) -> int:
    """How many recorded samples are averaged into one, for about `rate` samples a second; 1 or more."""
    return max(round(RECORDED[modality] / rate), 1)


def _read(path: Path, shape: tuple[int, int]) -> Tensor:
    """float32 [l, D], cut to the greatest length."""
    try:
        array = load_npy(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); prepare the dataset again") from error
    if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != shape[1] or not len(array):
        raise DatasetError(
            f"{path}: expected float32 [l, {shape[1]}], found {array.dtype} {list(array.shape)}; prepare the dataset "
            "again"
        )
    return torch.from_numpy(array[: shape[0]])
