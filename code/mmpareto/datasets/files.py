"""Files as they lie on disk: pipes and devices refused, .npy checked against its size, names in another spelling."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmpareto.datasets.base import DatasetError
from mmpareto.special_files import SPECIAL, special_file


def refuse_special_file(path: Path) -> None:
    """Raises DatasetError where a path is a folder, a named pipe, a socket or a device."""
    special = special_file(path)
    if special is not None:
        raise DatasetError(f"{path}: is {special}; expected a regular file")


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a path below `root` belongs to a system, not to the data: a name that begins with a dot, or __MACOSX.

    macOS leaves `._name` beside each file on other file systems, .DS_Store in each folder, and __MACOSX in archives.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, the order of the elements (True: Fortran's) and the type that a .npy file announces.

    Raises ValueError where the header is damaged, or of another version of the format than 1.0 and 2.0.
    """
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read_header:
        raise ValueError(f"version {version[0]}.{version[1]} of the .npy format; expected 1.0 or 2.0")
    try:
        return read_header[version](file)
    except Exception as error:  # NumPy parses it as Python and raises a dozen kinds
        raise ValueError(f"a damaged header ({' '.join(str(error).split())[:100]})") from error


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
    refuse_special_file(path)
    with open(path, "rb") as file:
        shape, fortran, dtype = read_npy_header(file)
        if dtype.kind not in "biufc":
            raise ValueError(f"an array of {dtype}; expected numbers")
        announced = math.prod(shape) * dtype.itemsize
        size = os.fstat(file.fileno()).st_size - file.tell()
        if size < announced or min(shape, default=0) < 0:
            raise ValueError(f"{size} bytes of data, the header announces {dtype} {list(shape)}; the file is cut off")
        array = np.fromfile(file, dtype, math.prod(shape))
    return array.reshape(shape, order="F" if fortran else "C")


def other_spelling(path: Path) -> str:
    """A hint where a missing path is on disk with names that differ in Unicode form or case alone; else "".

    Programs and disks write é as one character (NFC) or as e and an accent (NFD): both look alike.
    """
    place, differs = Path(path.anchor), ""
    for part in path.parts[1 if path.anchor else 0 :]:
        if os.path.lexists(place / part):
            place /= part
            continue
        try:
            names = os.listdir(place)
        except OSError:
            return ""
        composed = unicodedata.normalize("NFC", part)
        same_form = [name for name in names if unicodedata.normalize("NFC", name) == composed]
        same_but_case = [name for name in names if unicodedata.normalize("NFC", name).casefold() == composed.casefold()]
        if not same_but_case:
            return ""
        differs = "Unicode form (NFC or NFD)" if same_form and "case" not in differs else "upper or lower case"
        place /= (same_form or same_but_case)[0]
    if not differs:
        return ""
    return f"on disk it is {str(place)!a}: the names differ in {differs} alone; rename one of the two"


def hint(path: Path) -> str:
    """`other_spelling` as the end of a sentence, with its punctuation; else ""."""
    text = other_spelling(path)
    return f" ({text})" if text else ""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Switch the garbage collector off: it would walk through a million new rows again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Folders:
    """What lies in the folders below a root; each is listed once, where asking for each file takes 20 times as long."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._listed: set[str] = set()
        self._files: dict[str, str] = {}  # {path of a regular file: "file"}

    def kinds(self, paths: Sequence[str]) -> list[str | None]:
        """What paths relative to the root are: "file", "folder", "a named pipe" and the like; None: not there.

        Symbolic links are followed.
        """
        for folder in {path.rpartition("/")[0] for path in paths} - self._listed:
            self._list(folder)
        kinds = list(map(self._files.get, paths))
        if None in kinds:  # the folder may be unreadable, or the disk indifferent to case or Unicode form
            return [self._kind(path) if kind is None else kind for path, kind in zip(paths, kinds, strict=True)]
        return kinds

    def _kind(self, path: str) -> str | None:
        try:
            mode = os.stat(os.path.join(self._root, path)).st_mode
        except (OSError, ValueError):
            return None
        if stat.S_ISREG(mode):
            return "file"
        return "folder" if stat.S_ISDIR(mode) else next(name for holds, name in SPECIAL if holds(mode))

    def _list(self, folder: str) -> None:
        self._listed.add(folder)
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                self._files.update({prefix + entry.name: "file" for entry in entries if entry.is_file()})
        except (OSError, ValueError):
            return
