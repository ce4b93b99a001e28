"""Lists of clips: read them, refuse what would fail later, and cut splits out of them."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmpareto.datasets.base import DatasetError
from mmpareto.datasets.files import refuse_special_file
from mmpareto.escape import counted
from mmpareto.special_files import hint

if TYPE_CHECKING:
    import pandas as pd

Sample = TypeVar("Sample")

VAL_FRACTION, SPLIT_SEED = 0.1, 0  # of train, where validation is cut from it: the default

_MOST_BYTES = 2**30  # of a list: some millions of clips
_CONTROL_NAMES = {"\t": "a tab", "\0": "a NUL", "\u2028": "a line separator", "\u2029": "a paragraph separator"}
# control characters, line and paragraph separators, halves of surrogate pairs
_CONTROLS_BUT_LINE_ENDS = r"\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_CONTROLS = rf"\r\n{_CONTROLS_BUT_LINE_ENDS}"
CONTROL = re.compile(f"[{_CONTROLS}]")
_SPACE = re.compile(r"[^\S\r\n]")
_CONTROL_BUT_LINE_ENDS = re.compile(f"[{_CONTROLS_BUT_LINE_ENDS}]")
_ID = re.compile(rf'(?![.\s])[^/\\:"{_CONTROLS}]+(?<!\s)')
_LONGEST_ID = 200  # bytes: suffixes follow, and file systems take 255
_LONGEST_NAME = 255
_SINGLES = 40  # groups that samples without one are put into for a cut
_RESERVED = ("splits", "dataset.json", "readme.md")
# folders and a name with / between them, none of them . or ..
_PLAIN_PATH = re.compile(rf"(?:(?!\.\.?(?:/|\Z))[^/\\:{_CONTROLS}]+(?:/(?!\Z)|\Z))+")
# absolute paths, also of Windows, and paths that climb
_OUTSIDE = re.compile(r"[/\\]|\Z|[A-Za-z]:[/\\]|(?:.*[/\\])?\.\.(?:[/\\]|\Z)", re.DOTALL)


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a comma-separated file in UTF-8 without a header; see `_rows`."""
    return [row for _, row in _rows(path)]


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of a comma-separated file in UTF-8 by the names in its header, all as text; the index is the line.

    Raises DatasetError where the header lacks one of `columns` or repeats a name, where a row is shorter or longer than
    the header, and as `_rows`.
    """
    import pandas as pd  # takes a second to load

    rows = _rows(path)
    _, header = next(rows)
    lacking = ", ".join(name for name in columns if name not in header)
    if lacking:
        raise DatasetError(
            f"{path}: the first line must name {lacking}; found {','.join(header)}{_remedy(columns, header)}"
        )
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(f"{path}: the first line names the column {repeated!r} twice; found {','.join(header)}")
    lines: list[int] = []
    values: list[str] = []  # flat: the garbage collector would walk through a list of rows again and again
    for line, row in rows:
        if len(row) != len(header):
            raise DatasetError(
                f"{path}: line {line} has {counted(len(row), 'value')}, the header {len(header)}; expected "
                f"{','.join(header)}, found {','.join(row)!r}"
            )
        lines.append(line)
        values.extend(row)
    return pd.DataFrame(np.array(values, object).reshape(-1, len(header)), lines, header)


def _remedy(columns: Sequence[str], header: Sequence[str]) -> str:
    """The end of a sentence where a header has the right names, with other separators or in another letter case."""
    separator = next((sign for sign in ";|" if len(header) == 1 and sign in header[0]), None)
    if separator is not None:
        return f"; its values are separated by {separator!r}, expected commas"
    alike = {name: other for name in columns for other in header if name != other and name == other.lower()}
    return "".join(f"; write {name} in the place of {other}" for name, other in alike.items() if name not in header)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and values, without the spaces around them, of each row of a comma-separated file that is not empty.

    pandas and NumPy read a damaged file as something else; the csv module in its strict mode says where it is damaged.

    Raises DatasetError where the file is missing, empty, no regular file, not UTF-8 or not comma-separated, or where a
    value holds a line break, a tab or another control character.
    """
    text = _text_of(path)
    control = _CONTROL_BUT_LINE_ENDS.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        name = _CONTROL_NAMES.get(control[0], "a control character")
        raise DatasetError(
            f"{path}: line {line} holds {name} (U+{ord(control[0]):04X}); expected values with commas between them; "
            "remove the character"
        )
    if not text.strip(" \r\n,"):
        raise DatasetError(f"{path}: the file is empty; expected one line per clip")
    stripped = _SPACE.search(text) is None  # most files: nothing to strip from their values
    line = 0
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        for line, row in enumerate(reader, start=1):
            if reader.line_num != line:
                value = next(value for value in row if "\n" in value or "\r" in value)
                raise DatasetError(
                    f"{path}: the value {value!r:.90} holds a line break; expected one line per row; remove the line "
                    "break"
                )
            if not stripped:
                row = list(map(str.strip, row))
            if any(row):
                yield line, row
    except csv.Error as error:  # a quotation mark that is never closed takes in the rest of the file
        raise DatasetError(
            f"{path}: line {line + 1} is not comma-separated ({error}); look for a lone quotation mark"
        ) from error


