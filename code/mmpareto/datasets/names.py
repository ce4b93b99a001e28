"""Warnings about the names and numbers of samples: typing errors, names that look alike, classes that are rare."""

import difflib
import itertools
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

RARE = 2  # samples in train up to which a class may be a typing error
_LISTED = 5  # names or groups that a warning lists
_TELLING = 10  # samples that lack a modality and are of one class: hardly by chance
_SHOWN = 20  # classes up to which the samples of each are shown
# characters without width that are letters or marks to Unicode
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


def _visible(name: str) -> str:
    """A name without zero-width and other invisible characters; spaces stay."""
    return "".join(character for character in _BLANK.sub("", name) if unicodedata.category(character) != "Cf")


def _without_spaces(name: str) -> str:
    return "".join(name.split())


def _plain_number(name: str) -> str:
    """A whole number without leading zeros and decimals, as spreadsheets write it; any other name as it is."""
    number = re.fullmatch(r"0*([0-9]+)(\.0+)?", name)
    return number[1] if number else name


def _skeleton(name: str) -> str:
    """A name without Unicode form, case, invisible characters, spaces, and zeros around a number."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", _visible(name)).casefold()
        name = unicodedata.normalize("NFKC", name)
    return _plain_number(_without_spaces(name.lower()))


_SIMPLIFIED: dict[str, Callable[[str], str]] = {
    "Unicode form (NFC, NFD)": lambda name: unicodedata.normalize("NFC", name),
    "upper and lower case": str.casefold,
    "invisible characters": _visible,
    "spaces": _without_spaces,
    "zeros around a number": _plain_number,
}


def _difference(names: Sequence[str]) -> str:
    """The difference of names with the same skeleton."""
    for difference, simplified in _SIMPLIFIED.items():
        if len(set(map(simplified, names))) == 1:
            return difference
    return "Unicode form, case, spaces, invisible characters or zeros around a number"


def _listed(texts: Iterable[str], count: int, separator: str = "; ") -> str:
    """The first of `count` texts, and the number of the others."""
    others = [f"and {count - _LISTED} more"] if count > _LISTED else []
    return separator.join([*itertools.islice(texts, _LISTED), *others])


def name_warnings(what: str, names: Collection[str], counts: Mapping[str, int] | None = None) -> list[str]:
    """Warnings for names that look alike, or hold characters that cannot be seen.

    what    the names are, in the plural.
    names   without repetitions.
    counts  samples of each name, shown with it.
    """

    def shown(name: str) -> str:  # with escapes, so that the difference can be seen
        return ascii(name) + (f" ({counts[name]})" if counts is not None else "")

    by_skeleton: dict[str, list[str]] = {}
    for name in names:
        by_skeleton.setdefault(_skeleton(name), []).append(name)
    groups = [group for group in by_skeleton.values() if len(group) > 1]
    warnings = []
    if groups:
        texts = (
            f"{_listed(map(shown, group), len(group), ', ')} differ in {_difference(group)} alone" for group in groups
        )
        warnings.append(
            f"{what} that look alike: {_listed(texts, len(groups))}; give them one spelling, or other names"
        )
    hidden = [name for name in names if not name.isascii() and _visible(name) != name]
    if hidden:
        warnings.append(f"{what} with invisible characters: {_listed(map(shown, hidden), len(hidden))}; remove them")
    return warnings


def class_counts(classes: Sequence[str], labels: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """{split: samples of each class} from the class indices of each split."""
    return {split: np.bincount(indices, minlength=len(classes)).tolist() for split, indices in labels.items()}


def class_warnings(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Warnings for classes that are rare in train or missing in a split, and for names that look alike.

    counts  {split: samples of each class}.
    """

    def shown(index: int) -> str:
        numbers = ", ".join(f"{part[index]} {split}" for split, part in counts.items())
        return f"{classes[index]!a} ({numbers})"

    def suspected(index: int) -> str:
        others = [name for name in classes if name != classes[index]]
        similar = difflib.get_close_matches(classes[index], others, n=1, cutoff=0.75)
        return shown(index) + (f", similar to {shown(classes.index(similar[0]))}" if similar else "")

    warnings = []
    rare = [index for index, number in enumerate(counts["train"]) if 0 < number <= RARE]
    if rare:
        warnings.append(
            f"{len(rare)} of {len(classes)} classes have one or two samples in train: "
            f"{_listed(map(suspected, rare), len(rare))}; look for typing errors in the labels"
        )
    for split, numbers in counts.items():
        absent = [index for index, number in enumerate(numbers) if not number]
        if absent:
            warnings.append(
                f"{len(absent)} of {len(classes)} classes have no samples in {split}: "
                f"{_listed(map(shown, absent), len(absent))}; add some, or take the classes out"
            )
    total = {name: sum(part[index] for part in counts.values()) for index, name in enumerate(classes)}
    return warnings + name_warnings("classes", classes, total)


