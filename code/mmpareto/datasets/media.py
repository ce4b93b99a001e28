"""Sound and frames out of media files, with PyAV.

Times are the container's own: a frame is chosen by its presentation time stamp, never by its number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from PIL import Image

from mmpareto.datasets.preparation import UnusableError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".flv", ".avi", ".mov", ".m4v", ".mpg")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_LFS_MAGIC = b"version https://git-lfs"
JPEG_QUALITY = 95
# a container may announce somewhat more than it holds (edit lists, padding); half of it missing is a cut-off file
_WHOLE = 0.5


@dataclass(frozen=True)
class Sound:
    """A sound track: `samples` float32 [channels, N], full scale 1; `rate` in Hz."""

    samples: np.ndarray
    rate: int

    def mono(self) -> np.ndarray:
        """The mean of the channels, float32 [N]."""
        return self.samples.mean(axis=0, dtype=np.float32)


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of a large file that git-lfs has not fetched (about 130 bytes)."""
    if not path.is_file() or path.stat().st_size > 1024:
        return False
    with open(path, "rb") as file:
        return file.read(len(_LFS_MAGIC)) == _LFS_MAGIC


def refuse_pointer(path: Path) -> None:
    """Raises UnusableError for a git-lfs pointer."""
    if is_lfs_pointer(path):
        raise UnusableError("git-lfs pointer", f"{path}; run `git lfs install` and `git lfs pull` in the clone")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The container; all that a damaged file can cause comes out as UnusableError."""
    try:
        if path.stat().st_size == 0:
            raise UnusableError("empty file", str(path))
        refuse_pointer(path)
        with av.open(str(path), metadata_errors="replace") as container:  # tags may be in any encoding
            yield container
    except (av.error.FFmpegError, OSError) as error:
        raise UnusableError("unreadable file", f"{path}: {error}") from error


def read_sound(path: Path) -> Sound:
    """The first sound track of a media file, at its own rate.

    Raises UnusableError: no sound track, no samples in it, silence, damage.
    """
    with _opened(path) as container:
        _refuse_cut_off_wave(path)
        if not container.streams.audio:
            raise UnusableError("no sound track", str(path))
        stream = container.streams.audio[0]
        planar = av.AudioResampler(format="fltp")  # layout and rate stay as they are
        blocks: list[np.ndarray] = []
        rate = 0
        for frame in container.decode(stream):
            rate = rate or frame.sample_rate
            blocks += [converted.to_ndarray() for converted in planar.resample(frame)]
        if blocks:
            blocks += [converted.to_ndarray() for converted in planar.resample(None)]
        announced = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    samples = np.concatenate(blocks, axis=1) if blocks else np.zeros((1, 0), np.float32)
    if not samples.shape[1]:
        raise UnusableError("empty sound track", str(path))
    if samples.shape[1] / rate < _WHOLE * announced:
        held = f"{samples.shape[1] / rate:.1f} s of {announced:.1f} s of sound"
        raise UnusableError("cut-off file", f"{path} holds {held}")
    if not np.isfinite(samples).all():
        raise UnusableError("sound that is not finite", str(path))
    if not samples.any():
        raise UnusableError("silent sound", f"{path}: all samples are zero")
    return Sound(samples, rate)


def _refuse_cut_off_wave(path: Path) -> None:
    """Raises UnusableError for a .wav that holds less than half of what its head announces; decoders do not tell."""
    with open(path, "rb") as file:
        head = file.read(8)
    announced = int.from_bytes(head[4:], "little") + 8
    size = path.stat().st_size
    # all ones: written to a pipe, the length was not known
    if head[:4] == b"RIFF" and announced < 2**32 and size < _WHOLE * announced:
        raise UnusableError("cut-off file", f"{path} holds {size} of {announced} bytes")


def sound_seconds(path: Path) -> float:
    """The length of a media file's first sound track in seconds: what its head announces, else by decoding it.

    Raises UnusableError as `read_sound` does.
    """
    with _opened(path) as container:
        stream = container.streams.audio[0] if container.streams.audio else None
        if stream is not None and stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if stream is not None and container.duration:
            return container.duration / av.time_base
    sound = read_sound(path)
    return sound.samples.shape[1] / sound.rate


def read_frames(path: Path, fps: float) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The frames that a video shows at 0, 1 / fps, 2 / fps, ... seconds after its first one, until it ends.

    Gives (time stamp in seconds, uint8 [H, W, 3]): at each time the last frame that is not later. A video of a single
    frame gives that one. A frame of a slow video can come more than once.

    Raises UnusableError: no picture, no frames, damage.
    """
    step = 1 / Fraction(fps).limit_denominator(1000)
    with _opened(path) as container:
        if not container.streams.video:
            raise UnusableError("no picture", str(path))
        stream = container.streams.video[0]
        shown: tuple[Fraction, av.VideoFrame] | None = None
        start = due = end = Fraction(0)
        frames = 0
        for frame in container.decode(stream):
            if frame.pts is None or frame.time_base is None:
                continue
            time = frame.pts * frame.time_base
            frames += 1
            if shown is None:
                start = due = time
            while shown is not None and due < time:
                yield shown[0], shown[1].to_ndarray(format="rgb24")
                due += step
            end = time + Fraction(frame.duration or 0) * frame.time_base
            shown = time, frame
        if shown is None:
            raise UnusableError("no frames", str(path))
        announced = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        announced = announced or (container.duration or 0) / av.time_base  # Flash and Matroska tell it there
        held = end - min(start, Fraction(0))  # Matroska counts from zero where the first frame comes later
        lacking = frames < _WHOLE * stream.frames or held < _WHOLE * announced
        if lacking and (frames > 1 or announced > 1):  # a single frame may not say how long it is shown
            raise UnusableError("cut-off file", f"{path} holds {frames} frames, {float(end - start):.1f} s of picture")
        while due <= shown[0] or due < end:
            yield shown[0], shown[1].to_ndarray(format="rgb24")
            due += step


def write_frames(path: Path, folder: Path, fps: float, short_side: int | None = None) -> int:
    """Writes a video's frames (see `read_frames`) as `folder/frame_00001.jpg`, ...; returns their number.

    short_side  frames whose shorter side is longer are brought to it, in pixels; None: as they are.
    """
    folder.mkdir()
    number = 0
    for _, picture in read_frames(path, fps):
        number += 1
        image = Image.fromarray(picture)
        if short_side is not None and min(image.size) > short_side:
            scale = short_side / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        image.save(folder / f"frame_{number:05d}.jpg", quality=JPEG_QUALITY)
    return number
