"""Image files: read, checked and stored as `prepare.py` stores them, one by one or the images of a clip packed.

Shapes: F frames of a clip, H x W pixels.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.files import map_npy, refusing_damage, write_array, write_image

JPEG_QUALITY = 95  # of images that are stored
PACKED = ".npy"  # suffix of decoded images
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# of Pillow's formats; one of the others starts Ghostscript
_PICTURES = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An image file whose header is read.

    Raises DatasetError for damage, and for pictures beyond Pillow's limit: a few hundred bytes can unpack to gigabytes.
    """
    with refusing_damage(path, "an image"), Image.open(path, formats=_PICTURES) as picture:
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


def check_image(path: Path) -> None:
    """Read an image's header; decode all of it where it may be cut off.

    Raises DatasetError where it cannot be used.
    """
    with opened_image(path) as image:
        image.verify()
        whole = image.format in ("PNG", "WEBP")  # read to their end above; of others the header alone
        with open(path, "rb") as file:
            if file.read(2) == _JPEG:  # nothing in a JPEG's header tells its length
                file.seek(-2, os.SEEK_END)
                whole = file.read(2) == _JPEG_END
    if not whole:
        read_image(path)


def store_image(path: Path, place: Path, short_side: int | None = None) -> None:
    """Store an image as `prepare.py` does: in the format of the place, and no larger than it has to be.

    short_side  an image whose shorter side is longer is resized to it, in pixels; None: none is. An image that keeps
                its size and its format is copied.

    Raises DatasetError where it cannot be decoded whole.
    """
    pixels = read_image(path)
    small = short_side is None or min(pixels.shape[1:]) <= short_side
    if small and format_of(path.suffix) == format_of(place.suffix):
        shutil.copyfile(path, place)
    else:
        write_small(Image.fromarray(pixels.permute(1, 2, 0).numpy()), place, short_side)


def read_as_stored(path: Path, short_side: int, suffix: str) -> Tensor:
    """An image as it is read from where `store_image` stored it in the format of a suffix, uint8 [3, H, W]."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, f"image{suffix}")
        store_image(path, place, short_side)
        return read_image(place)


def write_small(image: Image.Image, place: Path, short_side: int | None) -> None:
    """Write an image, resized where its shorter side is longer than `short_side` pixels; None: as it is."""
    if short_side is not None and min(image.size) > short_side:
        scale = short_side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    write_image(place, image, quality=JPEG_QUALITY)


def format_of(suffix: str) -> str:
    """The usual suffix of a file format: .jpg for .jpeg, .JPG and .jpg."""
    return ".jpg" if suffix.lower() == ".jpeg" else suffix.lower()


def packed_images(path: Path) -> np.ndarray:
    """The decoded images of a clip, as `prepare.py --pack` writes them: uint8 [F, H, W, 3], mapped from the disk.

    Colours come last because torchvision resizes such images in half the time.

    Raises DatasetError where the file holds something else.
    """
    with refusing_damage(path, "packed images"):
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


def unpacked(image: np.ndarray) -> Tensor:
    """A mapped image [H, W, 3] as a tensor [3, H, W], mapped as well."""
    return torch.from_numpy(image).permute(2, 0, 1)
