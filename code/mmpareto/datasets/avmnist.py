"""`avmnist`: a spoken digit and an image of the same digit, both made hard; arrays that `prepare.py avmnist` writes.

After AV-MNIST (Vielzeuf, Lechervy, Pateux & Jurie, "CentralNet", ECCV workshops 2018; MultiBench, Liang et al., NeurIPS
2021): MNIST without its leading principal components, and spoken digits of FSDD under noise.
"""

from pathlib import Path

import numpy as np

from mmpareto.data_folders import DESCRIPTION, require_root
from mmpareto.datasets.base import DATASETS, Modality, Split
from mmpareto.datasets.in_memory import DIGITS, InMemoryImages, numbered_ids, prepared_arrays
from mmpareto.datasets.prepared import read_description

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
    computed = frozenset({"image"})

    def __init__(self, root: Path | None, split: Split, *, seed: int = 0) -> None:
        root = require_root(root, "avmnist")
        read_description(root, "avmnist")
        forms = {name: (np.float16, shape) for name, shape in SHAPES.items()}
        images, labels = prepared_arrays(root, split, forms)
        super().__init__(
            name="avmnist",
            images=images,
            modalities={
                "sound": Modality("spectrogram", SHAPES["sound"]),
                "image": Modality("image", SHAPES["image"]),
            },
            labels=labels,
            classes=DIGITS,
            ids=numbered_ids(split, len(labels)),
            seed=seed,
        )
