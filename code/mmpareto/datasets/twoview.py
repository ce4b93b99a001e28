"""`twoview`: a rotated handwritten digit, and another digit of the same class under noise; no download.

After the noisy two-view MNIST of Wang, Arora, Livescu & Bilmes, "On Deep Multi-View Representation Learning" (ICML
2015): both views show the class, and what else they show is independent. Images are scikit-learn's digits in the splits
of `digits`, enlarged to 12 x 12, or MNIST in the splits of `cgmnist`. Both images of a pair are of the same split.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.datasets.base import DATASETS, SPLITS, DatasetError, Modality, Split
from mmpareto.datasets.digits import digits_split
from mmpareto.datasets.in_memory import DIGITS, InMemoryImages

_SEED = 0  # pairs, angles and noise are part of the dataset: they do not move with a run's seed
_SIDE = 12  # pixels of an enlarged scikit-learn digit
_BLOCK = 4096  # images that are drawn at once


@DATASETS.register("twoview")
class TwoView(InMemoryImages):
    """Two views of handwritten digits, modalities `rotated` and `noisy` [1, H, H], classes 0 to 9.

    Each image is in `pairs` pairs. scikit-learn's digits: H = 12, 1,197 train, 200 validation and 400 test images.
    MNIST: H = 28, 54,000 train, 6,000 validation and 10,000 test images.

    Args:
        root: folder with MNIST, for `source` mnist; not used for digits.
        split: "train", "val" or "test".
        source: of the images; mnist reads the idx files in --data_root
        rotation: greatest angle in degrees, to either side, of the view `rotated`; Wang et al. 45
        noise: greatest value that is added to a pixel of `noisy`, uniform from 0, white being 1; the sum is clipped to
            white; Wang et al. 1
        pairs: of each image, each with another partner, angle and noise
        download: MNIST into the folder, where it has none
    """

    recipe = {"epochs": 10, "learning_rate": 0.1}
    embedded = {"source": "digits"}

    def __init__(
        self,
        root: Path | None,
        split: Split,
        *,
        source: Literal["digits", "mnist"] = "digits",
        rotation: float = 180.0,
        noise: float = 1.0,
        pairs: int = 2,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        if not 0 <= rotation <= 180:
            raise DatasetError(f"twoview: --rotation must lie between 0 and 180 degrees, found {rotation:g}")
        if not 0 <= noise <= 100:
            raise DatasetError(f"twoview: --noise must lie between 0 and 100, found {noise:g}")
        if pairs < 1:
            raise DatasetError(f"twoview: --pairs must be 1 or more, found {pairs}")
        if source == "digits":
            small, labels, ids = digits_split(split)
            images = F.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        elif root is None:
            raise DatasetError("twoview: --source mnist reads MNIST; give its folder with --data_root")
        else:
            from mmpareto.datasets.cgmnist import mnist_split  # and pandas, which the digits do not need

            scanned, labels, ids = mnist_split(root, split, download)
            images = torch.from_numpy(scanned)[:, None]
        random = np.random.default_rng([_SEED, SPLITS.index(split)])
        rounds = [_views(images, labels, rotation, noise, random) for _ in range(pairs)]
        modality = Modality("image", tuple(images.shape[1:]))
        super().__init__(
            name="twoview",
            images={
                "rotated": torch.cat([first for first, _ in rounds]),
                "noisy": torch.cat([second for _, second in rounds]),
            },
            modalities={"rotated": modality, "noisy": modality},
            labels=np.tile(labels, pairs),
            classes=DIGITS,
            ids=[f"{name}_{number}" for number in range(pairs) for name in ids],
            seed=seed,
        )


def partners(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each of N samples another one of its class, int64 [N]; each sample is the partner of exactly one.

    A class of a single sample is its own partner.
    """
    partner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        order = random.permutation(np.flatnonzero(labels == label))
        partner[order] = np.roll(order, 1)
    return partner


def _views(
    images: Tensor, labels: np.ndarray, rotation: float, noise: float, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Both views of images [N, 1, H, H] with values 0 to 255, each image the first view of one pair; uint8."""
    partner = torch.from_numpy(partners(labels, random))
    first, second = torch.empty(images.shape, dtype=torch.uint8), torch.empty(images.shape, dtype=torch.uint8)
    for block in torch.arange(len(images)).split(_BLOCK):
        angles = random.uniform(-rotation, rotation, len(block))
        first[block] = rotate(images[block].float(), torch.from_numpy(angles).float()).round().to(torch.uint8)
        added = torch.from_numpy(random.random((len(block), *images.shape[1:]), np.float32)) * (255 * noise)
        second[block] = (images[partner[block]].float() + added).clamp(max=255).round().to(torch.uint8)
    return first, second


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images [N, C, H, H] about their centre, bilinear, with zeros outside.

    Args:
        degrees: [N], counter-clockwise.
    """
    cosine, sine = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    none = torch.zeros_like(cosine)
    theta = torch.stack([torch.stack([cosine, -sine, none], 1), torch.stack([sine, cosine, none], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
