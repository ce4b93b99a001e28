"""Prepare a dataset that a manifest.csv describes: frames of videos, features of sounds, once and for all.

The folder --source holds manifest.csv (see docs/datasets.md). Videos become frames, sounds become log-mel features;
images, folders of frames, arrays and text files are copied (images larger than --frame_size are resized); text in the
manifest itself becomes text files. An empty cell stays a modality that the clip lacks. A video that is listed for its
sound track is named with --sound:

    id,split,label,voice,face
    a1,train,happy,clips/a1.mp4,clips/a1.mp4          with --sound voice
"""

import argparse
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mmpareto.datasets.arrays import load_array
from mmpareto.datasets.base import DatasetError, UnusableError
from mmpareto.datasets.features import write_features
from mmpareto.datasets.files import refuse_pointer, write_array
from mmpareto.datasets.images import PACKED, format_of, store_image, write_packed
from mmpareto.datasets.items import Item
from mmpareto.datasets.lists import VAL_FRACTION
from mmpareto.datasets.manifest_file import Source, declarations, read_manifest
from mmpareto.datasets.media import read_sound, write_frames
from mmpareto.datasets.readers import frame_files
from mmpareto.datasets.text import text_of
from mmpareto.flag_values import frame_rate
from mmpareto.preparation.audio_visual import TOOLS, add_frame_arguments, refuse_pointers
from mmpareto.preparation.common import PREPARATIONS, Clip, Outcome, add_cut_arguments
from mmpareto.preparation.common import prepare as prepare_clips
from mmpareto.special_files import hint

