"""Reading of manifest.csv: clips, splits and classes, and what each column holds; wrong ones are refused by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmpareto.data_folders import UNFINISHED, require_prepared
from mmpareto.datasets.base import SPLITS, DatasetError, Split, say
from mmpareto.datasets.files import (
    IMAGE_SUFFIXES,
    SOUND_SUFFIXES,
    VIDEO_SUFFIXES,
    file_kinds,
    version,
    without_collection,
)
from mmpareto.datasets.items import Items
from mmpareto.datasets.lists import (
    SPLIT_SEED,
    VAL_FRACTION,
    are_plain,
    check_ids,
    check_inside,
    check_modality,
    cut,
    cut_groups,
    read_table,
)
from mmpareto.datasets.text import is_path_of_text
from mmpareto.escape import counted
from mmpareto.special_files import hint

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.csv"
_COLUMNS = ("id", "split", "label")
GROUP = "group"  # a column that a manifest may have: the speaker, subject or scene that a clip is of
_SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    "test": "test",
}

Source = Literal["sound", "image", "frames", "array", "video", "text", "words", "sequence", "tokens"]
# what a person must say of a column, since its files do not show it
DECLARED: dict[str, Source] = {"text": "words", "sequences": "sequence", "tokens": "tokens"}
_SUFFIXES: dict[str, Source] = {
    **dict.fromkeys(SOUND_SUFFIXES, "sound"),
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    ".npy": "array",
    ".pt": "array",
    ".txt": "text",
}


@dataclass(frozen=True)
class Listed:
    """The content of a manifest.

    Attributes:
        clips: by split.
        sources: of each modality.
        classes: in their order.
        missing: ids of clips that lack a file.
    """

    clips: dict[Split, Items]
    sources: dict[str, Source]
    classes: list[str]
    missing: frozenset[str]


def declarations(**named: tuple[str, ...]) -> dict[str, Source]:
    """{modality: source} from the columns that are named for each of DECLARED.

    Raises:
        DatasetError: for a column that is named twice.
    """
    declared: dict[str, Source] = {}
    for option, names in named.items():
        for name in names:
            if name in declared:
                raise DatasetError(f"--{option} names {name}, which is named already; name it once")
            declared[name] = DECLARED[option]
    return declared


def read_manifest(
    root: Path,
    val_fraction: float | None = None,
    seed: int = SPLIT_SEED,
    sounds_of_videos: Sequence[str] = (),
    missing_ok: bool = False,
    declared: Mapping[str, Source] | None = None,
) -> Listed:
    """Read `root/manifest.csv`, again only when the file changes.

    Args:
        val_fraction: of train, which is cut off as validation where the file has none (None: 0.1); `seed` of the cut.
        sounds_of_videos: modalities whose videos are read for their sound tracks.
        missing_ok: clips that lack a file are named in the result instead of refused.
        declared: what some columns hold, see `declarations`.

    Raises:
        DatasetError: columns, splits or paths that are missing, of another form, or lead out of the folder; ids that
            come twice; a column of several kinds; classes without training clips; arguments that would do nothing.
    """
    file = root / MANIFEST
    if not file.exists():
        if (root / UNFINISHED).exists():
            require_prepared(root, "manifest")  # says that the preparation has not ended
        raise DatasetError(f"{root} has no {MANIFEST}; docs/datasets.md shows how to write it")
    declared_columns = tuple((declared or {}).items())
    return _read_manifest(
        root, val_fraction, seed, tuple(sounds_of_videos), missing_ok, declared_columns, version(file)
    )


@functools.lru_cache(maxsize=1)  # a run asks for its three splits
@without_collection()
def _read_manifest(
    root: Path,
    val_fraction: float | None,
    seed: int,
    sounds_of_videos: tuple[str, ...],
    missing_ok: bool,
    declared_columns: tuple[tuple[str, Source], ...],
    file_version: tuple[int, ...],
) -> Listed:
    del file_version  # a part of the cache's key
    declared = dict(declared_columns)
    file = root / MANIFEST
    table = read_table(file, _COLUMNS)
    modalities = [name for name in table.columns if name not in (*_COLUMNS, GROUP)]
    if len(modalities) < 2:
        raise DatasetError(
            f"{file}: expected the columns {','.join(_COLUMNS)} and one for each of two or more modalities, found "
            f"{','.join(table.columns)}"
        )
    for name in modalities:
        check_modality(name, file)
    for name in (*sounds_of_videos, *declared):
        if name not in modalities:
            raise DatasetError(f"{file}: there is no modality {name!r}; they are {', '.join(modalities)}")
    _check_clips(table, file)
    if GROUP in table:
        _refuse_files(table[GROUP], root)
    _cut_validation(table, file, val_fraction, seed)
    if GROUP in table:
        _say_what_is_shared(table[GROUP], table["split"])
    empty = (table[modalities] == "").all(axis=1)
    if empty.any():
        raise DatasetError(f"{file}: {table.loc[empty, 'id'].iloc[0]} has no modality; take its line out")
    for name in modalities:
        paths = table[name].tolist()
        if declared.get(name) != "words" and not are_plain(list(filter(None, paths))):
            table[name] = [
                path and check_inside(path, root, f"{file}: {identifier}, {name}")
                for identifier, path in zip(table["id"], paths, strict=True)
            ]
    sources: dict[str, Source] = {}
    missing: set[str] = set()
    for name in modalities:
        sources[name], absent = _source_of(table, name, file, declared.get(name), name in sounds_of_videos, missing_ok)
        missing.update(absent)
    words = [name for name, source in sources.items() if source == "words"]
    clips = {}
    for split in SPLITS:
        part = table[table["split"] == split]
        paths_of = {name: part[name].tolist() for name in modalities}
        clips[split] = Items(root, part["id"].tolist(), part["label"].tolist(), paths_of, words)
    return Listed(clips, sources, in_order(set(table["label"])), frozenset(missing))


def _cut_validation(table: pd.DataFrame, file: Path, val_fraction: float | None, seed: int) -> None:
    """Give the split val to a part of the training clips, in whole groups, where no clip has it."""
    if (table["split"] == "val").any():
        if val_fraction is not None:
            raise DatasetError(f"{file} has clips of the split val: leave --val_fraction out, or take the split out")
        return
    train = table[table["split"] == "train"]
    part = VAL_FRACTION if val_fraction is None else val_fraction
    lines, labels, what, groups = train.index.tolist(), train["label"].tolist(), f"{file}: validation", ""
    if GROUP in table:
        _, val = cut_groups(lines, labels, train[GROUP].tolist(), part, seed, what)
        groups = f", in whole groups ({train.loc[val, GROUP].replace('', None).nunique()})"
    else:
        _, val = cut(lines, labels, part, seed, what)
    table.loc[val, "split"] = "val"
    say(
        f"manifest: no clip has the split val; {len(val)} of {len(train)} are cut from train, stratified by class"
        f"{groups}"
    )


def _source_of(
    table: pd.DataFrame, name: str, file: Path, declared: Source | None, sound_of_video: bool, missing_ok: bool
) -> tuple[Source, list[str]]:
    """What a modality's column holds, and the ids of clips whose file is not there.

    declared        what the command line says of it; None: nothing.
    sound_of_video  its videos are read for their sound tracks.
    """
    files = table.loc[table[name] != "", ["id", name]].set_axis(["id", "path"], axis="columns")
    if files.empty:
        raise DatasetError(f"{file}: no clip has the modality {name}; take its column out")
    if declared == "words":
        _refuse_paths(files["path"].tolist(), file.parent, name)
        return "words", []
    files["kind"] = file_kinds(file.parent, files["path"].tolist())
    absent = files[files["kind"].isna()]
    if len(absent) and not missing_ok:
        raise DatasetError(f"{file}: {_absent_text(file.parent, name, absent['path'].tolist(), len(table))}")
    source = _source(file, name, files, sound_of_video)
    if declared is not None and source != "array":
        raise DatasetError(f"{file}: {name} holds {source}, and is named as {declared}, which arrays (.npy, .pt) hold")
    return declared or source, absent["id"].tolist()


def _refuse_paths(cells: Sequence[str], root: Path, name: str) -> None:
    """Raise DatasetError where cells that should hold the text itself hold paths of text files."""
    paths = [cell for cell in cells if is_path_of_text(cell, root)]
    if paths:
        raise DatasetError(
            f"{root / MANIFEST}: --text says that {name} holds the text itself, and {len(paths)} of "
            f"{counted(len(cells), 'cell')} are paths of files, such as {paths[0]:.90}; leave {name} out of --text, so "
            "that the files are read, or write their text into the cells"
        )


def _check_clips(table: pd.DataFrame, file: Path) -> None:
    """Check ids, labels and splits of a manifest; give the splits their own names, such as val for dev."""
    if table.empty:
        raise DatasetError(f"{file}: names no clips")
    check_ids(table["id"].tolist(), file)
    unlabelled = table.loc[table["label"] == "", "id"]
    if len(unlabelled):
        raise DatasetError(f"{file}: {unlabelled.iloc[0]} has no label")
    splits = table["split"].str.lower().map(_SPLIT_NAMES)
    for identifier, name in table.loc[splits.isna(), ["id", "split"]].itertuples(index=False):
        raise DatasetError(f"{file}: {identifier} has the split {name!r}; expected train, val or test")
    table["split"] = splits
    for split in ("train", "test"):
        if not (splits == split).any():
            raise DatasetError(f"{file}: no clip has the split {split}; every dataset needs train and test")
    untrained = table.loc[~table["label"].isin(table.loc[splits == "train", "label"]), "label"]
    if len(untrained):
        counts = untrained.value_counts().sort_index().head(5)
        shown = ", ".join(f"{label} ({counted(number, 'clip')})" for label, number in counts.items())
        raise DatasetError(
            f"{file}: no training clips of some classes: {shown}; add some, or look for a typing error in the label"
        )


def _say_what_is_shared(groups: pd.Series, splits: pd.Series) -> None:
    """Warn of groups that have clips in several splits."""
    splits_of_group = splits[groups != ""].groupby(groups, sort=False).unique()
    shared = splits_of_group[splits_of_group.map(len) > 1]
    if len(shared):
        where = " and ".join(split for split in SPLITS if split in shared.iloc[0])
        say(
            f"manifest: {len(shared)} of {counted(len(splits_of_group), 'group')} have clips in several splits, such "
            f"as {shared.index[0]} in {where}; the model may recognise the group instead of the class"
        )


def _refuse_files(groups: pd.Series, root: Path) -> None:
    """Raise DatasetError where the column of groups holds files: earlier versions read it as a modality."""
    name = next((name for name in groups.unique() if Path(name).suffix and (root / name).exists()), None)
    if name is not None:
        raise DatasetError(
            f"{root / MANIFEST}: the column {GROUP} names the group of each clip, such as its speaker, and holds the "
            f"file {name}; call the column otherwise where it is a modality"
        )


def _absent_text(root: Path, modality: str, absent: list[str], count: int) -> str:
    """Name missing files of a modality, and where one is on disk under a name that looks alike."""
    shown = ", ".join(f"{root / path}{hint(root / path)}" for path in absent[:3])
    if any("\\" in path for path in absent):
        shown += "; paths have / between folders, not \\"
    remedy = "add them, or take their clips out of the manifest"
    if not any(Path(path).suffix.lower() in _SUFFIXES for path in absent):
        remedy += f"; if {modality} holds the text itself, name it with --text"
    return (
        f"{len(absent)} of {counted(count, 'file')} of the modality {modality} are not there, such as {shown}; {remedy}"
    )


def _source(file: Path, modality: str, files: pd.DataFrame, sound_of_video: bool) -> Source:
    """The one kind of files that a column holds; `files` has the columns id, path and kind (see `file_kinds`)."""
    suffixes = [
        "" if kind == "a folder" else path[path.rfind(".") :]
        for path, kind in zip(files["path"].tolist(), files["kind"].tolist(), strict=True)
    ]
    examples: dict[Source, str] = {}
    videos = False
    firsts = files[~files.assign(suffix=suffixes).duplicated(["kind", "suffix"])]
    for identifier, path, kind in firsts.itertuples(index=False):
        absent = not isinstance(kind, str)
        if not absent and kind not in ("file", "a folder"):
            raise DatasetError(f"{file}: {identifier}, {modality}: {path} is {kind}; expected a regular file")
        source = "frames" if kind == "a folder" else _SUFFIXES.get(Path(path).suffix.lower())
        if source is None and absent:  # a folder, perhaps
            continue
        if source is None:
            raise DatasetError(
                f"{file}: {identifier}, {modality}: cannot tell what {path:.90} is; expected a folder of frames or a "
                f"file with one of {', '.join(_SUFFIXES)}, or text in a column that --text names"
            )
        if source == "video" and sound_of_video:
            source, videos = "sound", True
        examples.setdefault(source, path)
    if not examples:
        example = file.parent / files["path"].iloc[0]
        raise DatasetError(
            f"{file}: not one file of the modality {modality} is there, such as {example}{hint(example)}"
        )
    if len(examples) > 1:
        shown = ", ".join(f"{source} ({path})" for source, path in examples.items())
        raise DatasetError(
            f"{file}: the modality {modality} holds several kinds of files: {shown}; give each its column"
        )
    (source,) = examples
    if sound_of_video and not videos:
        raise DatasetError(
            f"{file}: --sound names {modality}, which holds no videos but {source}; it is for videos that are read for "
            "their sound"
        )
    return source


def in_order(labels: set[str]) -> list[str]:
    """Class names in the order of their indices: numbers by value, all else by alphabet."""
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
