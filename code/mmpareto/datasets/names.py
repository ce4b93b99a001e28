"""Warnings about the names and numbers of samples: typing errors, names that look alike, classes that are rare."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

RARE = 2  # samples in train up to which a class may be a typing error
_NAMED = 5  # names or groups that a warning shows
_SHOWN = 20  # classes up to which the samples of each are shown
# without width, though letters or marks to Unicode
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u180b\u180c\u180d\u180f") | frozenset(
    map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)


@functools.cache
def _can_be_seen(character: str) -> bool:
    return unicodedata.category(character) != "Cf" and character not in _BLANK


def _visible(name: str) -> str:
    """A name without zero-width and other invisible characters; spaces stay."""
    return "".join(filter(_can_be_seen, name))


def _skeleton(name: str) -> str:
    """What is left of a name without Unicode form, case, invisible characters, spaces, and zeros around a number."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", _visible(name)).casefold()
        name = unicodedata.normalize("NFKC", name)
    return _plain_number("".join(name.lower().split()))


def _plain_number(name: str) -> str:
    """A whole number without leading zeros and decimals, as spreadsheets write it; any other name as it is."""
    number = re.fullmatch(r"0*([0-9]+)(\.0+)?", name)
    return number[1] if number else name


def _difference(names: Sequence[str]) -> str:
    """What names of one skeleton differ in."""

    def alike(simplified: Sequence[str]) -> bool:
        return len(set(simplified)) == 1

    if alike([unicodedata.normalize("NFC", name) for name in names]):
        return "Unicode form (NFC, NFD)"
    if alike([name.casefold() for name in names]):
        return "upper and lower case"
    if alike([_visible(name) for name in names]):
        return "invisible characters"
    if alike(["".join(name.split()) for name in names]):
        return "spaces"
    if alike([_plain_number(name) for name in names]):
        return "zeros around a number"
    return "Unicode form, case, spaces, invisible characters or zeros around a number"


def _listed(texts: Iterable[str], count: int, separator: str = "; ") -> str:
    """The first of `count` texts, and how many more there are."""
    more = [f"and {count - _NAMED} more"] if count > _NAMED else []
    return separator.join([*itertools.islice(texts, _NAMED), *more])


def name_warnings(what: str, names: Collection[str], counts: Mapping[str, int] | None = None) -> list[str]:
    """Warnings for names that look alike, or hold characters that cannot be seen.

    what    the names are, in the plural.
    names   each one once.
    counts  samples of each name, shown with it.
    """

    def shown(name: str) -> str:  # with escapes, so that the difference can be seen
        return ascii(name) + (f" ({counts[name]})" if counts is not None else "")

    skeletons = [_skeleton(name) for name in names]
    warnings = []
    if len(set(skeletons)) < len(skeletons):
        repeated = {skeleton for skeleton, times in Counter(skeletons).items() if times > 1}
        groups: dict[str, list[str]] = {}
        for name, skeleton in zip(names, skeletons, strict=True):
            if skeleton in repeated:
                groups.setdefault(skeleton, []).append(name)
        texts = (
            f"{_listed(map(shown, group), len(group), ', ')} differ in {_difference(group)} alone"
            for group in groups.values()
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
    """Samples of each class in each split, or the range of these numbers where there are many classes."""
    splits = list(counts)
    if len(classes) <= _SHOWN:
        numbers = ["/".join(str(counts[split][index]) for split in splits) for index in range(len(classes))]
        return f"samples in {'/'.join(splits)}: " + ", ".join(
            f"{name} {number}" for name, number in zip(classes, numbers, strict=True)
        )
    ranges = [f"{min(part)} to {max(part)} in {split}" for split, part in counts.items()]
    return f"{len(classes)} classes, samples of each: {', '.join(ranges)}"


def sample_warnings(
    classes: Sequence[str],
    labels: Mapping[str, np.ndarray],
    ids: Mapping[str, Sequence[str]],
    modalities: Sequence[str],
) -> list[str]:
    """All warnings about a dataset.

    labels  {split: class index of each sample}.
    ids     {split: id of each sample}; empty where they are not known.
    """
    together = [identifier for part in ids.values() for identifier in part]
    distinct = dict.fromkeys(together)
    warnings = class_warnings(classes, class_counts(classes, labels))
    if len(distinct) < len(together):
        twice = [identifier for identifier, times in Counter(together).items() if times > 1]
        warnings.append(f"ids that are in two splits: {_listed(map(ascii, twice), len(twice))}; take them out of one")
    return warnings + name_warnings("ids", distinct) + name_warnings("modalities", modalities)