def _text_of(path: Path) -> str:
    """The text of a file in UTF-8 without byte-order marks."""
    refuse_special_file(path)
    try:
        if path.stat().st_size > _MOST_BYTES:  # of a sparse file, it may be on the disk as a few bytes
            raise DatasetError(f"{path}: is larger than {_MOST_BYTES >> 30} GiB; expected a list of clips")
        content = path.read_bytes()
        return content.decode("utf-8-sig").lstrip("\ufeff")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: there is no such file{hint(path)}") from error
    except UnicodeDecodeError as error:
        utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        problem = "is UTF-16, not UTF-8" if utf16 else f"byte {error.start} is not UTF-8"
        command = f"iconv -f {'UTF-16' if utf16 else 'LATIN1'} -t UTF-8"
        raise DatasetError(f"{path}: {problem}; save the file as UTF-8 ({command} does it)") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def check_ids(identifiers: Iterable[str], source: Path | str) -> None:
    """Raise DatasetError where an id cannot be the name of a file, or comes twice.

    Such a name is not empty, hidden or too long; it has no spaces around it, and no separator, control character,
    quotation mark or half of a surrogate pair in it.
    """
    for identifier in identifiers:
        if not _ID.fullmatch(identifier):
            raise DatasetError(
                f"{source}: the id {identifier!r:.90} cannot be the name of a file; take out any / \\ : or quotation "
                "mark, a dot or space at its beginning, a space at its end, and control characters"
            )
        if len(identifier) > _LONGEST_ID // 4 and len(identifier.encode()) > _LONGEST_ID:
            raise DatasetError(
                f"{source}: the id {identifier!r:.90} is too long for the name of a file: {len(identifier.encode())} "
                f"bytes, expected {_LONGEST_ID} at most"
            )
    check_unique(identifiers, source)


def check_unique(identifiers: Iterable[str], source: Path | str) -> None:
    """Raise DatasetError, naming some, where an id comes more than once."""
    repeated = [identifier for identifier, times in Counter(identifiers).items() if times > 1]
    if repeated:
        shown = ", ".join(repeated[:5]) + (", ..." if len(repeated) > 5 else "")
        raise DatasetError(
            f"{source}: found {counted(len(repeated), 'id')} more than once: {shown}; give every clip its own id"
        )


def check_modality(name: str, source: Path | str) -> None:
    """Raise DatasetError where `name` cannot be the folder of a modality's files."""
    if not name.strip():
        raise DatasetError(f"{source}: a column has no name; name it, or take out the comma at the end of each line")
    check_ids([name], f"{source}: modality")
    if name.lower() in _RESERVED:
        raise DatasetError(f"{source}: a modality cannot be called {name}: prepared datasets keep other files there")


def check_classes(labels: Iterable[str], classes: Sequence[str], source: Path | str) -> None:
    """Raise DatasetError, naming them, where labels are not among the classes."""
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise DatasetError(f"{source}: unknown classes {', '.join(unknown[:5])}; known: {', '.join(classes)}")