def class_text(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """Samples of each class in each split; of many classes the least, the median and the greatest number."""
    splits = list(counts)
    if len(classes) <= _SHOWN:
        numbers = ["/".join(str(counts[split][index]) for split in splits) for index in range(len(classes))]
        return f"samples in {'/'.join(splits)}: " + ", ".join(
            f"{name} {number}" for name, number in zip(classes, numbers, strict=True)
        )
    ranges = [f"{split} {min(part)}/{statistics.median(part):g}/{max(part)}" for split, part in counts.items()]
    return f"{len(classes)} classes, least/median/most samples of one: {', '.join(ranges)}"


def _absence_warnings(classes: Sequence[str], labels: np.ndarray, absent: Mapping[str, np.ndarray]) -> list[str]:
    """Warnings for modalities that training samples of one class alone lack: many of them, or all of the class."""
    counts = np.bincount(labels, minlength=len(classes))
    warnings = []
    for name, rows in absent.items():
        lacking = np.bincount(labels[rows], minlength=len(classes))
        (indices,) = np.nonzero(lacking)
        index = int(indices[0]) if len(indices) else 0
        if len(indices) == 1 < np.count_nonzero(counts) and lacking[index] >= min(_TELLING, counts[index]):
            warnings.append(
                f"training samples without {name} are all of the class {classes[index]!a} ({lacking[index]} of its "
                f"{counts[index]}): its absence gives the class away; add it, or drop it from samples of all classes "
                f"(--missing {name}=0.3)"
            )
    return warnings


def _rate_warnings(modalities: Sequence[str], readers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Warnings for sounds of several sample rates, of the splits whose sounds were looked at."""
    warnings = []
    for name in modalities:
        numbers: dict[int, list[str]] = {}
        for split, part in readers.items():
            for rate, number in part.get(name, {}).get("rates", {}).items():
                numbers.setdefault(int(rate), []).append(f"{number} {split}")
        if len(numbers) > 1:
            shown = (f"{rate} Hz ({', '.join(numbers[rate])})" for rate in sorted(numbers))
            warnings.append(
                f"sounds of {name} have several sample rates: {_listed(shown, len(numbers), ', ')}; their features "
                "differ, since the mel bins reach half the rate: resample the sounds to one rate"
            )
    return warnings


def sample_warnings(
    classes: Sequence[str],
    labels: Mapping[str, np.ndarray],
    ids: Mapping[str, Sequence[str]],
    modalities: Sequence[str],
    files: Mapping[str, Collection[str]] | None = None,
    absent: Mapping[str, np.ndarray] | None = None,
    readers: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> list[str]:
    """All warnings about a dataset.

    labels  {split: class index of each sample}.
    ids     {split: id of each sample}; empty where they are not known.
    files   {split: paths of its samples' files, each once}, where they are known.
    absent  {modality: bool [N], True where a training sample lacks it}.
    readers {split: how its files are read}, see `MultimodalDataset.saved_readers`.
    """
    times = Counter(identifier for part in ids.values() for identifier in part)
    repeated = [identifier for identifier, number in times.items() if number > 1]
    warnings = class_warnings(classes, class_counts(classes, labels))
    if repeated:
        warnings.append(
            f"ids that are in two splits: {_listed(map(ascii, repeated), len(repeated))}; take them out of one"
        )
    used = Counter(itertools.chain(*(files or {}).values()))
    shared = sorted(path for path, number in used.items() if number > 1)
    if shared:
        warnings.append(
            f"files that are in two splits: {_listed(map(ascii, shared), len(shared))}; where they are the same "
            "samples under other ids, take them out of one"
        )
    warnings += _absence_warnings(classes, labels["train"], absent or {}) + _rate_warnings(modalities, readers or {})
    return warnings + name_warnings("ids", times) + name_warnings("modalities", modalities)
