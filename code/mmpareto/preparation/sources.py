"""What prepared clips were made of: a digest of each one's raw files, so that it is made again where they change."""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpareto.data_folders import DESCRIPTION
from mmpareto.datasets.base import DatasetError
from mmpareto.datasets.files import refuse_special_file
from mmpareto.escape import counted
from mmpareto.writing import write_text

SOURCES = ".sources.txt"  # lines: digest, space, id
_DIGITS = 16  # of a digest


def digest(source: Mapping[str, Any] | Sequence[Path], roots: Sequence[Path]) -> str:
    """A digest of a clip's raw files by their names, sizes and times of change, and of text by its content.

    Args:
        source: raw file, folder of files, or text, by modality; or the raw files.
        roots: folders that the names of files are relative to.
    """
    values: Sequence[Any] = sorted(source.items()) if isinstance(source, Mapping) else [("", path) for path in source]
    parts = [(name, _state(value, roots) if isinstance(value, Path) else value) for name, value in values]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:_DIGITS]


def _state(path: Path, roots: Sequence[Path]) -> tuple[Any, ...]:
    """Name, size and time of change of a file, or of each file in a folder."""
    name = next((path.relative_to(root).as_posix() for root in roots if path.is_relative_to(root)), path.name)
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                files = [(entry.name, entry.stat()) for entry in entries if not entry.name.startswith(".")]
        else:
            files = [("", path.stat())]
    except OSError:  # whoever reads it says what is wrong
        files = []
    return name, sorted((file, status.st_size, status.st_mtime_ns) for file, status in files)


def forget_changed(output: Path, digests: Mapping[str, str], modalities: Mapping[str, str]) -> None:
    """Delete the prepared files of clips that were made of other raw files, then record the digests.

    Clips without a record, as an older version of the program left them, count as unchanged.

    Args:
        output: the prepared dataset.
        digests: of the raw files, by id.
        modalities: {modality: suffix of its file, "" for a folder}.

    Raises:
        DatasetError: where the record is damaged.
    """
    record = output / SOURCES
    before = _recorded(record)
    changed = [identifier for identifier, value in digests.items() if before.get(identifier, value) != value]
    if changed:
        shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        print(f"the raw files of {counted(len(changed), 'clip')} have changed, made again: {shown}", file=sys.stderr)
        (output / DESCRIPTION).unlink(missing_ok=True)  # what it describes is no longer there
    for identifier in changed:
        for modality, suffix in modalities.items():
            place = output / modality / (identifier + suffix)
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
    after = {**before, **digests}
    if after != before:
        write_text(record, "".join(f"{value} {identifier}\n" for identifier, value in after.items()))


def _recorded(record: Path) -> dict[str, str]:
    """{id: digest} of a record; empty where there is none."""
    if not record.exists():
        return {}
    refuse_special_file(record)
    try:
        lines = record.read_bytes().decode().split("\n")
        if lines.pop() or any(line[_DIGITS : _DIGITS + 1] != " " for line in lines):
            raise ValueError("a line is cut off")
    except ValueError as error:
        raise DatasetError(
            f"{record}: cannot be read ({error}); delete the folder and prepare the dataset again"
        ) from error
    return {line[_DIGITS + 1 :]: line[:_DIGITS] for line in lines}
