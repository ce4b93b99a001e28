"""`cremad`: CREMA-D (Cao et al., 2014), 7,442 clips of 91 actors speaking 12 sentences in 6 emotions.

Reads what `prepare.py cremad` writes, or a folder in one of the layouts that circulate:

    audio/<clip>.pt (or .npy)    or    AudioWAV/<clip>.wav
    visual/<clip>/frame_00001.jpg    or    Image-01-FPS/<clip>/00000.jpg
    train.csv, test.csv and, where there is one, val.csv: clip,label with or without a header
"""

import re
from collections.abc import Mapping
from pathlib import Path

from mmpareto.data_folders import DESCRIPTION, UNFINISHED, require_root
from mmpareto.datasets.arrays import load_array
from mmpareto.datasets.base import DATASETS, DatasetError, Modality, Split, say
from mmpareto.datasets.clips import ClipDataset
from mmpareto.datasets.features import (
    FBANK_FRAMES,
    MEL_BINS,
    AudioFeatures,
    FeatureReader,
    SoundReader,
    audio_visual_readers,
)
from mmpareto.datasets.files import is_hidden
from mmpareto.datasets.items import Item, Items
from mmpareto.datasets.lists import SPLIT_SEED, VAL_FRACTION, check_classes, check_unique, cut, read_rows
from mmpareto.datasets.prepared import read_split
from mmpareto.datasets.readers import ArrayReader, Reader
from mmpareto.escape import counted

CLASSES = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
CLIP_NAME = re.compile(r"(\d{4})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_([A-Z]{2}|X)")
VISUAL = ("visual", "Image-01-FPS")  # folders of frames, in layouts that circulate
# The least value of features that are normalised already: log of float32's epsilon, normalised, is -1.11
_NORMALISED = (-1.2, 6.0)


@DATASETS.register("cremad")
class CREMAD(ClipDataset):
    """CREMA-D, modalities `audio` ([1, 1024, 128] or [1, 257, 188]) and `visual` [F, 3, size, size], 6 emotions.

    Args:
        root: a prepared dataset, or a folder in a layout that circulates.
        split: "train", "val" or "test".
        audio_features: fbank, MMPareto's, or stft, OGM-GE's
        frames: frames per clip, one of each equal part of it; MMPareto 2, OGM-GE 1
        image_size: side of the square that frames are brought to, in pixels
        modalities: as the first run resolved them; None: a file tells whether features are normalised already
    """

    must_hold = (DESCRIPTION, *VISUAL)

    def __init__(
        self,
        root: Path | None,
        split: Split,
        *,
        audio_features: AudioFeatures = "fbank",
        frames: int = 2,
        image_size: int = 224,
        seed: int = 0,
        modalities: Mapping[str, Modality] | None = None,
    ) -> None:
        root = require_root(root, "cremad")
        readers = audio_visual_readers(audio_features, frames, image_size)
        visual = next((root / name for name in VISUAL if (root / name).is_dir()), None)
        prepared = any((root / name).exists() for name in (DESCRIPTION, UNFINISHED))
        if prepared or visual is None:
            items: Items | list[Item] = read_split(root, "cremad", split, {"audio_features": audio_features}, CLASSES)
        else:
            items, readers["audio"] = _circulating(root, visual, split, audio_features, (modalities or {}).get("audio"))
        super().__init__("cremad", split, items, readers, CLASSES, seed)
        self.check(root)
        if split == "train" and modalities is None and isinstance(reader := self.readers["audio"], SoundReader):
            reader.look_at(self.items.sources("audio"))