def are_plain(paths: Sequence[str]) -> bool:
    """Whether all paths are such that `check_inside` gives them back as they are; much faster than asking it."""
    return all(map(_PLAIN_PATH.fullmatch, paths)) and max(map(len, paths), default=0) <= _LONGEST_NAME // 4


def check_inside(relative: str, root: Path, source: Path | str) -> str:
    """A path below `root` with / between its parts, in its shortest form.

    Raises DatasetError where it is empty, absolute, climbs out of `root`, holds a control character, or has a part that
    is too long.
    """
    plain = _PLAIN_PATH.fullmatch(relative) is not None
    if not plain and (_OUTSIDE.match(relative) or CONTROL.search(relative)):
        raise DatasetError(
            f"{source}: the path {relative!r:.90} must be relative to {root} and stay inside it, without control "
            "characters"
        )
    if len(relative) > _LONGEST_NAME // 4 and any(len(part.encode()) > _LONGEST_NAME for part in relative.split("/")):
        raise DatasetError(
            f"{source}: the path {relative!r:.90} has a part of more than {_LONGEST_NAME} bytes, longer than file "
            "systems take"
        )
    return relative if plain else os.path.normpath(relative)


def cut(
    samples: Sequence[Sample], labels: Sequence[str], part: float, seed: int, what: str
) -> tuple[list[Sample], list[Sample]]:
    """Cut `part` (0 .. 1) of the samples off, or as many as there are classes where that is more, drawn from `seed`.

    Each class gives about the same part of its samples: one with few of them can be on one side only.

    labels  of the samples.
    what    names the cut in messages.
    Returns the samples that stay and those cut off, both in their order.

    Raises DatasetError where a class has one sample only, or where fewer samples would stay than there are classes.
    """
    counts = Counter(labels)
    rare = [label for label, count in counts.items() if count < 2]
    number = max(round(part * len(labels)), len(counts))
    if rare or len(labels) - number < len(counts):
        reason = (
            f"class {rare[0]} has a single sample (a typing error?)"
            if rare
            else f"{counted(len(labels), 'sample')} of {counted(len(counts), 'class')}"
        )
        raise DatasetError(f"{what}: cannot be cut off, {reason}; every class needs a sample on both sides")
    from sklearn.model_selection import train_test_split  # takes a second to load

    sides = train_test_split(range(len(labels)), test_size=number, stratify=list(labels), random_state=seed)
    stay, off = ([samples[index] for index in sorted(side)] for side in sides)
    return stay, off


def cut_groups(
    samples: Sequence[Sample], labels: Sequence[str], groups: Sequence[str], part: float, seed: int, what: str
) -> tuple[list[Sample], list[Sample]]:
    """As `cut`, with all samples of a group (a speaker, a scene) on the same side.

    Of the folds that scikit-learn's StratifiedGroupKFold makes, the one whose size is nearest to `part` is cut off.

    groups  of the samples; "" for a sample that is a group of its own.

    Raises DatasetError where no fold leaves every class on both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to load

    counts = Counter(labels)
    singles: Counter[str] = Counter()
    whole = []
    for label, group in zip(labels, groups, strict=True):
        # such samples may be taken together in any way, and a fold takes as long as it has groups
        whole.append(group or f"\0{singles[label] % _SINGLES}")  # the name of no group
        singles[label] += not group
    smaller = max(min(part, 1 - part), 1 / len(labels))
    number = min(max(2, round(1 / smaller)), max(counts.values()), len(set(whole)))
    sides: list[tuple[Sequence[int], Sequence[int]]] = []
    if number > 1:
        folds = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a class has fewer samples than there are folds
            sides = [side for pair in folds.split(list(labels), list(labels), whole) for side in (pair, pair[::-1])]
    complete = [pair for pair in sides if all({labels[index] for index in side} == counts.keys() for side in pair)]
    if not complete:
        raise DatasetError(
            f"{what}: no choice of whole groups ({counted(len(set(whole)), 'group')}) leaves every class in train and "
            "in what is cut off; give clips of some groups the split val"
        )
    stay, off = min(complete, key=lambda pair: abs(len(pair[1]) / len(labels) - part))
    return [samples[index] for index in stay], [samples[index] for index in off]
