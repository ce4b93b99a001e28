"""`digits`: coloured-and-gray handwritten digits that come with scikit-learn; real handwriting, no download.

1,797 digits of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits", test part), enlarged to 28 x 28. Fixed
stratified splits: 1,197 train, 200 validation, 400 test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmpareto.datasets.base import DatasetError, Modality, Split
from mmpareto.datasets.colouring import colours, paint
from mmpareto.datasets.in_memory import InMemoryImages

VALIDATION, TEST = 200, 400
_SPLIT_SEED = 0  # the splits and colours are part of the dataset: they do not move with a run's seed


class Digits(InMemoryImages):
    """Coloured-and-gray digits, modalities `gray` [1, 28, 28] and `colour` [3, 28, 28], classes 0 to 9.

    root      not used: the images are part of scikit-learn.
    split     "train" (colour follows the class), "val" or "test" (colour of a random class).
    variance  of the colour around the mean colour, channels in 0 .. 1.
    """

    embedded = True

    def __init__(self, root: Path | None, split: Split, *, variance: float = 0.02, seed: int = 0) -> None:
        if not 0 <= variance <= 1:
            raise DatasetError(f"digits: the colour variance must lie between 0 and 1, found {variance}")
        from sklearn.datasets import load_digits  # takes a second to load
        from sklearn.model_selection import train_test_split

        raw = load_digits()
        rest, test = train_test_split(
            np.arange(len(raw.target)), test_size=TEST, stratify=raw.target, random_state=_SPLIT_SEED
        )
        train, val = train_test_split(rest, test_size=VALIDATION, stratify=raw.target[rest], random_state=_SPLIT_SEED)
        chosen = np.sort({"train": train, "val": val, "test": test}[split])
        labels = raw.target[chosen]

        small = torch.from_numpy(raw.images[chosen]).float().unsqueeze(1) * (255 / 16)  # [N, 1, 8, 8]
        gray = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
        gray = gray.round().to(torch.uint8)
        generator = np.random.default_rng([_SPLIT_SEED, ("train", "val", "test").index(split)])
        colour = colours(labels, variance, split == "train", generator)
        super().__init__(
            name="digits",
            images={"gray": gray, "colour": torch.from_numpy(paint(gray.squeeze(1).numpy(), colour))},
            modalities={"gray": Modality("image", (1, 28, 28)), "colour": Modality("image", (3, 28, 28))},
            labels=labels,
            classes=[str(digit) for digit in range(10)],
            ids=[f"digit_{index:04d}" for index in chosen],
            seed=seed,
        )
