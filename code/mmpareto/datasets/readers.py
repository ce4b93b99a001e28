"""Readers of images, frames and arrays: each reads the file or the folder of a clip's modality.

Images stay uint8 up to the device. What a reader gives has the shape of its `modality`.

Shapes: F frames of a clip, L audio frames, M mel bins, H x W pixels.
"""

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmpareto.datasets.arrays import load_array
from mmpareto.datasets.base import DatasetError, Modality
from mmpareto.datasets.crops import Crop, fit
from mmpareto.datasets.files import IMAGE_SUFFIXES, version
from mmpareto.datasets.images import PACKED, check_image, packed_images, read_as_stored, read_image, unpacked

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# log energies and spectra lie well inside; what is outside is another quantity, or damage
LOG_RANGE = (-40.0, 40.0)


class Reader(Protocol):
    """Reader of one modality."""

    @property
    def modality(self) -> Modality:
        """What `read` gives."""

    def read(self, path: Any, generator: torch.Generator | None) -> Tensor:
        """Read a clip's input: augmented with the random numbers of a generator; None: the fixed form for scoring.

        A reader of inputs that vary in length has `length(path)` as well.
        """

    def check(self, path: Any) -> None:
        """Raise DatasetError where the file cannot be read as this modality."""

    def saved(self) -> dict[str, Any]:
        """What `reading.reader_from` makes the reader of again, with the modality; in types of JSON."""


@contextlib.contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Lend PyTorch's default generator, from which torchvision's transforms draw, the state of this one."""
    with torch.random.fork_rng(devices=()):
        torch.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.get_rng_state())


def frame_files(folder: Path) -> list[Path]:
    """A folder's images in their order, see `frame_names`."""
    return [folder / name for name in frame_names(folder)]


def frame_names(folder: Path) -> list[str]:
    """The names of a folder's images in the order of the numbers in them; listed again only when the folder changes.

    Raises DatasetError where there are none, or where two have the same number.
    """
    return _frame_names(folder, version(folder)).split("/")


