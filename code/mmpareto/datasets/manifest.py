"""`manifest`: any dataset that one CSV file describes; a new one needs flags and no code.

    manifest.csv      id,split,label and a column for each modality, which holds a path relative to the file

A column may hold sound files, images, folders of frames or arrays (.npy, .pt), all of one kind. Videos are prepared
first (`prepare.py manifest`), which also computes sound features once and for all. Splits are train, val and test;
where no clip has the split val, validation is cut from train.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmpareto.datasets.base import SPLITS, DatasetError, Kind, Modality, Split, say
from mmpareto.datasets.clips import ArrayReader, ClipDataset, FramesReader, ImageReader, Reader, load_array
from mmpareto.datasets.features import FBANK_FRAMES, fbank_frames
from mmpareto.datasets.files import Folders, hint, npy_shape, without_collection
from mmpareto.datasets.items import Items
from mmpareto.datasets.lists import check_all_inside, check_ids, check_modality, cut, numbered_rows
from mmpareto.datasets.media import IMAGE_SUFFIXES, SOUND_SUFFIXES, VIDEO_SUFFIXES, read_sound
from mmpareto.datasets.preparation import DESCRIPTION, UnusableError, read_description
from mmpareto.datasets.prepared import SoundReader, audio_reader, needs_root, read_split

MANIFEST = "manifest.csv"
VAL_FRACTION, SPLIT_SEED = 0.1, 0
_COLUMNS = ("id", "split", "label")
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}

Source = Literal["sound", "image", "frames", "array", "video"]
_SUFFIXES: dict[str, Source] = {
    **dict.fromkeys(SOUND_SUFFIXES, "sound"),
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    ".npy": "array",
    ".pt": "array",
}


@dataclass(frozen=True)
class Listed:
    """What a manifest says.

    clips    by split.
    sources  of each modality.
    classes  in their order.
    missing  ids of clips of which a file is not there.
    """

    clips: dict[Split, Items]
    sources: dict[str, Source]
    classes: list[str]
    missing: frozenset[str]


class Manifest(ClipDataset):
    """A dataset that `manifest.csv` describes, or what `prepare.py manifest` made of one; two or more modalities.

    root          the folder that holds manifest.csv or dataset.json.
    split         "train", "val" or "test".
    image_size    side of the square that images and frames are brought to, in pixels; 224 unless given
    frames        frames per clip, one of each equal part of it; 3 unless given
    audio_frames  length of sound features, 100 a second; unless given that of the longest training clip, at most 1024
    modalities    as the first run resolved them; None: lengths and shapes are those of the training clips

    Raises DatasetError for an option of modalities that the manifest does not have, and for data that cannot be used.
    """

    def __init__(
        self,
        root: Path | None,
        split: Split,
        *,
        image_size: int | None = None,
        frames: int | None = None,
        audio_frames: int | None = None,
        seed: int = 0,
        modalities: Mapping[str, Modality] | None = None,
    ) -> None:
        root = needs_root(root, "manifest")
        if audio_frames is not None and audio_frames < 1:
            raise DatasetError(f"audio_frames must be 1 or more, found {audio_frames}")
        if (root / DESCRIPTION).exists():
            description = read_description(root, "manifest")
            sources, classes = _prepared_sources(root, description), description["classes"]
            items, train = (read_split(root, "manifest", part, {}, classes) for part in (split, "train"))
            sources = {name: "features" if source == "sound" else source for name, source in sources.items()}
            sources = {name: "frames" if source == "video" else source for name, source in sources.items()}
        else:
            listed = read_manifest(root)
            sources, classes = dict(listed.sources), listed.classes
            videos = [name for name, source in sources.items() if source == "video"]
            if videos:
                raise DatasetError(
                    f"{root / MANIFEST}: {', '.join(videos)} holds videos, which are prepared first: python "
                    f"code/prepare.py manifest --source {root} --output PREPARED; then give --data_root PREPARED"
                )
            items, train = listed.clips[split], listed.clips["train"]
        for option, value, kinds in (
            ("image_size", image_size, ("image", "frames")),
            ("frames", frames, ("frames",)),
            ("audio_frames", audio_frames, ("sound", "features")),
        ):
            if value is not None and not set(kinds) & set(sources.values()):
                held = ", ".join(f"{name} ({source})" for name, source in sources.items())
                raise DatasetError(f"{option} is for {' or '.join(kinds)}, and {root} holds {held}; leave it out")
        resolved = modalities or {}
        readers = {
            name: _reader(name, source, train, image_size, frames, audio_frames, resolved.get(name))
            for name, source in sources.items()
        }
        super().__init__("manifest", split, items, readers, classes, seed)
        self.check(root)


def _prepared_sources(root: Path, description: Mapping[str, Any]) -> dict[str, str]:
    """{modality: source} of a prepared dataset.

    Raises DatasetError where dataset.json does not name a source of each modality.
    """
    sources = description["parameters"].get("sources")
    known = {*_SUFFIXES.values(), "frames"}
    if not isinstance(sources, dict) or sources.keys() != description["modalities"].keys():
        sources = {}
    if not sources or not all(isinstance(source, str) and source in known for source in sources.values()):
        raise DatasetError(
            f"{root / DESCRIPTION}: expected one of {', '.join(sorted(known))} as source of each modality; prepare the "
            "dataset again"
        )
    return sources


def _reader(
    name: str,
    source: str,
    train: Items,
    image_size: int | None,
    frames: int | None,
    audio_frames: int | None,
    resolved: Modality | None,
) -> Reader:
    """The reader of a modality whose training clips are `train`; `resolved` is what an earlier run took from them."""
    size = 224 if image_size is None else image_size
    if source == "image":
        return ImageReader(size)
    if source == "frames":
        return FramesReader(3 if frames is None else frames, size)
    if source == "array":
        return ArrayReader(resolved or array_modality(train[0].paths[name]))
    if resolved is not None and resolved.kind == "spectrogram":
        audio_frames = resolved.shape[1]
    length = audio_frames or _longest(tuple(item.paths[name] for item in train))
    return SoundReader("fbank", length) if source == "sound" else audio_reader("fbank", length)


@functools.lru_cache(maxsize=16)  # a run asks for its three splits
def _longest(paths: tuple[Path, ...]) -> int:
    """Feature frames of the longest of some sounds, or of their stored features; at most FBANK_FRAMES."""
    longest = 1
    with ThreadPoolExecutor(4) as pool:
        for frames in pool.map(_audio_frames, paths):
            longest = max(longest, min(frames, FBANK_FRAMES))
            if longest == FBANK_FRAMES:
                pool.shutdown(cancel_futures=True)
                break
    return longest


def _audio_frames(path: Path) -> int:
    """Feature frames of a sound as it is decoded, for headers may only estimate its length; or of stored features.

    0 for a sound that cannot be used: the check of all clips names it.
    """
    if path.suffix == ".npy":
        try:
            shape = npy_shape(path)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot be read as an array: {error}") from error
        return shape[0] if shape else 0
    try:
        sound = read_sound(path)
    except UnusableError:
        return 0
    return fbank_frames(sound.samples.shape[1], sound.rate)


def array_modality(path: Path) -> Modality:
    """What arrays like this one are: a vector [N], a spectrogram [L, M] or [1, L, M], an image [C, H, W], or frames
    [F, C, H, W]. Values stay as they are; bytes are scaled to 0 .. 1.

    Raises DatasetError for other shapes.
    """
    array = load_array(path)
    shape = tuple(array.shape)
    kinds: dict[int, Kind] = {1: "vector", 2: "spectrogram", 3: "image", 4: "frames"}
    if array.dim() not in kinds or not array.numel():
        raise DatasetError(
            f"{path}: an array of shape {list(shape)}; expected [N], [L, M], [channels, H, W] or [F, channels, H, W]"
        )
    if array.dim() == 2:
        return Modality("spectrogram", (1, *shape))
    if array.dim() == 3 and shape[0] == 1 and array.is_floating_point():
        return Modality("spectrogram", shape)
    return Modality(kinds[array.dim()], shape)


def read_manifest(
    root: Path,
    val_fraction: float | None = None,
    seed: int = SPLIT_SEED,
    sounds_of_videos: Sequence[str] = (),
    missing_ok: bool = False,
) -> Listed:
    """Reads `root/manifest.csv`; once for all splits, as long as the file stays as it is.

    val_fraction      of train, which is cut off as validation where the file has none (None: 0.1); `seed` of the cut.
    sounds_of_videos  modalities whose videos are there for their sound tracks.
    missing_ok        files that are not there are left to the caller.

    Raises DatasetError: columns, splits or paths that are missing, of another form, or lead out of the folder; ids that
    come twice; a column of several kinds; classes without training clips; arguments that would do nothing.
    """
    file = root / MANIFEST
    try:
        state = file.stat()
    except OSError as error:
        raise DatasetError(f"{root} has no {MANIFEST}; docs/datasets.md shows how to write it") from error
    version = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return _read(root, val_fraction, seed, tuple(sounds_of_videos), missing_ok, version)


@functools.lru_cache(maxsize=1)  # a run asks for its three splits
@without_collection()
def _read(
    root: Path,
    val_fraction: float | None,
    seed: int,
    sounds_of_videos: tuple[str, ...],
    missing_ok: bool,
    version: tuple[int, ...],
) -> Listed:
    del version  # of the file: another one is read again
    file = root / MANIFEST
    (header, *rows), (_, *lines) = numbered_rows(file)
    modalities = [name for name in header if name not in _COLUMNS]
    if not set(_COLUMNS) <= set(header) or len(modalities) < 2 or len(set(header)) < len(header):
        raise DatasetError(
            f"{file}: expected the columns id,split,label and one for each of two or more modalities, found "
            f"{','.join(header)}"
        )
    if not rows:
        raise DatasetError(f"{file}: names no clips")
    for name in modalities:
        check_modality(name, file)
    unknown = [name for name in sounds_of_videos if name not in modalities]
    if unknown:
        raise DatasetError(f"{file}: there is no modality {unknown[0]!r}; they are {', '.join(modalities)}")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise DatasetError(f"{file}: line {line} has {len(row)} values, the header {len(header)}")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    ids, labels = columns["id"], columns["label"]
    check_ids(ids, file)
    if "" in labels:
        raise DatasetError(f"{file}: {ids[labels.index('')]} has no label")
    for name in set(columns["split"]):
        if name.lower() not in _SPLIT_NAMES:
            identifier = ids[columns["split"].index(name)]
            raise DatasetError(f"{file}: {identifier} has the split {name!r}; expected train, val or test")
    splits = [_SPLIT_NAMES[name.lower()] for name in columns["split"]]
    for split in ("train", "test"):
        if split not in splits:
            raise DatasetError(f"{file}: no clip has the split {split}; every dataset needs train and test")
    indices: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for index, split in enumerate(splits):
        indices[split].append(index)
    untrained = Counter(labels)
    for label in {labels[index] for index in indices["train"]}:
        del untrained[label]
    if untrained:
        shown = ", ".join(f"{label} ({number} clips)" for label, number in sorted(untrained.items())[:5])
        raise DatasetError(
            f"{file}: no training clips of the class(es) {shown}; add some, or look for a typing error in the label"
        )
    if indices["val"] and val_fraction is not None:
        raise DatasetError(f"{file} has clips of the split val: leave --val_fraction out, or take the split out")
    if not indices["val"]:
        train = indices["train"]
        part = VAL_FRACTION if val_fraction is None else val_fraction
        stay, off = cut([labels[index] for index in train], part, seed, f"{file}: validation")
        indices |= {"train": [train[i] for i in stay], "val": [train[i] for i in off]}
        say(f"manifest: no clip has the split val; {len(off)} of {len(train)} are cut from train, stratified by class")
    paths = {}
    for name in modalities:

        def place(index: int, name: str = name) -> str:
            return f"{file}: {ids[index]}, {name}"

        paths[name] = check_all_inside(columns[name], root, place)
    folders = Folders(root)
    sources: dict[str, Source] = {}
    missing: set[str] = set()
    for name in modalities:
        kinds = folders.kinds(paths[name])
        absent = [index for index, kind in enumerate(kinds) if kind is None]
        missing.update(ids[index] for index in absent)
        if absent and not missing_ok:
            raise DatasetError(
                f"{file}: {_absent_text(root, name, [paths[name][index] for index in absent], len(ids))}"
            )
        sources[name] = _source(file, name, ids, paths[name], kinds, name in sounds_of_videos)
    clips = {
        split: Items(root, modalities, ((ids[i], labels[i], *(paths[name][i] for name in modalities)) for i in chosen))
        for split, chosen in indices.items()
    }
    return Listed(clips, sources, in_order(set(labels)), frozenset(missing))


def _absent_text(root: Path, modality: str, absent: list[str], count: int) -> str:
    """Says which files of a modality are not there, and where one is on disk under a name that looks alike."""
    shown = ", ".join(f"{root / path}{hint(root / path)}" for path in absent[:3])
    if any("\\" in path for path in absent):
        shown += "; paths have / between folders, not \\"
    return (
        f"{len(absent)} of {count} files of the modality {modality} are not there, such as {shown}; add them, or take "
        "their clips out of the manifest"
    )


def _source(
    file: Path,
    modality: str,
    ids: Sequence[str],
    paths: Sequence[str],
    kinds: Sequence[str | None],
    sound_of_video: bool,
) -> Source:
    """The one kind of files that a column holds; `kinds` as `Folders.kinds` gives them."""
    examples: dict[Source, str] = {}
    videos = False
    suffixes = ["" if kind == "folder" else path[path.rfind(".") :] for kind, path in zip(kinds, paths, strict=True)]
    together = list(zip(kinds, suffixes, strict=True))
    first = dict(zip(reversed(together), reversed(range(len(paths))), strict=True))  # clip of each kind and suffix
    for index in sorted(first.values()):
        identifier, path, kind = ids[index], paths[index], kinds[index]
        if kind not in (None, "file", "folder"):
            raise DatasetError(f"{file}: {identifier}, {modality}: {path} is {kind}; expected a regular file")
        source = "frames" if kind == "folder" else _SUFFIXES.get(Path(path).suffix.lower())
        if source is None and kind is None:  # a folder, perhaps
            continue
        if source is None:
            raise DatasetError(
                f"{file}: {identifier}, {modality}: cannot tell what {path} is; expected a folder of frames or a "
                f"file with one of {', '.join(_SUFFIXES)}"
            )
        if source == "video" and sound_of_video:
            source, videos = "sound", True
        examples.setdefault(source, path)
    if not examples:
        raise DatasetError(
            f"{file}: not one file of the modality {modality} is there, such as {file.parent / paths[0]}"
            f"{hint(file.parent / paths[0])}"
        )
    if len(examples) > 1:
        shown = ", ".join(f"{source} ({path})" for source, path in examples.items())
        raise DatasetError(
            f"{file}: the modality {modality} holds several kinds of files: {shown}; give each its column"
        )
    if sound_of_video and not videos:
        raise DatasetError(
            f"{file}: --sound names {modality}, which holds no videos but {next(iter(examples))}; it is for videos "
            "that are there for their sound"
        )
    return next(iter(examples))


def in_order(labels: set[str]) -> list[str]:
    """Class names in the order of their indices: numbers by value, all else by alphabet."""
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
