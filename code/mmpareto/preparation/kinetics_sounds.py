"""Prepare Kinetics-Sounds from a folder of Kinetics-400 clips, flat or in class folders.

Which clips, in one of two ways:
  --train_list, --test_list  the published lists: youtubeid_start_end,seconds,label with labels 0 to 30
  --annotations              Kinetics' own CSV files (label,youtube_id,time_start,time_end,split): the 31 classes of
                             them. With train and validate, validate is the test split; with test too, validate
                             validates.
Validation is cut from train where the lists have none. A clip is found by its name as listed, or else by its YouTube
id, the first 11 characters of it; where the name of the file has no times and the file is longer than the clip, the
listed seconds are cut out of it. Many videos are gone from YouTube: missing clips are counted and named.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from mmpareto.datasets.base import SPLITS, DatasetError, Split, say
from mmpareto.datasets.files import VIDEO_SUFFIXES, is_hidden
from mmpareto.datasets.kinetics_sounds import CLASSES
from mmpareto.datasets.lists import VAL_FRACTION, check_unique, cut, read_rows, read_table
from mmpareto.escape import counted
from mmpareto.flag_values import file_path
from mmpareto.preparation.audio_visual import add_media_arguments, prepare_clips
from mmpareto.preparation.common import PREPARATIONS, Clip, Outcome

_ID = 11  # characters of a YouTube id
_TIMES = re.compile(r"_(\d+)_(\d+)")  # start and end in seconds, behind the id
_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "validate": "val", "test": "test"}

Listed = dict[Split, list[tuple[str, str]]]  # split -> (clip, class)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this preparation."""
    add_media_arguments(parser)
    parser.add_argument("--train_list", type=file_path, metavar="FILE", help="the published training list")
    parser.add_argument("--test_list", type=file_path, metavar="FILE", help="the published test list")
    parser.add_argument("--annotations", type=file_path, nargs="+", metavar="FILE", help="Kinetics' annotations")


@PREPARATIONS.register("kinetics-sounds", summary="Kinetics-Sounds, from clips of Kinetics-400")
def prepare(args: argparse.Namespace) -> Outcome:
    """Prepare the dataset as the flags say."""
    lists = args.train_list and args.test_list and not args.annotations
    if not lists and (not args.annotations or args.train_list or args.test_list):
        raise DatasetError("give either --train_list and --test_list, or --annotations")
    if lists:
        listed: Listed = {"train": published_list(args.train_list), "test": published_list(args.test_list)}
    else:
        listed = annotated(args.annotations)
    check_unique([clip for pairs in listed.values() for clip, _ in pairs], "the lists together")
    warn_of_shared(listed)
    val_fraction = None
    if "val" in listed and args.val_fraction is not None:
        raise DatasetError("--val_fraction: the annotations have a validation split; leave the flag or the file out")
    if "val" not in listed:
        val_fraction = VAL_FRACTION if args.val_fraction is None else args.val_fraction
        labels = [label for _, label in listed["train"]]
        train, val = cut(listed["train"], labels, val_fraction, args.split_seed, "kinetics-sounds: validation")
        listed |= {"train": train, "val": val}
    files = find_clips(args.source)
    clips = []
    for split in SPLITS:
        for clip, label in listed[split]:
            path = files.get(clip) or files.get(clip[:_ID])
            source = {"audio": path, "visual": path} if path else {}
            clips.append(Clip(clip, split, label, source, part=part_of(clip, path) if path else None))
    how = {
        "lists": "published" if lists else "annotations",
        "split_seed": args.split_seed,
        "val_fraction": val_fraction,
    }
    return prepare_clips(args, "kinetics-sounds", clips, CLASSES, how)


def published_list(path: Path) -> list[tuple[str, str]]:
    """(clip, class) of each line `youtubeid_start_end,seconds,label` of a published list.

    Raises DatasetError for lines of another form and for labels outside 0 .. 30.
    """
    pairs = []
    for row in read_rows(path):
        if len(row) != 3 or len(row[0]) < _ID:
            raise DatasetError(f"{path}: expected lines youtubeid_start_end,seconds,label, found {','.join(row)!r}")
        if not row[2].isdecimal() or int(row[2]) >= len(CLASSES):
            raise DatasetError(f"{path}: {row[0]} has the unknown class {row[2]!r}; labels are 0 to {len(CLASSES) - 1}")
        pairs.append((row[0], CLASSES[int(row[2])]))
    check_unique([clip for clip, _ in pairs], path)
    return pairs


def annotated(paths: Sequence[Path]) -> Listed:
    """The clips of the 31 classes in Kinetics' annotation files."""
    listed: Listed = {}
    for path in paths:
        table = read_table(path, _COLUMNS)
        table["label"] = table["label"].str.strip('"').str.replace(" ", "_")
        rows = table.loc[table["label"].isin(CLASSES), list(_COLUMNS)]
        for label, identifier, *times, split in rows.itertuples(index=False):
            if split not in _SPLITS:
                raise DatasetError(f"{path}: unknown split {split!r}; known: {', '.join(_SPLITS)}")
            try:
                start, end = (int(float(time)) for time in times)
            except (ValueError, OverflowError) as error:
                raise DatasetError(
                    f"{path}: time_start and time_end must be seconds, found {','.join(times)!r} for {identifier}"
                ) from error
            listed.setdefault(_SPLITS[split], []).append((f"{identifier}_{start:06d}_{end:06d}", label))
    if "test" not in listed and "val" in listed:
        listed["test"] = listed.pop("val")
    if "train" not in listed or "test" not in listed:
        raise DatasetError(
            f"{', '.join(map(str, paths))}: need clips of the 31 classes in train and in validate or test, found "
            f"{', '.join(listed) or 'none'}"
        )
    return listed


def part_of(clip: str, path: Path) -> tuple[float, float] | None:
    """Start and end, as a clip's name has them, where its file may be a whole video: the file's name has no times."""
    times = _TIMES.fullmatch(clip[_ID:])
    if times is None or _TIMES.fullmatch(path.stem[_ID:]):
        return None
    return float(times[1]), float(times[2])


def warn_of_shared(listed: Listed) -> None:
    """Warn, naming some, of videos of which several splits list parts: a model would be tested on what it has seen."""
    splits: dict[str, dict[Split, str]] = {}
    for split, pairs in listed.items():
        for clip, _ in pairs:
            splits.setdefault(clip[:_ID], {})[split] = clip
    shared = [clips for clips in splits.values() if len(clips) > 1]
    if shared:
        names = ", ".join(" and ".join(f"{clip} ({split})" for split, clip in clips.items()) for clips in shared[:3])
        say(
            f"warning: {counted(len(shared), 'video')} in several splits, such as {names}; take them out of all splits "
            "but one"
        )


def find_clips(source: Path) -> dict[str, Path]:
    """{name without suffix, and YouTube id: file} of all videos below a folder.

    Of several with an id, the id stands for the one with the shortest name, then the first in alphabetical order: a
    whole video rather than another cut of it, or a stream of it that a download left behind.
    """
    videos = [
        path
        for path in source.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and len(path.stem) >= _ID and not is_hidden(path, source)
    ]
    files: dict[str, Path] = {}
    for path in sorted(videos, key=lambda path: (len(path.stem), path)):
        for name in (path.stem, path.stem[:_ID]):
            files.setdefault(name, path)
    if not files:
        raise DatasetError(f"{source}: no videos ({', '.join(VIDEO_SUFFIXES)}) whose names begin with a YouTube id")
    return files