@functools.lru_cache(maxsize=4096)  # each of the loader's processes keeps one text a folder
def _frame_names(folder: Path, folder_version: tuple[int, ...]) -> str:
    """`frame_names` with / between them."""
    del folder_version  # a part of the cache's key
    try:
        listed = os.listdir(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: expected a folder of frames: {error.strerror}") from error
    names = [name for name in listed if name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    numbers = [[int(digits) for digits in re.findall(r"\d+", Path(name).stem)] for name in names]
    for name, its_numbers in zip(names, numbers, strict=True):
        if not its_numbers:
            raise DatasetError(f"{folder / name}: a frame needs its number in its name, such as frame_00001.jpg")
    if not names:
        raise DatasetError(f"{folder}: no frames; expected images such as frame_00001.jpg")
    texts = {re.sub(r"\d+", "0", Path(name).stem) for name in names}
    if len(texts) > 1 or _last_counts(numbers):
        numbers = [its_numbers[-1:] for its_numbers in numbers]
    ordered = sorted(zip(numbers, names, strict=True))
    for (number, name), (other_number, other) in itertools.pairwise(ordered):
        if number == other_number:
            raise DatasetError(f"{folder}: {name} and {other} have the same number")
    return "/".join(name for _, name in ordered)


def _last_counts(numbers: list[list[int]]) -> bool:
    """Whether the last of each frame's numbers counts the frames, so that the others are no part of their order.

    It does not where it begins again once, as the seconds of a clip do that starts in the middle of a minute.
    """
    last = [its_numbers[-1] for its_numbers in sorted(numbers)]
    starts_again = len(last) >= 10 and all((b - a) % len(last) == 1 for a, b in itertools.pairwise(last))
    return not starts_again and sorted(last) == list(range(min(last), min(last) + len(last)))


def chosen_frames(count: int, frames: int, generator: torch.Generator | None) -> list[int]:
    """Indices of `frames` of `count` frames: one of each of `frames` equal parts of the clip.

    A generator picks a frame of the part at random; None takes the middle one. Clips with fewer frames than parts give
    some of them more than once.
    """
    chosen = []
    for part in range(frames):
        low = part * count // frames
        width = max((part + 1) * count // frames - low, 1)
        chosen.append(low + (width // 2 if generator is None else int(torch.randint(width, (), generator=generator))))
    return chosen


class ImageReader:
    """One image per clip: uint8 [3, size, size]. Training: random crop, resized, and flip; scoring: resized whole.

    frame_size  of `prepare.py`, for files that it did not store: larger ones are brought to that form first.
    suffix      of the files that it stored; "": that of the file.
    """

    def __init__(self, size: int, frame_size: int | None = None, suffix: str = "") -> None:
        if size < 1:
            raise DatasetError(f"image_size must be 1 or more, found {size}")
        if frame_size is not None and frame_size < 1:
            raise ValueError(f"frame_size must be 1 or more, found {frame_size}")
        if suffix.lower() not in ("", *IMAGE_SUFFIXES):
            raise ValueError(f"{suffix!r:.50} is no suffix of images")
        self.size, self.frame_size, self.suffix = size, frame_size, suffix
        from torchvision.transforms import v2  # in the training process, so that workers are forked with it

        self._random_crop = v2.RandomResizedCrop(size, antialias=True)

    @property
    def modality(self) -> Modality:
        """[3, size, size], ImageNet's mean and std."""
        return Modality("image", (3, self.size, self.size), IMAGENET_MEAN, IMAGENET_STD)

    def read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """uint8 [3, size, size]."""
        (image,) = self.images(path, generator)
        return self.fitted(image, generator)

    def images(self, path: Path, generator: torch.Generator | None) -> Iterator[Tensor]:
        """The image as it is stored, uint8 [3, H, W]."""
        del generator  # there is one
        yield unpacked(packed_images(path)[0]) if path.suffix == PACKED else self._image(path)

    def _image(self, path: Path) -> Tensor:
        """An image file, uint8 [3, H, W]."""
        if self.frame_size is None:
            return read_image(path)
        return read_as_stored(path, self.frame_size, self.suffix or path.suffix)

    def fitted(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        """An image uint8 [3, H, W] as [3, size, size]: augmented, or resized whole."""
        if generator is None:
            return fit(image, self.size)
        part, flipped = self._crop(image, generator)
        return fit(part, self.size).flip(-1) if flipped else fit(part, self.size)

    def crops(self, path: Path, generator: torch.Generator) -> list[Crop]:
        """What `read` resizes and flips, of each image."""
        parts = (self._crop(image, generator) for image in self.images(path, generator))
        # in memory of its own: a mapped part keeps a file open
        return [Crop(part.permute(1, 2, 0).clone(memory_format=torch.contiguous_format), flip) for part, flip in parts]

    def _crop(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, bool]:
        """A random part of an image, uint8 [3, h, w], and whether it is flipped; drawn as torchvision draws them."""
        with _drawing_from(generator):
            box = self._random_crop.make_params([image])
            flipped = bool(torch.rand(1) < 0.5)
        top, left = box["top"], box["left"]
        return image[:, top : top + box["height"], left : left + box["width"]], flipped

    def check(self, path: Path) -> None:
        """Read the image's header; decode all of it where it may be cut off."""
        if path.suffix == PACKED:
            packed_images(path)
            return
        check_image(path)

    def saved(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"reader": "image"}


class FramesReader(ImageReader):
    """A folder of frames per clip, or packed ones: uint8 [F, 3, size, size]. Each is cropped and flipped on its own."""

    def __init__(self, frames: int, size: int, frame_size: int | None = None) -> None:
        super().__init__(size, frame_size)
        if frames < 1:
            raise DatasetError(f"frames must be 1 or more, found {frames}")
        self.frames = frames

    @property
    def modality(self) -> Modality:
        """[F, 3, size, size], ImageNet's mean and std."""
        return Modality("frames", (self.frames, 3, self.size, self.size), IMAGENET_MEAN, IMAGENET_STD)

    def read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """uint8 [F, 3, size, size]."""
        return torch.stack([self.fitted(image, generator) for image in self.images(path, generator)])

    def images(self, path: Path, generator: torch.Generator | None) -> Iterator[Tensor]:
        """The chosen frames as they are stored, each uint8 [3, H, W]."""
        if path.suffix == PACKED:
            packed = packed_images(path)
            for index in chosen_frames(len(packed), self.frames, generator):
                yield unpacked(packed[index])
        else:
            names = frame_names(path)
            for index in chosen_frames(len(names), self.frames, generator):
                yield self._image(path / names[index])

    def check(self, path: Path) -> None:
        """Check each frame."""
        for file in [path] if path.suffix == PACKED else frame_files(path):
            super().check(file)

    def saved(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"reader": "frames"}


class ArrayReader:
    """A .npy array, or a tensor in a .pt file, per clip.

    modality  what `read` gives; its shape must be that of the array, with or without a leading dimension of 1.
    padded    the first dimension (L) may be shorter: zeros follow, before normalisation; or longer: it is cut.
    limits    values outside are refused.
    """

    def __init__(
        self, modality: Modality, *, padded: bool = False, limits: tuple[float, float] = (-np.inf, np.inf)
    ) -> None:
        self.modality, self.padded, self.limits = modality, padded, limits

    def read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """Floating point, of the modality's shape."""
        del generator  # nothing is augmented
        return self.fitted(load_array(path), path)

    def fitted(self, array: Tensor, source: object) -> Tensor:
        """An array brought to the modality's shape; `source` names it in messages."""
        shape = self.modality.shape
        inner = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
        if array.dim() == len(inner) + 1 and array.shape[0] == 1:
            array = array[0]
        fits = array.shape[1:] == inner[1:] and array.dim() == len(inner) if self.padded else array.shape == inner
        if not fits or not array.numel():
            allowed = f"{list(inner)}" + (", or another first dimension" if self.padded else "")
            longer = not self.padded and 2 <= array.dim() == len(inner) and array.shape[1:] == inner[1:]
            hint = "; where samples differ in length, name the modality by --sequences" if longer else ""
            raise DatasetError(f"{source}: expected an array of shape {allowed}, found {list(array.shape)}{hint}")
        if self.padded:
            array = torch.cat([array[: inner[0]], array.new_zeros(max(inner[0] - len(array), 0), *inner[1:])])
        return array.reshape(shape)

    def check(self, path: Path) -> None:
        """Check shape, finite values and range."""
        array = self.read(path, None).float()
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DatasetError(f"{path}: has values that are not finite; make the file again")
        if low < self.limits[0] or high > self.limits[1]:
            raise DatasetError(
                f"{path}: values from {low:.4g} to {high:.4g}, expected {self.limits[0]:g} to {self.limits[1]:g}"
            )

    def saved(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"reader": "array", "padded": self.padded}
