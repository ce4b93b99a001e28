"""Lists of clips: reading them, refusing what would go wrong later, and cutting splits out of them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from mmpareto.datasets.base import DatasetError


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a comma-separated file in UTF-8 (a byte-order mark is ignored), without empty ones.

    Raises DatasetError where the file is missing, empty, not UTF-8 or not comma-separated.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 (iconv -t UTF-8 does it)"
        ) from error
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(map(str.strip, row))]
    except csv.Error as error:  # a quotation mark that is never closed takes in the rest of the file
        raise DatasetError(f"{path}: is no comma-separated file ({error}); look for a lone quotation mark") from error
    if not rows:
        raise DatasetError(f"{path}: the file is empty; expected a line for each clip")
    return rows


def check_id(identifier: str, source: Path | str) -> str:
    """`identifier` where it can be a file's name; else DatasetError: empty, absolute, climbing, with a separator."""
    if not identifier or identifier.startswith(".") or any(c in identifier for c in '/\\:\0\n\r\t"'):
        raise DatasetError(
            f"{source}: the id {identifier!r} cannot be the name of a file; expected letters, digits, - and _, "
            "without folders"
        )
    return identifier


def check_unique(identifiers: Sequence[str], source: Path | str) -> None:
    """Raises DatasetError, naming some, where an identifier comes more than once."""
    twice = [identifier for identifier, times in Counter(identifiers).items() if times > 1]
    if twice:
        shown = ", ".join(twice[:5]) + (", ..." if len(twice) > 5 else "")
        raise DatasetError(
            f"{source}: {len(twice)} ids come more than once: {shown}; every clip needs an id of its own"
        )


def check_classes(labels: Sequence[str], classes: Sequence[str], source: Path | str) -> None:
    """Raises DatasetError, naming them, where labels are not among the classes."""
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise DatasetError(f"{source}: unknown classes {', '.join(unknown[:5])}; known: {', '.join(classes)}")


def inside(root: Path, relative: str, source: Path | str) -> Path:
    """`root / relative`; DatasetError where `relative` is empty, absolute or climbs out of `root`."""
    pure = PurePosixPath(relative)
    if not relative or pure.is_absolute() or PureWindowsPath(relative).is_absolute() or ".." in pure.parts:
        raise DatasetError(f"{source}: the path {relative!r} must be relative to {root} and stay inside it")
    return root / relative


def cut(labels: Sequence[str], part: float, seed: int, what: str) -> tuple[list[int], list[int]]:
    """Cuts `part` (0 .. 1) of the samples off, one of each class at least, stratified by class, drawn from `seed`.

    what  names the cut in messages.
    Returns the indices that stay and those cut off, both in their order.

    Raises DatasetError where a class has too few samples for both sides.
    """
    counts = Counter(labels)
    rare = [label for label, count in counts.items() if count < 2]
    number = max(round(part * len(labels)), len(counts))
    if rare or len(labels) - number < len(counts):
        why = f"class {rare[0]} has a single sample" if rare else f"{len(labels)} samples of {len(counts)} classes"
        raise DatasetError(f"{what}: cannot be cut off, {why}; every class needs a sample on both sides")
    from sklearn.model_selection import train_test_split  # takes a second to load

    stay, off = train_test_split(np.arange(len(labels)), test_size=number, stratify=list(labels), random_state=seed)
    return sorted(stay.tolist()), sorted(off.tolist())
