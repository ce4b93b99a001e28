"""Readers of images, frames and arrays: each reads the file or the folder of a clip's modality.

Images stay uint8 up to the device. What a reader gives has the shape of its `modality`.

Shapes: F frames of a clip, L audio frames, M mel bins, H x W pixels.
"""

import contextlib
import functools
import itertools
import mmap
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmpareto.datasets.base import DatasetError, Modality, UnusableError
from mmpareto.datasets.crops import Crop, fit
from mmpareto.datasets.files import (
    FETCH_POINTERS,
    IMAGE_SUFFIXES,
    is_lfs_pointer,
    load_npy,
    map_npy,
    refuse_special_file,
    version,
    write_array,
)
from mmpareto.pickles import is_tensor, require_legacy, require_only

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
ARRAY_SUFFIXES = (".npy", ".pt")
PACKED = ".npy"  # suffix of decoded images
JPEG_QUALITY = 95  # of frames that are stored
# of Pillow's formats; one of the others starts Ghostscript
_PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_LARGEST_VIEW = 2**28  # bytes
_KEPT_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
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


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Raise DatasetError, naming the file, for whatever libraries raise on a damaged one."""
    refuse_special_file(path)
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file") from error
    except Exception as error:  # Pillow, torch and NumPy raise a dozen kinds
        if is_lfs_pointer(path):
            raise DatasetError(f"{path}: is a git-lfs pointer; {FETCH_POINTERS}") from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DatasetError(f"{path}: cannot be read as {what}: {reason[0][:200]}") from error


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An image file whose header is read.

    Raises DatasetError for damage, and for pictures beyond Pillow's limit: a few hundred bytes can unpack to gigabytes.
    """
    with _reading(path, "an image"), Image.open(path, formats=_PICTURES) as picture:
        yield picture


def read_image(path: Path) -> Tensor:
    """An image file as uint8 [3, H, W], without transparency.

    Greyscale is replicated to three channels, 16-bit keeps the high byte, EXIF rotation is applied. torchvision decodes
    a JPEG of 340 x 256 pixels in 0.6 of Pillow's time, and as fast as OpenCV.

    Raises DatasetError where it cannot be decoded whole.
    """
    from torchvision.io import ImageReadMode, decode_image  # takes two seconds to load, which arrays need not spend
    from torchvision.transforms.v2.functional import pil_to_tensor

    with opened_image(path) as picture:
        try:
            if picture.format in ("WEBP", "GIF"):  # torchvision reads no EXIF data there, and all pictures of a GIF
                raise RuntimeError
            image = decode_image(str(path), mode=ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:  # not one of torchvision's formats (.bmp), or damaged
            image = pil_to_tensor(ImageOps.exif_transpose(picture).convert("RGB"))
    return (image.to(torch.int32) >> 8).to(torch.uint8) if image.dtype == torch.uint16 else image


def packed_images(path: Path) -> np.ndarray:
    """The decoded images of a clip, as `prepare.py --pack` writes them: uint8 [F, H, W, 3], mapped from the disk.

    Colours come last because torchvision resizes such images in half the time.

    Raises DatasetError where the file holds something else.
    """
    with _reading(path, "packed images"):
        images = map_npy(path)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise ValueError(f"expected uint8 [F, H, W, 3], found {images.dtype} {list(images.shape)}")
        return images


def write_packed(files: Sequence[Path], place: Path) -> None:
    """Write the images of a clip decoded, uint8 [F, H, W, 3].

    Raises UnusableError where they differ in size.
    """
    images = [read_image(file).permute(1, 2, 0).numpy() for file in files]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise UnusableError(
            "frames of several sizes", f"{files[0].parent}: {sizes[0]} and {sizes[-1]} cannot be packed"
        )
    write_array(place, np.stack(images))


def _unpacked(image: np.ndarray) -> Tensor:
    """A mapped image [H, W, 3] as a tensor [3, H, W], mapped as well."""
    return torch.from_numpy(image).permute(2, 0, 1)


class ImageReader:
    """One image per clip: uint8 [3, size, size]. Training: random crop, resized, and flip; scoring: resized whole."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise DatasetError(f"image_size must be 1 or more, found {size}")
        self.size = size
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
        yield _unpacked(packed_images(path)[0]) if path.suffix == PACKED else read_image(path)

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
        with opened_image(path) as image:
            image.verify()
            whole = image.format in ("PNG", "WEBP")  # read to their end above; of others the header alone
            with open(path, "rb") as file:
                if file.read(2) == _JPEG:  # nothing in a JPEG's header tells its length
                    file.seek(-2, os.SEEK_END)
                    whole = file.read(2) == _JPEG_END
        if not whole:
            read_image(path)

    def saved(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"reader": "image"}


class FramesReader(ImageReader):
    """A folder of frames per clip, or packed ones: uint8 [F, 3, size, size]. Each is cropped and flipped on its own."""

    def __init__(self, frames: int, size: int) -> None:
        super().__init__(size)
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
                yield _unpacked(packed[index])
        else:
            names = frame_names(path)
            for index in chosen_frames(len(names), self.frames, generator):
                yield read_image(path / names[index])

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


def load_array(path: Path) -> Tensor:
    """The tensor of a .npy or .pt file, on the CPU; unpickles nothing but tensors.

    Bytes and floating-point types of 16, 32 and 64 bits stay as they are; all others become float32.

    Raises DatasetError where the file is damaged, holds something else, or announces more than it holds.
    """
    with _reading(path, "an array"):
        if path.suffix.lower() == ".pt":
            array = _load_tensor(path)
        else:
            numbers = load_npy(path)
            array = torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("="), copy=False))
        if array.is_complex():
            raise TypeError("expected real numbers, found complex ones; store magnitude and phase, for example")
        return array if array.dtype in _KEPT_TYPES else array.float()


def _load_tensor(path: Path) -> Tensor:
    """The dense tensor of a .pt file.

    Raises TypeError or ValueError for another kind of tensor, and where it is larger than the file.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as records:
            announced = sum(record.file_size for record in records.infolist())
            if announced > size:  # torch.save compresses nothing
                raise ValueError(f"its records announce {announced} bytes, the file has {size}")
            for record in records.infolist():
                if record.filename.endswith(".pkl"):
                    require_only(is_tensor, records.read(record))
    else:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            require_legacy(is_tensor, content)
    array = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(array, Tensor):
        raise TypeError(f"expected a tensor, found {type(array).__name__}")
    for is_other_kind, kind, remedy in (
        (array.is_nested, "a nested tensor", "save one dense tensor a clip"),
        (array.is_meta, "a tensor without values (device meta)", "save it from the CPU"),
        (array.is_quantized, "a quantised tensor", "save tensor.dequantize()"),
        (array.layout != torch.strided, f"a tensor of layout {array.layout}", "save tensor.to_dense()"),
    ):
        if is_other_kind:
            raise TypeError(f"found {kind}, expected a dense one; {remedy}")
    values = array.numel() * array.element_size()  # more than those stored, where a view repeats them
    if array.untyped_storage().nbytes() > size or values > max(size, _LARGEST_VIEW):
        raise ValueError(f"a tensor of {list(array.shape)} in a file of {size} bytes; save tensor.clone()")
    return array.detach()  # workers cannot send a tensor that requires a gradient
