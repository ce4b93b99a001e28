"""The folder that a preparation writes to: one process at a time, with one set of parameters."""

import contextlib
import fnmatch
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpareto.data_folders import DESCRIPTION, UNFINISHED
from mmpareto.datasets.base import SPLITS, DatasetError
from mmpareto.datasets.files import refuse_special_file
from mmpareto.json_files import read_object
from mmpareto.preparation.sources import SOURCES
from mmpareto.writing import lock, write_text

LOCK = ".preparation.lock"
_FIRST_PART = f".{UNFINISHED}.*.part"  # of the first file that a preparation writes


@contextlib.contextmanager
def exclusive(output: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold the folder for one preparation with one set of parameters; make it where it is not there.

    Raises DatasetError: another process prepares it; it was prepared with other parameters; it holds other files.
    """
    if output.exists() and not output.is_dir():
        raise DatasetError(f"{output} is a file; --output must name a folder")
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        file = output / UNFINISHED
        _require_identity(output, identity)
        if not (file.exists() and file.stat().st_size):
            write_text(file, json.dumps(identity))
        for name in (UNFINISHED, SOURCES, DESCRIPTION, *(f"splits/{split}.csv" for split in SPLITS)):
            place = output / name
            for part in place.parent.glob(f".{place.name}.*.part"):  # of a process that was killed
                part.unlink()
        (output / "splits").mkdir(exist_ok=True)
        yield
        file.unlink()


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the folder's lock file, which is deleted at the end.

    A process that opened it before it was deleted, and locked it afterwards, holds a file that others do not see: it
    takes the new one.
    """
    while True:
        with open(output / LOCK, "a") as file:
            try:
                lock(file)
            except BlockingIOError as error:
                raise DatasetError(f"{output}: another process is preparing it; wait for it, or end it") from error
            try:
                current = os.path.samestat(os.fstat(file.fileno()), os.stat(output / LOCK))
            except FileNotFoundError:
                current = False
            if not current:
                continue
            try:
                yield
            finally:
                (output / LOCK).unlink(missing_ok=True)
            return


def _require_identity(output: Path, identity: dict[str, Any]) -> None:
    """Raise DatasetError where the folder was prepared as something else, or holds files of something else."""
    descriptions = (output / UNFINISHED, output / DESCRIPTION)
    earlier = next((file for file in descriptions if file.exists() and file.stat().st_size), None)
    if earlier is None:
        if not all(map(_is_harmless, output.iterdir())):
            raise DatasetError(f"{output} holds other files and no {DESCRIPTION}; give --output a new or empty folder")
        return
    refuse_special_file(earlier)
    try:
        saved = read_object(earlier)
    except ValueError as error:
        raise DatasetError(
            f"{earlier}: cannot be read ({error}); delete the folder and prepare the dataset again"
        ) from error
    saved.setdefault("modalities", identity.get("modalities"))  # of an earlier version that was cut short
    earlier_identity = {key: saved.get(key) for key in identity}
    if earlier_identity != json.loads(json.dumps(identity)):
        raise DatasetError(
            f"{output} was prepared as {json.dumps(earlier_identity)}, expected {json.dumps(identity)}; "
            "give another --output, or delete the folder"
        )


def _is_harmless(path: Path) -> bool:
    """Whether a file may lie in a folder that a preparation begins.

    data/<dataset> has its README already, a killed run leaves its lock or a part of its first file, macOS .DS_Store and
    ._name.
    """
    harmless = (UNFINISHED, LOCK, _FIRST_PART, "README.md", ".DS_Store", "._*")
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in harmless)
