"""`cgmnist`: coloured-and-gray MNIST, 70,000 digits held in memory; colour is a shortcut that breaks after training.

A stress test for shortcuts, not for balance: a model that ignores colour scores best.

Reads, in this order:

    dataset.json, gray/, colour/, label/    what `prepare.py cgmnist` writes
    mnist_10color_jitter_var_*.npy          coloured MNIST, published with "Learning Not to Learn" (Kim et al., 2019)
    train-images-idx3-ubyte[.gz], ...       MNIST itself, in the folder or below it; coloured here, the same everywhere

and downloads MNIST through torchvision where the folder has none of them.
"""

import contextlib
import gzip
import io
import math
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mmpareto.data_folders import DESCRIPTION
from mmpareto.datasets.base import DATASETS, SPLITS, DatasetError, Modality, Split
from mmpareto.datasets.colouring import colours, paint
from mmpareto.datasets.files import refuse_special_file
from mmpareto.datasets.in_memory import DIGITS, InMemoryImages, check_digits, numbered_ids, prepared_arrays
from mmpareto.datasets.lists import VAL_FRACTION, cut
from mmpareto.datasets.pickled_arrays import read_pickled_arrays
from mmpareto.datasets.prepared import read_description

PUBLISHED = "mnist_10color_jitter_var_*.npy"
_SEED = 0  # splits and colours are part of the dataset: they do not move with a run's seed
_BYTES = 8  # the sign of unsigned bytes in an idx file
_MOST_BYTES = 2**28  # of an idx file; MNIST's largest has 47 MB
_NAMES = {  # of MNIST's files, by part and content
    (part, content): f"{prefix}-{content}s-idx{dimensions}-ubyte"
    for part, prefix in (("train", "train"), ("test", "t10k"))
    for content, dimensions in (("image", 3), ("label", 1))
}
_MODALITIES = {
    "gray": Modality("image", (1, 28, 28), (0.1307,), (0.3081,)),
    "colour": Modality("image", (3, 28, 28)),
}


@DATASETS.register("cgmnist")
class CGMNIST(InMemoryImages):
    """Coloured-and-gray MNIST, a stress test for shortcuts; `gray` [1, 28, 28], `colour` [3, 28, 28], 10 classes.

    54,000 train (colour follows the class), 6,000 validation and 10,000 test digits (colour of a random class).

    Args:
        root: folder with MNIST or with one of the forms that the module names; MNIST is downloaded where it has none.
        split: "train", "val" or "test".
        variance: of the colour around the mean colour, channels in 0 .. 1; Wu et al. and PMR 0.03
        download: MNIST into the folder, where it has none
    """

    recipe = {"epochs": 20, "learning_rate": 0.1, "clip_grad": 1.0, "model": "pmr"}

    def __init__(
        self, root: Path | None, split: Split, *, variance: float = 0.03, seed: int = 0, download: bool = True
    ) -> None:
        if not 0 <= variance <= 1:
            raise DatasetError(f"cgmnist: the colour variance must lie between 0 and 1, found {variance}")
        if root is None:
            raise DatasetError("cgmnist: give the folder of the data with --data_root")
        if (root / DESCRIPTION).exists():
            read_description(root, "cgmnist", {"variance": variance})
            forms = {name: (np.uint8, modality.shape) for name, modality in _MODALITIES.items()}
            images, labels = prepared_arrays(root, split, forms)
        else:
            arrays, labels = load(root, split, variance, download)
            images = {name: torch.from_numpy(array) for name, array in arrays.items()}
        super().__init__(
            name="cgmnist",
            images=images,
            modalities=_MODALITIES,
            labels=labels,
            classes=DIGITS,
            ids=numbered_ids(split, len(labels)),
            seed=seed,
        )


def load(root: Path, split: Split, variance: float, download: bool = True) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{"gray": uint8 [N, 1, 28, 28], "colour": uint8 [N, 3, 28, 28]} and labels [N] of a split, from the raw files.

    Raises:
        DatasetError: where they are missing or damaged.
    """
    published = _published_file(root, variance)
    part = "test" if split == "test" else "train"
    if published is not None:
        painted, labels = read_published(published)[part]
        gray = _gray(painted)
        chosen = _chosen(labels, split)
        colour = painted[chosen].transpose(0, 3, 1, 2)
        if split == "val":  # its published colours follow the class: painted anew, round the means of the file's own
            means = _mean_colours(painted, gray, labels)
            colour = paint(gray[chosen], colours(labels[chosen], variance, False, _generator(split), means))
    else:
        gray, labels = read_mnist(root, download)[part]
        chosen = _chosen(labels, split)
        colour = paint(gray[chosen], colours(labels[chosen], variance, split == "train", _generator(split)))
    return {"gray": gray[chosen][:, None].copy(), "colour": np.ascontiguousarray(colour)}, labels[chosen]


def mnist_split(root: Path, split: Split, download: bool = True) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A split of MNIST, not coloured: images uint8 [N, 28, 28], labels int64 [N] and ids.

    Raises:
        DatasetError: where its files are missing or damaged.
    """
    images, labels = read_mnist(root, download)["test" if split == "test" else "train"]
    chosen = _chosen(labels, split)
    return images[chosen], labels[chosen], numbered_ids(split, len(chosen))


def _generator(split: Split) -> np.random.Generator:
    return np.random.default_rng([_SEED, SPLITS.index(split)])


def _chosen(labels: np.ndarray, split: Split) -> np.ndarray:
    if split == "test":
        return np.arange(len(labels))
    train, val = cut(range(len(labels)), labels.tolist(), VAL_FRACTION, _SEED, "cgmnist: validation")
    return np.array(train if split == "train" else val)


# MNIST's own files


