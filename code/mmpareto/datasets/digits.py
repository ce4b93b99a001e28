"""`digits`: coloured-and-gray handwritten digits that come with scikit-learn; real handwriting, no download.

A stress test for shortcuts: colour gives the class away in training and misleads afterwards.

1,797 digits of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits", test part), enlarged to 28 x 28. Fixed
stratified splits: 1,197 train, 200 validation, 400 test.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmpareto.datasets.base import DATASETS, SPLITS, Modality, Split
from mmpareto.datasets.colouring import colours, paint
from mmpareto.datasets.in_memory import DIGITS, InMemoryImages

_COLOUR_SEED = 0  # colours are part of the dataset: they do not move with a run's seed
# the split of each image, a letter each (r: train, v: val, t: test): scikit-learn's `train_test_split` with stratified
# classes and seed 0, 400 of all for test, then 200 of the rest for validation. Stored, for importing it takes seconds.
_SPLITS = (
    "rvvvrrrvrrrrrrrvrrrrrtrrtrrrtvrrrrttrtrtrrtrrtrrrvvtrrrrrtrrrrrrrrrrrrvrrrrtrttvrtrrvvrtvrvrrvrttrrtrrttrtrrrrtr"
    "rrrrrtrtvrrrrrvvrvrttrtrvrrrvrrvrrrrtrrrrrrrrrvtrrrrrrrrrrtrvtrrrrrrrrrrrvtrtrvrrrrrvttvrrtvttrrrrrttrtrrrrrrvrr"
    "vrvtrvrtrrrrtrrrtrrtrttrrrrrtvtrvrrrrrrrtvrtrrrrrrrttvrtrrrtrrtrrrrrrtrrrrtrrrrrtttttrrrtrtrvrrrvrrvrrtrtrrvrrvt"
    "rrvtrrrrtttrrrrrrvrrvrrrrrrrtrrvrrrvtrtrtrrttrrrrrttrrrrrtrrrtrrrrrtrtrtrrtrrtrrrtrrtrrtrtrrrvtvttrrvrrrtrtrvrrr"
    "rrrrtrtvrvrrrrrrrrrrrrrrtrvrrrvrrtrrrrvrrrrrrtrrttrttrrrrrrvrrrtrrvrrrrrtrrrrrtttvrrrrrrrrtrrrrrrrvrrrrrrtrrtrrr"
    "vrvrrtrtttrrrtrrrrrvrrrrrrrtrrrrrtvrrrrvrvvrtrrrtrtrrrrrtrvtrrrrvvrrrrrrrrrrvtrtvtrrrvrrrtrvtvvrrrrrrrrrrrttrrrr"
    "rvrtrrrrrvrrvrrrrrrrrvtrrrrrtttrttrrvtvrrrrrtrrtrvvrrrrrrrrtvvtrrrtrrtrrtrrrrtrrrrrvvrrrtrvrrrtttrtrtrrrrrrrrrrt"
    "rrttttrvrvtvrrvttrtrrttrtrrttrvrrrrrtrtrrrvrrrrrrrrrrrrvrrrrrvrrrrrrttttrtrrtrvrrtrrrrrrvvvrtrrvrrrrrtrrtrtvrrrr"
    "rrvttrrvrtvrtrrvrrrvrrtrrrrtrrtvrtrrrvrrrttrrrrtttrvrtrtrrvrrrrrtrrrvrvrvvtvrtrrrttrrrrrrtrvtttrtrrrrtrvvrttrttt"
    "rttrtrtrtrvrrrrttrvtrrtrrrrtrttrrrrrvvrtrtrtvtrrtrrrvrrrrrrrrrrrrtrrrrrrrtvrrrtrtrtrrrrrtrtrrtrrrrrttrrvrvrrtvtr"
    "rtrtrrrrvrrrrrrvtvtrvtrrrvrrtrtttrrrrtrtrttrrrrtttrrrttrrrvrtrrrrrvtrrrrtrrrrrrrrrrrtrvvvvrtvrrrrtvrttrrtvrrrrrr"
    "ttrrrrrrvrtrrrrrrrrrvtrrvrrrrttvtrrrtttvrvrrrvrrrrrrvrrtrrrrtrrrttrrrrtrrrrrrrvrtrrrrrvtrrrrrrvrrvtttrrrtrrrtrrr"
    "rrrtrrttttrrrvrrrrrrtvrtrrrttrrtrrrrrrrrrrrrrvrrrrrtrvvrrvrrtttvrrrrrrrtrrrrvvrrttrrrtvrrrrtvrrrtrtrrrvrtrtrrrrt"
    "vrrrrrrrrrttrrttrrtrtrrrvvtvtrvtrrrrrtrrttvvrrrtrtrrrtrrttrrrrrrttrrrrrvrttrtrrrrrrrtttrrrrrrrrtrrrvrrtrtrrvrrtt"
    "rrrvrrtrtrrrrrtrvrrrrrtrtrrvtrrrvrtrrrtrtvtvvttrrtrrrrrvvvtrttrrrrtrvtrrrrrvrtrrrrtrrrrtrrvrtrrrtrtrtrrrrttrvrrr"
    "trrrrrvrtrvtrrvrtvrrrvrttrtrrrrrrrrvttrrrrrrrrtrtrrrrrtrrrrrrrtrrtrrrrtrrrrtrrtvrrrrrrrtrrtttrrrtrtrrtrrrvrtrtrt"
    "rrrrr"
)


def scanned_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images float64 [1797, 8, 8], values 0 to 16, and labels int64 [1797].

    Its file is read without importing scikit-learn, which takes two seconds.
    """
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin if package and package.origin else "").parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():  # another release may store it elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    values = np.loadtxt(file, delimiter=",")
    return values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)


def digits_split(split: Split) -> tuple[Tensor, np.ndarray, list[str]]:
    """A split's images float32 [N, 1, 8, 8], 0 to 255, labels int64 [N] and ids."""
    images, targets = scanned_digits()
    indices = np.flatnonzero(np.array(list(_SPLITS)) == {"train": "r", "val": "v", "test": "t"}[split])
    small = torch.from_numpy(images[indices]).float().unsqueeze(1) * (255 / 16)
    return small, targets[indices], [f"digit_{index:04d}" for index in indices]


@DATASETS.register("digits")
class Digits(InMemoryImages):
    """Coloured-and-gray digits, a stress test for shortcuts; `gray` [1, 28, 28], `colour` [3, 28, 28], 10 classes.

    Args:
        root: not used: the images are part of scikit-learn.
        split: "train" (colour follows the class), "val" or "test" (colour of a random class).
        variance: of the colour around the mean colour, channels in 0 .. 1.
    """

    recipe = {"epochs": 20, "batch_size": 32, "learning_rate": 0.3}
    embedded = True

    def __init__(self, root: Path | None, split: Split, *, variance: float = 0.02, seed: int = 0) -> None:
        small, labels, ids = digits_split(split)
        gray = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
        gray = gray.round().to(torch.uint8)
        generator = np.random.default_rng([_COLOUR_SEED, SPLITS.index(split)])
        colour = colours(labels, variance, split == "train", generator)
        super().__init__(
            name="digits",
            images={"gray": gray, "colour": torch.from_numpy(paint(gray.squeeze(1).numpy(), colour))},
            modalities={"gray": Modality("image", (1, 28, 28)), "colour": Modality("image", (3, 28, 28))},
            labels=labels,
            classes=DIGITS,
            ids=ids,
            seed=seed,
        )