def read_list(path: Path) -> list[tuple[str, str]]:
    """(clip, emotion) of each line of a list file, which may have a header.

    Raises:
        DatasetError: names that are no CREMA-D clips, unknown emotions, a label that is not in the name.
    """
    rows = read_rows(path)
    if rows[0][1:2] and rows[0][1] not in CLASSES and not re.match(r"\d", rows[0][0]):  # a header
        rows = rows[1:]
    pairs = []
    for row in rows:
        clip = re.sub(r"\.(wav|flv|mp4|mkv|webm|avi|mov)$", "", row[0])
        if not CLIP_NAME.fullmatch(clip):
            raise DatasetError(f"{path}: {row[0]!r} is no CREMA-D clip; expected a name such as 1001_DFA_ANG_XX")
        if len(row) < 2:
            raise DatasetError(f"{path}: {row[0]!r} has no label; expected clip,label")
        pairs.append((clip, row[1]))
    if not pairs:
        raise DatasetError(f"{path}: names no clips")
    check_unique([clip for clip, _ in pairs], path)
    check_classes([label for _, label in pairs], CLASSES, path)
    for clip, label in pairs:
        if clip.split("_")[2] != label:
            raise DatasetError(f"{path}: {clip} is labelled {label}, its name says {clip.split('_')[2]}")
    return pairs


def _circulating(
    root: Path, visual: Path, split: Split, audio_features: AudioFeatures, resolved: Modality | None
) -> tuple[list[Item], Reader]:
    """Clips and audio reader of a folder that other code made."""
    files = [root / folder / f"{name}.csv" for folder in ("splits", ".") for name in ("train", "val", "test")]
    pairs = {path.stem: read_list(path) for path in {path.stem: path for path in files if path.exists()}.values()}
    if "train" not in pairs or "test" not in pairs:
        raise DatasetError(f"cremad: {root} has no train.csv and test.csv; put the published lists there")
    check_unique([clip for part in pairs.values() for clip, _ in part], f"cremad: the lists in {root}")
    if "val" not in pairs:
        labels = [label for _, label in pairs["train"]]
        pairs["train"], pairs["val"] = cut(pairs["train"], labels, VAL_FRACTION, SPLIT_SEED, "cremad: validation")
        if split == "val":
            say(f"cremad: no val.csv; {len(pairs['val'])} clips are cut from train, stratified by class")
    audio, suffix = _audio_files(root)
    reader: Reader
    if suffix == ".wav":
        reader = SoundReader(audio_features)
    else:
        first = min(path for path in audio.glob(f"*{suffix}") if not is_hidden(path, root))
        reader = _array_reader(first, audio_features, resolved)
    items = [
        Item(clip, label, {"audio": audio / (clip + suffix), "visual": visual / clip}) for clip, label in pairs[split]
    ]
    absent = [item.id for item in items if not all(path.exists() for path in item.paths.values())]
    absent_ids = set(absent)
    if len(absent) == len(items):
        raise DatasetError(f"cremad: {root}: none of {counted(len(items), 'clip')} of the split {split} is there")
    if absent:
        say(f"cremad: {split}: {len(absent)} of {len(items)} listed clips are not in {root}: {', '.join(absent[:5])}")
    return [item for item in items if item.id not in absent_ids], reader


def _audio_files(root: Path) -> tuple[Path, str]:
    """The folder of the sounds or features, and their suffix."""
    for folder, suffix in (("audio", ".pt"), ("audio", ".npy"), ("AudioWAV", ".wav")):
        if any(not is_hidden(path, root) for path in (root / folder).glob(f"*{suffix}")):
            return root / folder, suffix
    raise DatasetError(f"cremad: {root} has neither audio/*.pt, audio/*.npy nor AudioWAV/*.wav")


def _array_reader(first: Path, audio_features: AudioFeatures, resolved: Modality | None) -> ArrayReader:
    """A reader of features from other code: log energies, or normalised features, whose least value is far higher.

    Args:
        resolved: what an earlier run found; None: the file `first` decides.
    """
    stored = FeatureReader(audio_features)
    if audio_features != "fbank":
        return stored
    normalised = float(load_array(first).min()) >= _NORMALISED[0] if resolved is None else resolved.mean is None
    if normalised:
        return ArrayReader(Modality("spectrogram", (1, FBANK_FRAMES, MEL_BINS)), limits=_NORMALISED)
    return stored
