"""`utd-mhad`: 27 actions by 8 subjects; skeleton, inertial and depth data that `prepare.py utd-mhad` writes.

Chen, Jafari & Kehtarnavaz, "UTD-MHAD: A multimodal dataset for human action recognition utilizing a depth camera and a
wearable inertial sensor", ICIP 2015.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmpareto.data_folders import DESCRIPTION, require_root
from mmpareto.datasets.base import DATASETS, DatasetError, Modality, MultimodalDataset, Sample, Split
from mmpareto.datasets.in_memory import read_array
from mmpareto.datasets.prepared import read_description, read_split

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
MAP_SHAPE = (3, 64, 64)  # depth motion maps from the front, the side and above
RECORDED = {"skeleton": 30, "inertial": 50}  # samples a second


@DATASETS.register("utd-mhad")
class UTDMHAD(MultimodalDataset):
    """Human actions, held in memory: two or three of `skeleton` [l, 60], `inertial` [l, 6] and `depth` [3, 64, 64].

    Args:
        root: what `prepare.py utd-mhad` wrote.
        split: "train", "val" or "test".
    """

    recipe = {"epochs": 25, "batch_size": 32, "learning_rate": 0.001, "optimizer": "Adam"}
    must_hold = (DESCRIPTION,)
    computed = frozenset({"depth"})

    def __init__(self, root: Path | None, split: Split, *, seed: int = 0) -> None:
        super().__init__(seed)
        self.name, self.classes = "utd-mhad", list(ACTIONS)
        root = require_root(root, self.name)
        description = read_description(root, self.name)
        rate = description["parameters"].get("rate")
        if type(rate) not in (int, float) or not rate > 0:
            raise DatasetError(f"{root}: dataset.json has the rate {rate!r:.100}; prepare the dataset again")
        known = {
            name: Modality("sequence", (-(-length // block(name, rate)), width))
            for name, (length, width) in SHAPES.items()
        } | {"depth": Modality("image", MAP_SHAPE)}
        unknown = sorted(description["modalities"].keys() - known.keys())
        if unknown:
            raise DatasetError(f"{root}: dataset.json has the modality {unknown[0]!r:.100}; prepare the dataset again")
        items = read_split(root, self.name, split, {}, self.classes)
        self.modalities = {name: known[name] for name in description["modalities"]}
        self.labels = np.array([self.classes.index(label) for label in items.labels], np.int64)
        self._ids = items.ids
        self._inputs = [
            {name: _read(item.paths[name], modality) for name, modality in self.modalities.items()} for item in items
        ]

    def sample_ids(self) -> list[str]:
        """The recordings' ids, in their order."""
        return self._ids

    def __getitem__(self, index: int) -> Sample:
        """A recording: sequences float32 [l, D] of their own lengths, depth uint8 [3, 64, 64]."""
        return {"inputs": dict(self._inputs[index]), "label": int(self.labels[index]), "id": self._ids[index]}

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Recordings by index; there is no file to read."""
        return [self[index] for index in indices]


def block(modality: str, rate: float) -> int:
    """How many recorded samples are averaged into one, for about `rate` samples a second; 1 or more."""
    return max(round(RECORDED[modality] / rate), 1)


def _read(path: Path, modality: Modality) -> Tensor:
    """float32 [l, D], cut to the greatest length, or uint8 [3, 64, 64]."""
    array = read_array(path)
    if modality.kind == "image":
        fits, expected = array.shape == modality.shape and array.dtype == np.uint8, f"uint8 {list(modality.shape)}"
    else:
        width = modality.shape[1]
        fits = array.dtype == np.float32 and array.ndim == 2 and array.shape[1] == width and len(array) > 0
        expected = f"float32 [l, {width}]"
    if not fits:
        raise DatasetError(
            f"{path}: expected {expected}, found {array.dtype} {list(array.shape)}; prepare the dataset again"
        )
    return torch.from_numpy(array if modality.kind == "image" else array[: modality.shape[0]])
