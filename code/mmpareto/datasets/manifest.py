"""`manifest`: any dataset that one CSV file describes; a new one needs flags and no code.

    manifest.csv      id,split,label and a column for each modality, which holds a path relative to the file

A column may hold sound files, images, folders of frames or arrays (.npy, .pt), all of one kind. Videos are prepared
first (`prepare.py manifest`), which also computes sound features once and for all. Splits are train, val and test;
where no clip has the split val, validation is cut from train.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mmpareto.datasets.base import SPLITS, DatasetError, Kind, Modality, Split
from mmpareto.datasets.clips import ArrayReader, ClipDataset, FramesReader, ImageReader, Item, Reader, load_array
from mmpareto.datasets.features import FBANK_FRAMES, fbank_frames
from mmpareto.datasets.files import refuse_special_file
from mmpareto.datasets.lists import check_id, check_unique, cut, inside, read_rows
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
    """What a manifest says: its clips by split, the source of each modality, and the classes in their order."""

    clips: dict[Split, list[Item]]
    sources: dict[str, Source]
    classes: list[str]


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
            sources, classes = description["parameters"]["sources"], description["classes"]
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
            name: _reader(
                source, [item.paths[name] for item in train], image_size, frames, audio_frames, resolved.get(name)
            )
            for name, source in sources.items()
        }
        super().__init__("manifest", split, items, readers, classes, seed)
        self.check(root)


def _reader(
    source: str,
    train: Sequence[Path],
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
        return ArrayReader(resolved or array_modality(train[0]))
    if resolved is not None and resolved.kind == "spectrogram":
        audio_frames = resolved.shape[1]
    length = audio_frames or _longest(tuple(train))
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
        refuse_special_file(path)
        try:
            return len(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise DatasetError(f"{path}: cannot be read as an array: {error}") from error
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
    """Reads `root/manifest.csv`.

    val_fraction      of train, which is cut off as validation where the file has none (None: 0.1); `seed` of the cut.
    sounds_of_videos  modalities whose videos are there for their sound tracks.
    missing_ok        files that are not there are left to the caller.

    Raises DatasetError: columns, splits or paths that are missing, of another form, or lead out of the folder; ids that
    come twice; a column of several kinds; classes without training clips; arguments that would do nothing.
    """
    file = root / MANIFEST
    if not file.exists():
        raise DatasetError(f"{root} has no {MANIFEST}; docs/datasets.md shows how to write it")
    header, *rows = read_rows(file)
    modalities = [name for name in header if name not in _COLUMNS]
    if not set(_COLUMNS) <= set(header) or len(modalities) < 2 or len(set(header)) < len(header):
        raise DatasetError(
            f"{file}: expected the columns id,split,label and one for each of two or more modalities, found "
            f"{','.join(header)}"
        )
    if not rows:
        raise DatasetError(f"{file}: names no clips")
    for name in modalities:
        check_id(name, f"{file}: modality")
    wrong = [name for name in sounds_of_videos if name not in modalities]
    if wrong:
        raise DatasetError(f"{file}: there is no modality {wrong[0]!r}; they are {', '.join(modalities)}")
    clips: dict[Split, list[Item]] = {split: [] for split in SPLITS}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DatasetError(f"{file}: row {number} has {len(row)} values, the header {len(header)}")
        values = dict(zip(header, row, strict=True))
        check_id(values["id"], f"{file}: row {number}")
        split = _SPLIT_NAMES.get(values["split"].lower())
        if split is None:
            raise DatasetError(f"{file}: {values['id']} has the split {values['split']!r}; expected train, val or test")
        if not values["label"]:
            raise DatasetError(f"{file}: {values['id']} has no label")
        paths = {name: inside(root, values[name], f"{file}: {values['id']}, {name}") for name in modalities}
        clips[split].append(Item(values["id"], values["label"], paths))
    every = [item for split in SPLITS for item in clips[split]]
    check_unique([item.id for item in every], file)
    for split in ("train", "test"):
        if not clips[split]:  # type: ignore[index]  # a Literal in a tuple is a str to mypy
            raise DatasetError(f"{file}: no clip has the split {split}; every dataset needs train and test")
    untrained = sorted({item.label for item in every} - {item.label for item in clips["train"]})
    if untrained:
        raise DatasetError(f"{file}: no training clips of the class(es) {', '.join(untrained[:5])}")
    if clips["val"] and val_fraction is not None:
        raise DatasetError(f"{file} has clips of the split val: leave --val_fraction out, or take the split out")
    if not clips["val"]:
        train = clips["train"]
        part = VAL_FRACTION if val_fraction is None else val_fraction
        stay, off = cut([item.label for item in train], part, seed, f"{file}: validation")
        clips |= {"train": [train[i] for i in stay], "val": [train[i] for i in off]}
        _say(f"manifest: no clip has the split val; {len(off)} of {len(train)} are cut from train, stratified by class")
    sources = {name: _source(file, name, every, name in sounds_of_videos, missing_ok) for name in modalities}
    return Listed(clips, sources, in_order({item.label for item in every}))


@functools.lru_cache(maxsize=16)  # once, not for each of three splits
def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _source(file: Path, modality: str, items: Sequence[Item], sound_of_video: bool, missing_ok: bool) -> Source:
    """The one kind of files that a column holds."""
    missing = [item for item in items if not item.paths[modality].exists()]
    if missing and not missing_ok:
        shown = ", ".join(str(item.paths[modality]) for item in missing[:3])
        raise DatasetError(
            f"{file}: {len(missing)} of {len(items)} files of the modality {modality} are not there, such as {shown}; "
            "add them, or take their clips out of the manifest"
        )
    found: dict[Source, Item] = {}
    videos = 0
    for item in items:
        path = item.paths[modality]
        source = "frames" if path.is_dir() else _SUFFIXES.get(path.suffix.lower())
        if source is None and not path.exists():  # a folder, perhaps
            continue
        if source is None:
            raise DatasetError(
                f"{file}: {item.id}, {modality}: cannot tell what {path.name} is; expected a folder of frames or a "
                f"file with one of {', '.join(_SUFFIXES)}"
            )
        if source == "video" and sound_of_video:
            source, videos = "sound", videos + 1
        found.setdefault(source, item)
    if not found:
        raise DatasetError(f"{file}: not one file of the modality {modality} is there, such as {path}")
    if len(found) > 1:
        shown = ", ".join(f"{source} ({item.paths[modality].name})" for source, item in found.items())
        raise DatasetError(
            f"{file}: the modality {modality} holds several kinds of files: {shown}; give each its column"
        )
    if sound_of_video and not videos:
        raise DatasetError(
            f"{file}: --sound names {modality}, which holds no videos but {next(iter(found))}; it is for videos that "
            "are there for their sound"
        )
    return next(iter(found))


def in_order(labels: set[str]) -> list[str]:
    """Class names in the order of their indices: numbers by value, all else by alphabet."""
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
