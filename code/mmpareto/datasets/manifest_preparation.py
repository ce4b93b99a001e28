"""Prepares a dataset that a manifest.csv describes: frames out of videos, features out of sounds, once and for all.

The folder --source holds manifest.csv (see docs/datasets.md). Videos become frames, sounds become log-mel features;
images, folders of frames and arrays are copied. A video that is there for its sound track is named with --sound:

    id,split,label,voice,face
    a1,train,happy,clips/a1.mp4,clips/a1.mp4          with --sound voice
"""

from __future__ import annotations

import argparse
import functools
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from mmpareto.datasets.av_preparation import TOOLS, add_frame_size, refuse_pointers
from mmpareto.datasets.base import DatasetError
from mmpareto.datasets.clips import frame_files, load_array, read_image
from mmpareto.datasets.features import write_features
from mmpareto.datasets.files import refuse_special_file
from mmpareto.datasets.manifest import SPLIT_SEED, VAL_FRACTION, Source, read_manifest
from mmpareto.datasets.media import read_sound, refuse_pointer, write_frames
from mmpareto.datasets.preparation import Clip, Outcome, UnusableError
from mmpareto.datasets.preparation import prepare as prepare_clips
from mmpareto.flag_values import count_or_zero, fraction, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this preparation."""
    parser.add_argument("--fps", type=positive, metavar="X", help="frames a second of videos (default: 1)")
    add_frame_size(parser)
    parser.add_argument(
        "--sound", nargs="+", default=[], metavar="MODALITY", help="modalities whose videos are read for their sound"
    )
    parser.add_argument(
        "--val_fraction",
        type=fraction,
        metavar="X",
        help="of train, as validation, where the manifest has none (default: 0.1)",
    )
    parser.add_argument(
        "--split_seed", type=count_or_zero, default=SPLIT_SEED, metavar="N", help="of the cut (default: 0)"
    )


def prepare(args: argparse.Namespace) -> Outcome:
    """Prepares the dataset as the flags say."""
    listed = read_manifest(args.source, args.val_fraction, args.split_seed, args.sound, missing_ok=True)
    clips = [
        Clip(item.id, split, item.label, {} if item.id in listed.missing else item.paths)
        for split, items in listed.clips.items()
        for item in items
    ]
    refuse_pointers(clips, args.source)
    suffixes = {name: _suffix(source, name, clips) for name, source in listed.sources.items()}
    if "video" not in listed.sources.values():
        useless = [flag for flag in ("fps", "frame_size") if getattr(args, flag) is not None]
        if useless:
            raise DatasetError(
                f"--{useless[0]} is for videos that are seen; {args.source} has {', '.join(listed.sources.values())}"
            )
    fps = 1.0 if args.fps is None else args.fps
    frames = {"fps": fps, "frame_size": args.frame_size}
    return prepare_clips(
        args.output,
        name="manifest",
        clips=clips,
        classes=listed.classes,
        modalities=suffixes,
        make=functools.partial(make, sources=listed.sources, suffixes=suffixes, fps=fps, frame_size=args.frame_size),
        parameters={
            "sources": listed.sources,
            **frames,
            "val_fraction": VAL_FRACTION if args.val_fraction is None else args.val_fraction,
            "split_seed": args.split_seed,
        },
        workers=args.workers,
        tools=TOOLS,
    )


def _suffix(source: Source, modality: str, clips: list[Clip]) -> str:
    """The suffix of a modality's prepared files; "" for folders."""
    if source in ("video", "frames"):
        return ""
    if source == "sound":
        return ".npy"
    found = {clip.source[modality].suffix for clip in clips if clip.source}
    return found.pop() if len(found) == 1 else {"image": ".png", "array": ".npy"}[source]


def make(
    clip: Clip,
    folder: Path,
    *,
    sources: dict[str, Source],
    suffixes: dict[str, str],
    fps: float,
    frame_size: int | None,
) -> None:
    """Writes a clip's files."""
    for modality, source in sources.items():
        path, place = clip.source[modality], folder / (modality + suffixes[modality])
        refuse_pointer(path)
        try:
            if source == "video":
                write_frames(path, place, fps, frame_size)
            elif source == "sound":
                write_features(read_sound(path), "fbank", place, frames=None)
            elif source == "frames":
                place.mkdir()
                for file in frame_files(path):
                    _open_image(file)
                    shutil.copyfile(file, place / file.name)
            elif source == "image":
                _open_image(path)
                _copy_image(path, place)
            else:
                _copy_array(path, place)
        except DatasetError as error:
            raise UnusableError(f"unusable {source}", str(error)) from error


def _open_image(path: Path) -> None:
    refuse_special_file(path)
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others on damaged files
        raise UnusableError("unreadable image", f"{path}: {error}") from error


def _copy_image(path: Path, place: Path) -> None:
    if path.suffix == place.suffix:
        shutil.copyfile(path, place)
    else:
        Image.fromarray(read_image(path).permute(1, 2, 0).numpy()).save(place)


def _copy_array(path: Path, place: Path) -> None:
    array = load_array(path)
    if path.suffix == place.suffix:
        shutil.copyfile(path, place)
    else:
        np.save(place, array.numpy(), allow_pickle=False)
