"""What the preparations of sound-and-picture datasets share: flags, and how a clip is made."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from mmpareto.datasets.base import DatasetError
from mmpareto.datasets.features import AudioFeatures, write_features
from mmpareto.datasets.files import is_lfs_pointer
from mmpareto.datasets.images import PACKED, write_packed
from mmpareto.datasets.lists import VAL_FRACTION
from mmpareto.datasets.media import length_of, read_sound, write_frames
from mmpareto.datasets.readers import frame_files
from mmpareto.flag_values import count, frame_rate
from mmpareto.preparation.common import Clip, Outcome, add_cut_arguments, prepare

_LONGER = 2.0  # seconds that a file may be longer than its part and still be that part: cuts fall on key frames
TOOLS = ("av", "numpy", "pillow", "soxr", "torchaudio")


def add_media_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what is taken from a clip, and of how validation is cut."""
    parser.add_argument(
        "--audio_features", choices=("fbank", "stft"), default="fbank", help="MMPareto's or OGM-GE's (default: fbank)"
    )
    parser.add_argument("--fps", type=frame_rate, default=1.0, metavar="X", help="frames a second (default: 1)")
    add_frame_arguments(parser)
    add_cut_arguments(parser, f"of train, as validation, where it is cut from train (default: {VAL_FRACTION})")


def add_frame_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of how images and frames are stored."""
    parser.add_argument(
        "--frame_size",
        type=count,
        metavar="N",
        help="shorter side of the stored images and frames in pixels; 256 loads faster and suffices for crops of 224 "
        "(default: as they are, like the published recipe)",
    )
    parser.add_argument(
        "--pack",
        action="store_true",
        help="store images decoded: they load several times faster and take about 15 times the space. The pixels are "
        "those of the files that are stored without this flag",
    )


def make(
    clip: Clip,
    folder: Path,
    *,
    audio_features: AudioFeatures,
    fps: float,
    frame_size: int | None = None,
    pack: bool = False,
) -> None:
    """Write `audio.npy`, and `visual/` or `visual.npy`, of a clip with the sources "audio" and "visual"."""
    part = clip.part
    if part is not None and (length_of(clip.source["visual"]) or 0.0) <= part[1] - part[0] + _LONGER:
        part = None
    write_features(read_sound(clip.source["audio"], part), audio_features, folder / "audio.npy")
    write_frames(clip.source["visual"], folder / "visual", fps, frame_size, part)
    if pack:
        write_packed(frame_files(folder / "visual"), folder / f"visual{PACKED}")


def refuse_pointers(clips: Sequence[Clip], source: Path) -> None:
    """Raise DatasetError where all media are git-lfs pointers: the clone was made without git-lfs."""
    files = [path for clip in clips for path in clip.source.values() if isinstance(path, Path) and path.is_file()]
    if files and all(map(is_lfs_pointer, files)):
        raise DatasetError(
            f"{source} holds git-lfs pointers of 130 bytes instead of media (such as {files[0]}); "
            f"install git-lfs, then: git -C {source} lfs install && git -C {source} lfs pull"
        )


def prepare_clips(
    args: argparse.Namespace, name: str, clips: Sequence[Clip], classes: Sequence[str], splits: dict[str, object]
) -> Outcome:
    """Prepare clips with the sources "audio" and "visual"; `splits` says how they were split, for dataset.json."""
    refuse_pointers(clips, args.source)
    media = {"audio_features": args.audio_features, "fps": args.fps, "frame_size": args.frame_size}
    if args.pack:  # a folder that was prepared before the flag came stays the same
        media["pack"] = True
    return prepare(
        args.output,
        name=name,
        clips=clips,
        classes=classes,
        modalities={"audio": ".npy", "visual": PACKED if args.pack else ""},
        make=functools.partial(make, **media),
        parameters=media | splits,
        workers=args.workers,
        tools=TOOLS,
        sources=(args.source,),
    )
