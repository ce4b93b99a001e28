"""Inputs of new samples for a trained model: files, arrays or tensors, read as the run's dataset read its own."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmpareto.datasets.arrays import ARRAY_SUFFIXES
from mmpareto.datasets.base import DatasetError, Modality
from mmpareto.datasets.features import SoundReader
from mmpareto.datasets.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mmpareto.datasets.images import opened_image
from mmpareto.datasets.readers import ArrayReader, FramesReader, ImageReader, Reader
from mmpareto.datasets.sequences import SequenceReader, TokensReader
from mmpareto.datasets.text import TEXT_SUFFIX, TextReader, is_path_of_text
from mmpareto.inputs import VARIABLE


class FileReader(ArrayReader):
    """Reader of a modality whose training samples were no files: an array, or a picture of its size for an image.

    pictures  False: an image's values are computed from a picture, so that a picture is refused.
    """

    def __init__(self, modality: Modality, pictures: bool = True) -> None:
        super().__init__(modality)
        self.pictures = pictures and modality.kind == "image"

    def read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """See `Reader`."""
        suffix = path.suffix.lower()
        if suffix in ARRAY_SUFFIXES:
            return super().read(path, generator)
        if suffix in IMAGE_SUFFIXES and self.pictures:
            return self._picture(path)
        if suffix in IMAGE_SUFFIXES and self.modality.kind == "image":
            raise DatasetError(
                f"{path}: is a picture, and the run was trained on values that prepare.py computes from one; give such "
                f"an array ({', '.join(ARRAY_SUFFIXES)}) of shape {list(self.modality.shape)}"
            )
        kinds = [*ARRAY_SUFFIXES, *(IMAGE_SUFFIXES if self.pictures else ())]
        raise DatasetError(f"{path}: expected a file with one of {', '.join(kinds)}")

    def _picture(self, path: Path) -> Tensor:
        """uint8 [channels, H, W]."""
        channels, height, width = self.modality.shape
        with opened_image(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.size != (width, height):
                raise DatasetError(
                    f"{path}: expected a picture of {width} x {height} pixels, found {picture.width} x {picture.height}"
                )
            if picture.mode.startswith("I"):  # 16-bit greyscale, which convert() clips to 255
                picture = Image.fromarray((np.array(picture) >> 8).astype(np.uint8))
            pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
        return torch.from_numpy(pixels).reshape(height, width, -1).permute(2, 0, 1)


class VideoReader(FramesReader):
    """Reader of frames that were taken from videos: a folder of frames, or a video.

    fps, frame_size  what `prepare.py` took frames with; fps None: the run was not trained on frames of videos.
    """

    def __init__(self, frames: int, size: int, fps: float | None, frame_size: int | None) -> None:
        super().__init__(frames, size, frame_size)
        if fps is not None and not 0 < fps < float("inf"):
            raise ValueError(f"fps {fps!r:.50} is no positive number")
        self.fps = fps

    def images(self, path: Path, generator: torch.Generator | None) -> Iterator[Tensor]:
        """See `FramesReader`; of a video the frames that `prepare.py` stores, to the bit."""
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            yield from super().images(path, generator)
            return
        if self.fps is None:
            raise DatasetError(
                f"{path}: expected a folder of frames: the run was trained on such folders, and does not say how many "
                "frames a second to take from a video"
            )
        from mmpareto.datasets.media import write_frames  # PyAV takes 0.2 s to import

        with tempfile.TemporaryDirectory() as folder:
            write_frames(path, Path(folder) / "frames", self.fps, self.frame_size)
            yield from super().images(Path(folder) / "frames", generator)


def reader_from(saved: Mapping[str, Any] | None, modality: Modality) -> Reader:
    """The reader of `Reader.saved()`; None: of a dataset whose samples are no files.

    Raises:
        ValueError: (or KeyError, TypeError) where `saved` is something else.
    """
    if saved is None:
        return _array_reader(modality)
    kind, shape = saved["reader"], modality.shape
    if kind == "computed":
        return FileReader(modality, pictures=False)
    if kind == "image":
        return ImageReader(shape[-1], saved.get("frame_size"), saved.get("suffix", ""))
    if kind == "frames":
        return VideoReader(shape[0], shape[-1], saved.get("fps"), saved.get("frame_size"))
    if kind == "sound":
        rates = {int(rate): int(number) for rate, number in saved.get("rates", {}).items()}
        return SoundReader(saved["features"], shape[1], saved["stored"] is True, rates)
    if kind == "array":
        return ArrayReader(modality, padded=saved["padded"] is True)
    if kind == "text":
        return TextReader(modality, files=saved.get("files") is not False)
    if kind in ("sequence", "tokens"):
        return _array_reader(modality)
    raise ValueError(f"an unknown reader {kind!r:.50}")


def _array_reader(modality: Modality) -> ArrayReader:
    """The reader of arrays, or of samples in memory."""
    readers: dict[str, type[ArrayReader]] = {"sequence": SequenceReader, "tokens": TokensReader}
    return readers.get(modality.kind, FileReader)(modality)


class Text(str):
    """The text itself, although it may look like the path of a file."""

    __slots__ = ()


def is_file_of(value: str, reader: Reader, folder: Path = Path()) -> bool:
    """Whether text names a file or folder that `reader` reads; else it is the text itself.

    Where the run was trained on text in cells, see `is_path_of_text`.

    Args:
        folder: that the path is relative to.
    """
    if not isinstance(reader, TextReader):
        return True
    return value.lower().endswith(TEXT_SUFFIX) if reader.files else is_path_of_text(value, folder)


def read_input(value: Any, reader: Reader, modality: Modality) -> Tensor:
    """The input of one sample, without the batch dimension: of the modality's shape, or of its own length.

    Args:
        value: the path of a file or folder that `reader` reads; or an array, a tensor or a list of numbers. Of a
            modality of text: the text itself, or the path of a .txt file. Bytes (uint8) and floating-point types stay
            as they are, all others become float32 (but token ids).

    Raises:
        DatasetError: for a file that is missing or unusable, and for an array of another form.
    """
    if isinstance(value, Text):
        return reader.read(value, None)
    if isinstance(value, str | Path):
        is_file = isinstance(value, Path) or is_file_of(value, reader)
        return reader.read(Path(value).expanduser() if is_file else value, None)
    try:
        array = value if isinstance(value, Tensor) else torch.as_tensor(_plain(np.asarray(value)))
        array = array.detach().cpu().to_dense()
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"expected a path, an array or a tensor, found {type(value).__name__} ({str(error)[:100]})"
        ) from error
    if array.is_complex():
        raise DatasetError("expected an array of real numbers, found complex ones")
    if modality.kind != "tokens" and array.dtype != torch.uint8 and not array.is_floating_point():
        array = array.float()
    return _array_reader(modality).fitted(array, "the array")


def _plain(array: np.ndarray) -> np.ndarray:
    """An array as PyTorch takes it: in this machine's byte order, without negative strides."""
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def absent_input(modality: Modality) -> Tensor:
    """What stands in the batch for a sample without the modality; the model does not look at it."""
    shape = modality.shape
    if modality.kind == "tokens":
        return torch.zeros(1, dtype=torch.int64)
    return torch.zeros(1, *shape[1:]) if modality.kind in VARIABLE else torch.zeros(shape, dtype=torch.uint8)
