"""Prepare CREMA-D from a clone of its repository (AudioWAV/*.wav, VideoFlash/*.flv; videos that were converted, to
.mp4 say, are read as well).

Splits:
  published  of two list files, --train_list and --test_list; validation is cut from train. All 91 actors are in all
             splits: accuracies are those for known faces and voices, higher than for new ones.
  random     80 / 10 / 10 % of the clips, stratified by emotion; the actors are in all splits here too.
  speaker    80 / 10 / 10 % of the actors; none is in two splits.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmpareto.datasets.base import SPLITS, DatasetError, Split
from mmpareto.datasets.cremad import CLASSES, CLIP_NAME, read_list
from mmpareto.datasets.files import VIDEO_SUFFIXES, is_hidden, is_lfs_pointer
from mmpareto.datasets.lists import VAL_FRACTION, check_unique, cut
from mmpareto.flag_values import file_path
from mmpareto.preparation.audio_visual import add_media_arguments, prepare_clips
from mmpareto.preparation.common import PREPARATIONS, Clip, Outcome

PARTS = (0.8, 0.1, 0.1)  # of random and speaker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this preparation."""
    add_media_arguments(parser)
    parser.add_argument(
        "--split", choices=("published", "random", "speaker"), default="published", help="(default: published)"
    )
    parser.add_argument("--train_list", type=file_path, metavar="FILE", help="clip,label lines, for --split published")
    parser.add_argument("--test_list", type=file_path, metavar="FILE", help="clip,label lines, for --split published")


@PREPARATIONS.register("cremad", summary="CREMA-D, from a clone of its repository")
def prepare(args: argparse.Namespace) -> Outcome:
    """Prepare the dataset as the flags say."""
    sounds = _files(args.source, "AudioWAV", (".wav",))
    videos = _files(args.source, "VideoFlash", (".flv", *VIDEO_SUFFIXES))
    if args.split == "published":
        val_fraction = VAL_FRACTION if args.val_fraction is None else args.val_fraction
        listed = published(args.train_list, args.test_list, val_fraction, args.split_seed)
    elif args.val_fraction is not None:
        raise DatasetError("--val_fraction belongs to --split published; the others are 80 / 10 / 10 %")
    elif args.train_list or args.test_list:
        raise DatasetError("--train_list and --test_list belong to --split published")
    else:
        names = sorted(name for name in sounds.keys() | videos.keys() if CLIP_NAME.fullmatch(name))
        if not names:
            raise DatasetError(f"{args.source}: no clips named as CREMA-D names them, such as 1001_DFA_ANG_XX.wav")
        listed = (random_split if args.split == "random" else speaker_split)(names, args.split_seed)
    clips = [
        Clip(
            name,
            split,
            _emotion(name),
            {"audio": sounds[name], "visual": videos[name]} if name in sounds and name in videos else {},
        )
        for split, names in listed.items()
        for name in names
    ]
    how: dict[str, object] = {"split": args.split, "split_seed": args.split_seed}
    if args.split == "published":
        how["val_fraction"] = val_fraction
    return prepare_clips(args, "cremad", clips, CLASSES, how)


def published(
    train_list: Path | None, test_list: Path | None, val_fraction: float, seed: int
) -> dict[Split, list[str]]:
    """The splits of two list files; validation is cut from train."""
    if train_list is None or test_list is None:
        raise DatasetError(
            "--split published needs --train_list and --test_list (data/cremad/README.md says where they are); "
            "or choose --split random or --split speaker"
        )
    train, test = read_list(train_list), read_list(test_list)
    check_unique([clip for clip, _ in train + test], f"{train_list} and {test_list} together")
    names = [clip for clip, _ in train]
    stay, val = cut(names, [_emotion(name) for name in names], val_fraction, seed, f"{train_list}: validation")
    return {"train": stay, "val": val, "test": [clip for clip, _ in test]}


def random_split(names: list[str], seed: int) -> dict[Split, list[str]]:
    """80 / 10 / 10 % of the clips, stratified by emotion."""
    rest, test = cut(names, [_emotion(name) for name in names], PARTS[2], seed, "cremad: test")
    train, val = cut(
        rest, [_emotion(name) for name in rest], PARTS[1] / (PARTS[0] + PARTS[1]), seed, "cremad: validation"
    )
    return {"train": train, "val": val, "test": test}


def _emotion(name: str) -> str:
    return name.split("_")[2]


def speaker_split(names: list[str], seed: int) -> dict[Split, list[str]]:
    """The clips of 80 / 10 / 10 % of the actors (at least one each)."""
    actors = sorted({name[:4] for name in names})
    if len(actors) < len(SPLITS):
        raise DatasetError(f"--split speaker needs at least 3 actors, found {len(actors)}")
    order = np.random.default_rng(seed).permutation(actors).tolist()
    count = max(round(PARTS[2] * len(actors)), 1)
    parts = {"train": order[2 * count :], "val": order[count : 2 * count], "test": order[:count]}
    return {split: [name for name in names if name[:4] in parts[split]] for split in SPLITS}


def _files(source: Path, folder: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """{clip: file} of a folder of the clone; where a clip has several files, the one with the first of `suffixes`.

    A file with another suffix wins over a git-lfs pointer: somebody has converted the original.
    """
    place = source / folder
    if not place.is_dir():
        raise DatasetError(f"{source} has no folder {folder}; --source must be a clone of CREMA-D's repository")
    paths = [path for path in sorted(place.iterdir()) if not is_hidden(path, place)]
    files: dict[str, Path] = {}
    for path in sorted(
        (path for path in paths if path.suffix.lower() in suffixes),
        key=lambda path: (suffixes.index(path.suffix.lower()), path.name),
    ):
        if path.stem not in files or is_lfs_pointer(files[path.stem]):
            files[path.stem] = path
    if not files:
        others = sorted({path.suffix or path.name for path in paths})
        raise DatasetError(
            f"{place} holds {', '.join(others[:5]) or 'nothing'}, expected {', '.join(dict.fromkeys(suffixes))} files; "
            "the clone is not complete"
        )
    return files