def read_mnist(root: Path, download: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train", "test": (images uint8 [N, 28, 28], labels int64 [N])} from the idx files in a folder or below it.

    Plain or gzip; with `download` they are downloaded through torchvision where there are none.

    Raises:
        DatasetError: files missing, damaged, or of another form.
    """
    files = _mnist_files(root)
    if download and not files:
        _download(root)
        files = _mnist_files(root)
    missing = [name for key, name in _NAMES.items() if key not in files]
    if missing:
        advice = ", or empty the folder" if download else ""
        raise DatasetError(f"cgmnist: {root} lacks {', '.join(missing)} of MNIST (plain or .gz); add them{advice}")
    parts = {}
    for part in ("train", "test"):
        images_file, labels_file = files[part, "image"], files[part, "label"]
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1).astype(np.int64)
        if images.shape[1:] != (28, 28):
            raise DatasetError(f"{images_file}: expected images of 28 x 28, found {list(images.shape)}")
        if len(images) != len(labels):
            raise DatasetError(f"{images_file}: {len(images)} images, but {len(labels)} labels in {labels_file}")
        check_digits(labels, labels_file)
        parts[part] = (images, labels)
    return parts


def raw_files(root: Path, variance: float | None = None) -> list[Path]:
    """The files that `load` reads, or with no variance `mnist_split`: MNIST's, or the published coloured one."""
    published = None if variance is None else _published_file(root, variance)
    return [published] if published else list(_mnist_files(root).values())


def _mnist_files(root: Path) -> dict[tuple[str, str], Path]:
    """MNIST's files, as far as they are there, by part and content."""
    return {key: path for key, name in _NAMES.items() if (path := _find(root, name))}


def _find(root: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # a name that also circulates
    # in the folder or two folders below it, where downloads put them; a whole disk is not searched
    patterns = (below + n + suffix for below in ("", "*/", "*/*/") for n in (name, dotted) for suffix in ("", ".gz"))
    return next((path for pattern in patterns for path in sorted(root.glob(pattern))), None)


def _download(root: Path) -> None:
    from torchvision.datasets import MNIST

    missing = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root, prefix=".download") as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                downloaded = Path(MNIST(folder, train=True, download=True).raw_folder)
            raw = root / downloaded.relative_to(folder)
            raw.mkdir(parents=True, exist_ok=True)
            for file in downloaded.iterdir():
                file.replace(raw / file.name)
    except Exception as error:  # urllib, ssl and torchvision raise a dozen kinds
        if missing:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise DatasetError(
            f"cgmnist: {root} holds no MNIST, and it could not be downloaded ({' '.join(str(error).split())[:250]}); "
            "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
            "t10k-labels-idx1-ubyte.gz there"
        ) from error


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file, plain or gzip.

    Raises:
        DatasetError: where it is damaged, cut off, too large, or has another type or number of dimensions.
    """
    refuse_special_file(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(_MOST_BYTES)  # a small .gz can unpack to any size
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); fetch the file again") from error
    start = 4 + 4 * dimensions  # a magic number of 4 bytes and the sizes, of 4 bytes each, come before the values
    shape = [int.from_bytes(content[place : place + 4]) for place in range(4, start, 4)]
    if content[:4] != bytes((0, 0, _BYTES, dimensions)) or len(content) != start + math.prod(shape):
        raise DatasetError(f"{path}: is no whole idx file of bytes in {dimensions} dimension(s); fetch the file again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


# the published coloured arrays


def read_published(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train", "test": (images uint8 [N, 28, 28, 3], labels int64 [N])} of a published coloured MNIST.

    The file is a pickled dict; it is read without unpickling, see `pickled_arrays`.

    Raises:
        DatasetError: damage, other contents.
    """
    try:
        arrays = read_pickled_arrays(path)
        parts = {}
        for part in ("train", "test"):
            images, labels = arrays[f"{part}_image"], arrays[f"{part}_label"].astype(np.int64)
            check_digits(labels, f"{part}_label")
            if images.dtype != np.uint8 or images.shape != (len(labels), 28, 28, 3):
                raise ValueError(f"{part}_image: expected uint8 [N, 28, 28, 3], found {images.dtype} {images.shape}")
            parts[part] = (images, labels)
    except (OSError, ValueError, KeyError, DatasetError) as error:
        raise DatasetError(
            f"{path}: is no coloured MNIST as published ({error}); expected a pickled dict of train_image, "
            "train_label, test_image and test_label"
        ) from error
    return parts


def _published_file(root: Path, variance: float) -> Path | None:
    files = sorted(root.glob(PUBLISHED)) if root.is_dir() else []
    for path in files:
        with contextlib.suppress(ValueError):  # a name without a number
            if float(path.stem.rsplit("_", 1)[-1]) == variance:
                return path
    if files:
        raise DatasetError(
            f"{root} holds {', '.join(path.name for path in files)}, none with the variance {variance}; give "
            "--variance as in a file's name, or move them away to colour MNIST here"
        )
    return None


def _gray(painted: np.ndarray) -> np.ndarray:
    """The gray digit of a coloured one: its brightest channel, scaled so that its brightest pixel is white.

    MNIST's digits reach 254 or 255, but for a few hundred; colour multiplies all pixels alike.
    """
    brightest = painted.max(axis=3)
    peak = brightest.max(axis=(1, 2), keepdims=True).astype(np.float32)
    return np.rint(brightest * (255.0 / np.maximum(peak, 1.0))).astype(np.uint8)


def _mean_colours(painted: np.ndarray, gray: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean colour of each class, [10, 3] in 0 .. 1: colour of the white pixels, averaged."""
    means = np.zeros((10, 3))
    for digit in range(10):
        white = gray[labels == digit] >= 250
        means[digit] = painted[labels == digit][white].mean(axis=0) / 255.0 if white.any() else 1.0
    return means
