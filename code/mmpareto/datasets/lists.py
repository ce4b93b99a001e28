"""Lists of clips: reading them, refusing what would go wrong later, and cutting splits out of them."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmpareto.datasets.base import DatasetError
from mmpareto.datasets.files import hint, refuse_special_file

_NAMES = {"\t": "a tab", "\0": "a NUL", "\u2028": "a line separator", "\u2029": "a paragraph separator"}

# all but line feed and carriage return, and halves of surrogate pairs
CONTROL = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BAD_ID = re.compile(r"""^[.\s]|\s$|^$|[/\\:"\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]""", re.MULTILINE)
_TAKEN = ("splits", "dataset.json", "readme.md")
_LONGEST_ID = 200  # bytes: suffixes follow, and file systems take 255
_LONGEST_NAME = 255
_MOST_BYTES = 2**30  # of a list: some millions of clips
# absolute, of Windows too, or climbing, or with characters that no name should hold
_BAD_PATH = re.compile(
    r"^[/\\]|^$|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
    re.MULTILINE,
)


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a comma-separated file in UTF-8, see `numbered_rows`."""
    return numbered_rows(path)[0]


def numbered_rows(path: Path) -> tuple[list[list[str]], list[int]]:
    """The rows of a comma-separated file in UTF-8, values without the spaces around them, and the line of each row.

    A byte-order mark and empty rows are left out.

    Raises DatasetError where the file is missing, empty, no regular file, not UTF-8 or not comma-separated, or where a
    value holds a line break, a tab or another control character.
    """
    refuse_special_file(path)
    try:
        if path.stat().st_size > _MOST_BYTES:  # of a sparse file, it may be on the disk as a few bytes
            raise DatasetError(f"{path}: is larger than {_MOST_BYTES >> 30} GiB; expected a list of clips")
        content = path.read_bytes()
        text = content.decode("utf-8-sig").lstrip("\ufeff")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file{hint(path)}") from error
    except (OSError, ValueError) as error:
        if not isinstance(error, UnicodeDecodeError):
            raise DatasetError(f"{path}: cannot be read: {error}") from error
        utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        what = "is UTF-16, not UTF-8" if utf16 else f"byte {error.start} is not UTF-8"
        how = f"iconv -f {'UTF-16' if utf16 else 'LATIN1'} -t UTF-8"
        raise DatasetError(f"{path}: {what}; save the file as UTF-8 ({how} does it)") from error
    printable = text.replace("\n", "").replace("\r", "").isprintable()  # takes a fifth of the search's time
    control = None if printable else CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        raise DatasetError(
            f"{path}: line {line} holds {_NAMES.get(control[0], 'a control character')} (U+{ord(control[0]):04X}); "
            "expected values with commas between them; take the character out"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:  # a quotation mark that is never closed takes in the rest of the file
        raise DatasetError(
            f"{path}: line {len(rows) + 1} is not comma-separated ({error}); look for a lone quotation mark"
        ) from error
    if reader.line_num != len(rows):
        value = next(value for row in rows for value in row if "\n" in value or "\r" in value)
        raise DatasetError(
            f"{path}: the value {_cut_short(value)} holds a line break; expected a line for each row; take it out"
        )
    if " " in text or not printable:
        for row in rows:
            row[:] = map(str.strip, row)
    lines = [line for line, row in enumerate(rows, start=1) if any(row)]
    if not lines:
        raise DatasetError(f"{path}: the file is empty; expected a line for each clip")
    return [rows[line - 1] for line in lines], lines


def check_id(identifier: str, source: Path | str) -> str:
    """`identifier` where it can be a file's name.

    Raises DatasetError where it is empty, hidden or too long, has spaces around it, or holds a separator, a control
    character, a quotation mark, or half of a surrogate pair.
    """
    if _BAD_ID.search(identifier) or "\n" in identifier:
        raise DatasetError(
            f"{source}: the id {_cut_short(identifier)} cannot be the name of a file; expected letters, digits, - and "
            "_, without folders"
        )
    if len(identifier) > _LONGEST_ID // 4 and len(identifier.encode()) > _LONGEST_ID:
        raise DatasetError(
            f"{source}: the id {_cut_short(identifier)} is too long for the name of a file: {len(identifier.encode())} "
            f"bytes, expected {_LONGEST_ID} at most"
        )
    return identifier


def check_ids(identifiers: Sequence[str], source: Path | str) -> None:
    """`check_id` for many ids; DatasetError also where one comes twice."""
    if not _plain(identifiers, ("\n.", "/", "\\", ":", '"', "\n ", " \n"), _LONGEST_ID):
        for identifier in identifiers:
            check_id(identifier, source)
    check_unique(identifiers, source)


def _plain(names: Sequence[str], parts: Sequence[str], longest: int) -> bool:
    """Whether names, each in a line of its own, hold none of some parts and nothing unusual; False: check each of them.

    A few searches of one long text take a tenth of the time of a search for each name.
    """
    together = "\n" + "\n".join(names) + "\n"
    return (
        max(map(len, names), default=0) <= longest // 4
        and together.count("\n") == len(names) + 1
        and "\n\n" not in together
        and together.replace("\n", "").isprintable()
        and not any(part in together for part in parts)
    )


def check_modality(name: str, source: Path | str) -> str:
    """`name` where it can be the folder of a modality's files.

    Raises DatasetError as `check_id` does, and where a prepared dataset keeps other files under this name.
    """
    check_id(name, f"{source}: modality")
    if name.lower() in _TAKEN:
        raise DatasetError(f"{source}: a modality cannot be called {name}: prepared datasets keep other files there")
    return name


def _cut_short(text: str) -> str:
    return repr(text[:80]) + ("..." if len(text) > 80 else "")


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


def check_inside(relative: str, root: Path, source: Path | str) -> str:
    """A path below `root` with / between its parts, in its shortest form.

    Raises DatasetError where it is empty, absolute, climbs out of `root`, holds a control character, or has a part that
    is too long.
    """
    if _BAD_PATH.search(relative) or "\n" in relative:
        raise DatasetError(
            f"{source}: the path {_cut_short(relative)} must be relative to {root} and stay inside it, without control "
            "characters"
        )
    if len(relative) > _LONGEST_NAME // 4 and any(len(part.encode()) > _LONGEST_NAME for part in relative.split("/")):
        raise DatasetError(
            f"{source}: the path {_cut_short(relative)} has a part of more than {_LONGEST_NAME} bytes, longer than "
            "file systems take"
        )
    return os.path.normpath(relative)


def check_all_inside(paths: Sequence[str], root: Path, source: Callable[[int], str]) -> list[str]:
    """`check_inside` for many paths; `source` names the place of one by its index."""
    if _plain(paths, ("..", "//", "./", "/.", "\n/", "/\n", "\\", ":"), _LONGEST_NAME):
        return list(paths)
    return [check_inside(path, root, source(index)) for index, path in enumerate(paths)]


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
        why = (
            f"class {rare[0]} has a single sample (a typing error?)"
            if rare
            else f"{len(labels)} samples of {len(counts)} classes"
        )
        raise DatasetError(f"{what}: cannot be cut off, {why}; every class needs a sample on both sides")
    from sklearn.model_selection import train_test_split  # takes a second to load

    stay, off = train_test_split(np.arange(len(labels)), test_size=number, stratify=list(labels), random_state=seed)
    return sorted(stay.tolist()), sorted(off.tolist())