SEEN = {"video", "frames", "image"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this preparation."""
    parser.add_argument("--fps", type=frame_rate, metavar="X", help="frames a second of videos (default: 1)")
    add_frame_arguments(parser)
    parser.add_argument(
        "--sound", nargs="+", default=[], metavar="MODALITY", help="modalities whose videos are read for their sound"
    )
    for option, content in (
        ("text", "columns that hold the text itself"),
        ("sequences", "columns whose arrays are sequences [length, features]"),
        ("tokens", "columns whose arrays are token ids [length]"),
    ):
        parser.add_argument(f"--{option}", nargs="+", default=[], metavar="MODALITY", help=content)
    add_cut_arguments(parser, f"of train, as validation, where the manifest has none (default: {VAL_FRACTION})")


@PREPARATIONS.register("manifest", summary="any dataset that a manifest.csv describes")
def prepare(args: argparse.Namespace) -> Outcome:
    """Prepare the dataset as the flags say."""
    declared = declarations(text=tuple(args.text), sequences=tuple(args.sequences), tokens=tuple(args.tokens))
    listed = read_manifest(
        args.source, args.val_fraction, args.split_seed, args.sound, missing_ok=True, declared=declared
    )
    clips = [
        Clip(
            item.id,
            split,
            item.label,
            {} if item.id in listed.missing else item.paths,
            frozenset(listed.sources) - frozenset(item.paths),
            lost=_lost(item) if item.id in listed.missing else "",
        )
        for split, items in listed.clips.items()
        for item in items
    ]
    refuse_pointers(clips, args.source)
    # of all files that are listed, so that one that is not there yet changes nothing when it comes
    items = [item for part in listed.clips.values() for item in part]
    suffixes = {
        name: _suffix(source, [item.paths[name] for item in items if name in item.paths])
        for name, source in listed.sources.items()
    }
    if args.pack and not SEEN & set(listed.sources.values()):
        raise DatasetError(f"--pack is for images; {args.source} has {', '.join(listed.sources.values())}")
    for flag, kinds, what in (("fps", {"video"}, "videos that are seen"), ("frame_size", SEEN, "images and videos")):
        if getattr(args, flag) is not None and not kinds & set(listed.sources.values()):
            raise DatasetError(f"--{flag} is for {what}; {args.source} has {', '.join(listed.sources.values())}")
    frames = {"fps": 1.0 if args.fps is None else args.fps, "frame_size": args.frame_size}
    # left out where they say nothing: a folder that was prepared before they came stays the same
    said: dict[str, object] = {"pack": True} if args.pack else {}
    resized = {name: suffixes[name] for name, source in listed.sources.items() if source in ("image", "frames")}
    if args.frame_size is not None and resized:
        said["suffixes"] = resized
    return prepare_clips(
        args.output,
        name="manifest",
        clips=clips,
        classes=listed.classes,
        modalities={
            name: PACKED if args.pack and listed.sources[name] in SEEN else suffix for name, suffix in suffixes.items()
        },
        make=functools.partial(make, sources=listed.sources, suffixes=suffixes, pack=args.pack, **frames),
        parameters={
            "sources": {name: "text" if source == "words" else source for name, source in listed.sources.items()},
            **frames,
            **said,
            "val_fraction": VAL_FRACTION if args.val_fraction is None else args.val_fraction,
            "split_seed": args.split_seed,
        },
        workers=args.workers,
        tools=TOOLS,
        sources=(args.source,),
    )


def _lost(item: Item) -> str:
    """Name the files of a clip that are not there."""
    lost = {name: path for name, path in item.paths.items() if isinstance(path, Path) and not path.exists()}
    return "; ".join(f"{name}: {path}{hint(path)}" for name, path in lost.items())


def _suffix(source: Source, paths: Sequence[Path | str]) -> str:
    """The suffix of a modality's prepared files, before they are packed; "" for folders."""
    if source in ("video", "frames"):
        return ""
    if source == "sound":
        return ".npy"
    if source in ("text", "words"):
        return ".txt"
    suffixes = {Path(path).suffix for path in paths}
    formats = {format_of(suffix) for suffix in suffixes}
    if len(formats) == 1:
        return (suffixes if len(suffixes) == 1 else formats).pop()
    return ".png" if source == "image" else ".npy"


def make(
    clip: Clip,
    folder: Path,
    *,
    sources: dict[str, Source],
    suffixes: dict[str, str],
    fps: float,
    frame_size: int | None,
    pack: bool = False,
) -> None:
    """Write a clip's files."""
    for modality, path in clip.source.items():
        source, place = sources[modality], folder / (modality + suffixes[modality])
        if source != "words":
            refuse_pointer(path)
        try:
            if source in SEEN:
                if pack:
                    place = folder / f"{modality}.unpacked{suffixes[modality]}"
                files = _store_images(path, source, place, fps, frame_size, copied=not pack)
                if pack:
                    write_packed(files, folder / (modality + PACKED))
            elif source == "sound":
                write_features(read_sound(path), "fbank", place, frames=None)
            elif source in ("text", "words"):
                place.write_bytes(text_of(path).encode())
            else:
                _copy_array(path, place)
        except UnusableError:
            raise
        except DatasetError as error:
            raise UnusableError(f"unusable {source}", error) from error


def _store_images(
    path: Path, source: Source, place: Path, fps: float, frame_size: int | None, copied: bool
) -> list[Path]:
    """Write the images of a clip, and return their files.

    copied  False: images that would be stored as they are may stay where they are.
    """
    if source == "video":
        write_frames(path, place, fps, frame_size)
        return frame_files(place)
    files = [path] if source == "image" else frame_files(path)
    if not copied and frame_size is None:
        return files
    if source == "image":
        store_image(path, place, frame_size)
        return [place]
    place.mkdir()
    for file in files:
        store_image(file, place / file.name, frame_size)
    return frame_files(place)


def _copy_array(path: Path, place: Path) -> None:
    """Copy an array that can be read, or save it in another format."""
    array = load_array(path)
    if format_of(path.suffix) == format_of(place.suffix):
        shutil.copyfile(path, place)
    else:
        write_array(place, (array.float() if array.dtype == torch.bfloat16 else array).numpy())  # NumPy has no bfloat16
