"""Files on disk: refuse pipes, devices and git-lfs pointers, check .npy sizes, find names in another spelling."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mmpareto.datasets.base import DatasetError, UnusableError
from mmpareto.special_files import file_kind, special_file

if TYPE_CHECKING:
    from PIL import Image

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".flv", ".avi", ".mov", ".m4v", ".mpg")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_LFS_MAGIC = b"version https://git-lfs"
FETCH_POINTERS = "run `git lfs install` and `git lfs pull` in the clone"


def refuse_special_file(path: Path) -> None:
    """Raise UnusableError where a path is a folder, a named pipe, a socket or a device."""
    special = special_file(path)
    if special is not None:
        raise UnusableError("no regular file", f"{path}: is {special}; expected a regular file")


@contextlib.contextmanager
def refusing_damage(path: Path, what: str) -> Iterator[None]:
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


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of a large file that git-lfs has not fetched (about 130 bytes)."""
    return path.is_file() and path.stat().st_size <= 1024 and path.read_bytes().startswith(_LFS_MAGIC)


def refuse_pointer(path: Path) -> None:
    """Raise UnusableError for a git-lfs pointer."""
    if is_lfs_pointer(path):
        raise UnusableError("git-lfs pointer", f"{path}; {FETCH_POINTERS}")


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a path below `root` belongs to a system, not to the data: a name that begins with a dot, or __MACOSX.

    macOS leaves `._name` beside each file on other file systems, .DS_Store in each folder, and __MACOSX in archives.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, the order of the elements (True: Fortran's) and the type that a .npy file announces.

    Raises ValueError where the header is damaged, or of another version of the format than 1.0 and 2.0.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the .npy format; expected 1.0 or 2.0")
    try:
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
        length = file.read(2)
        return _header(length + file.read(int.from_bytes(length, "little")))
    except Exception as error:  # NumPy parses it as Python and raises a dozen kinds
        raise ValueError(f"a damaged header ({' '.join(str(error).split())[:100]})") from error


@functools.lru_cache(maxsize=64)  # NumPy parses it as Python, which takes longer than to read a clip's features
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The content of a header of version 1.0, from its length on."""
    return np.lib.format.read_array_header_1_0(io.BytesIO(content))


def npy_shape(path: Path) -> tuple[int, ...]:
    """The shape that a .npy file announces; its data are not read.

    Raises ValueError for a damaged header, OSError where the file cannot be read, DatasetError where it is no regular
    file.
    """
    refuse_special_file(path)
    with open(path, "rb") as file:
        return read_npy_header(file)[0]


def load_npy(path: Path) -> np.ndarray:
    """The array of numbers in a .npy file; nothing is unpickled, and nothing is allocated before the size is checked.

    Raises ValueError where the file holds something else or less than its header announces, OSError where it cannot be
    read, DatasetError where it is no regular file.
    """
    with _checked_npy(path) as (file, shape, fortran, dtype):
        array = np.fromfile(file, dtype, math.prod(shape))
    return array.reshape(shape, order="F" if fortran else "C")


def map_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped: its parts are read from the disk when they are used. Raises as `load_npy`.

    It may be written to, which does not change the file: PyTorch makes tensors of such arrays without a copy.
    """
    with _checked_npy(path) as (file, shape, fortran, dtype):
        return np.memmap(file, dtype, "c", file.tell(), shape, "F" if fortran else "C")


@contextlib.contextmanager
def _checked_npy(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    """A .npy file open at its data, and its header, checked against its size."""
    refuse_special_file(path)
    with open(path, "rb") as file:
        shape, fortran, dtype = read_npy_header(file)
        if dtype.kind not in "biufc":
            raise ValueError(f"an array of {dtype}; expected numbers")
        announced = math.prod(shape) * dtype.itemsize
        size = os.fstat(file.fileno()).st_size - file.tell()
        if size < announced or min(shape, default=0) < 0:
            raise ValueError(f"{size} bytes of data, the header announces {dtype} {list(shape)}; the file is cut off")
        yield file, shape, fortran, dtype


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file of numbers.

    Python writes the bytes: NumPy does not notice where a disk fills up with the last ones.

    Raises OSError where not all of them could be written.
    """
    with open(path, "wb") as file:
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Write an image in the format of the path's suffix; `options` are those of Pillow's `Image.save`.

    Python writes the bytes: Pillow does not notice where a disk fills up.

    Raises OSError where not all of them could be written.
    """
    from PIL.Image import registered_extensions

    buffer = io.BytesIO()
    image.save(buffer, registered_extensions()[path.suffix.lower()], **options)
    path.write_bytes(buffer.getvalue())


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Switch the garbage collector off: it would walk through a million new values again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def version(path: Path) -> tuple[int, ...]:
    """Numbers that change when a file does; none where it is missing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_kinds(root: Path, paths: Sequence[str]) -> list[str | None]:
    """`file_kind` of paths relative to a root.

    Each folder is listed once: to ask for each file takes 20 times as long.
    """
    files: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in paths}:
        prefix = f"{folder}/" if folder else ""
        with contextlib.suppress(OSError, ValueError), os.scandir(root / folder) as entries:
            files.update(prefix + entry.name for entry in entries if entry.is_file())
    # what is not listed may be in an unreadable folder, or on a disk indifferent to case or Unicode form
    return ["file" if path in files else file_kind(root / path) for path in paths]
