"""Read sound and frames from media files with PyAV.

Times are the container's own: a frame is chosen by its presentation time stamp, never by its number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np
from av.stream import Disposition, Stream
from PIL import Image

from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.containers import missing_part
from mmpareto.datasets.files import refuse_pointer, refuse_special_file
from mmpareto.datasets.images import write_small

# FFmpeg's formats that hold media themselves; playlists and lists of files, which name others, are not among them
_FORMATS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,live_flv,matroska,mov,mp3,mpeg,mpegts,mpegvideo,ogg,w64,wav,webm,wv"
)
_HALF = 0.5  # a header may announce somewhat more than the file holds (edit lists, padding), but not twice as much
_WITH_LENGTH = ("wav", "w64", "flac", "mov", "matroska", "flv", "avi")  # of others FFmpeg estimates the length
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 768_000  # Hz
_MANY_CHANNELS = 8  # of so many PyAV gives planar samples with a segmentation fault, interleaved ones without
_MOST_SAMPLES = 2**28  # 1 GiB as float32
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_LONGEST_GAP = 3600  # seconds between two frames
_ROUNDING = 1e-6  # of the loudest sample: what is left of channels that cancel each other


Part = tuple[float, float]  # start and end in seconds


@dataclass(frozen=True)
class Sound:
    """A sound track: `samples` float32 [channels, N], full scale 1; `rate` in Hz."""

    samples: np.ndarray
    rate: int

    def mono(self) -> np.ndarray:
        """The mean of the channels, float32 [N]."""
        return self.samples.mean(axis=0, dtype=np.float32)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The open container. Raises UnusableError for everything that a damaged file can cause."""
    refuse_special_file(path)
    try:
        if path.stat().st_size == 0:
            raise UnusableError("empty file", path)
        refuse_pointer(path)
        missing = missing_part(path)
        if missing:
            raise UnusableError("cut-off file", f"{path}: {missing}")
        # "file:" because a name may hold a colon; tags may be in any encoding
        with av.open(
            f"file:{path}", metadata_errors="replace", container_options={"format_whitelist": _FORMATS}
        ) as container:
            yield container
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError) as error:  # PyAV raises the last two itself
        raise UnusableError("unreadable file", f"{path}: {error}") from error


def _default_stream(container: av.container.InputContainer, kind: Literal["audio", "video"]) -> Stream | None:
    """The stream that ffmpeg chooses: the default one, of several the one with most channels or pixels, then the first.

    Cover art is no video.
    """

    def size(stream: Stream) -> int:
        """Channels or pixels; 0 where the stream cannot be used."""
        if stream.codec_context is None:  # FFmpeg has no decoder for it
            return 0
        if isinstance(stream, av.AudioStream) and kind == "audio":
            return stream.channels if stream.rate else 0
        if isinstance(stream, av.VideoStream) and kind == "video":
            cover = stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
            return 0 if cover else max(stream.width * stream.height, 1)
        return 0

    def rank(stream: Stream) -> tuple[bool, int]:
        return bool(stream.disposition & Disposition.default), size(stream)

    return max(filter(size, container.streams), key=rank, default=None)


def _decoded(path: Path, kind: Literal["audio", "video"]) -> Iterator[av.AudioFrame | av.VideoFrame]:
    """The frames of a media file's default stream.

    Raises UnusableError: no such stream, damage, or no stream of the file reaches half of the length that it announces.
    """
    with _opened(path) as container:
        stream = _default_stream(container, kind)
        if stream is None:
            raise UnusableError("no sound track" if kind == "audio" else "no picture", path)
        if isinstance(stream, av.VideoStream):
            stream.codec_context.options = {"max_pixels": str(Image.MAX_IMAGE_PIXELS)}
        last, packets = Fraction(0), 0
        for packet in container.demux():
            if packet.pts is not None and packet.time_base is not None:
                last = max(last, (packet.pts + (packet.duration or 0)) * packet.time_base)
                packets += 1
            if packet.stream.index == stream.index:
                yield from _frames_of(packet)
        if not any(name in container.format.name.split(",") for name in _WITH_LENGTH):
            return
        announced = (container.duration or 0) / av.time_base
        length = float(last) - min((container.start_time or 0) / av.time_base, 0.0)
        if length < _HALF * announced and (packets > 1 or announced > 1):  # one frame may not say how long it is shown
            raise UnusableError("cut-off file", f"{path} holds {length:.1f} s, its header announces {announced:.1f} s")


def _frames_of(packet: av.Packet[Any]) -> Sequence[av.AudioFrame | av.VideoFrame]:
    """The frames of a packet; none of a tag that lies between or behind the frames of an .mp3."""
    try:
        return packet.decode()
    except av.error.InvalidDataError:
        if bytes(packet).startswith(_TAGS):
            return []
        raise


def is_silent(mono: np.ndarray, loudest: float | None = None) -> bool:
    """Whether samples [N] have one value throughout: features are made of their differences from the mean.

    loudest  of the channels whose mean they are; None: of the samples themselves.
    """
    greatest = float(np.abs(mono).max()) if loudest is None else loudest
    return float(np.ptp(mono)) <= _ROUNDING * greatest


def length_of(path: Path) -> float | None:
    """Seconds that a media file announces; None where it announces none.

    Raises UnusableError for a damaged file.
    """
    with _opened(path) as container:
        return None if container.duration is None else container.duration / av.time_base


def read_sound(path: Path, part: Part | None = None) -> Sound:
    """The default sound track of a media file, with the rate and the channels that it begins with.

    Where the rate changes within the file, the rest is resampled; where the number of channels changes, the rest is the
    mean of its channels, in each channel.

    part  of the track, in seconds from its beginning; None: all of it.

    Raises UnusableError: no sound track, no samples in it, silence in the mean of the channels, damage, a rate that no
    sound has.
    """
    blocks: list[np.ndarray] = []
    rate = channels = samples = passed = 0
    for frame in _resampled(path):
        block = frame.to_ndarray()
        if not frame.format.is_planar:
            block = block.reshape(-1, frame.layout.nb_channels).T
        rate, channels = rate or frame.sample_rate, channels or len(block)
        if len(block) != channels:
            block = np.broadcast_to(block.mean(axis=0, dtype=np.float32), (channels, block.shape[1]))
        if part is not None:
            start, end = (max(round(second * rate) - passed, 0) for second in part)
            passed += block.shape[1]
            if not end:
                break
            block = block[:, start:end]
        blocks.append(block)
        samples += block.size
        if samples > _MOST_SAMPLES:
            raise UnusableError("sound too long", f"{path}: more than {_MOST_SAMPLES} samples; cut it")
    if not samples:
        raise UnusableError("empty sound track", path if part is None else f"{path}: {_outside(part)}")
    whole = np.concatenate(blocks, axis=1)
    if not np.isfinite(whole).all():
        raise UnusableError("sound that is not finite", path)
    sound = Sound(whole, rate)
    if is_silent(sound.mono(), max(float(whole.max()), -float(whole.min()))):
        raise UnusableError("silent sound", f"{path}: the mean of its channels has one value throughout")
    return sound


def rate_of(path: Path) -> int:
    """The sample rate in Hz that a sound begins with; no more than its beginning is decoded.

    Raises UnusableError: no sound track, no samples in it, damage, a rate that no sound has.
    """
    for frame in _resampled(path):
        return frame.sample_rate
    raise UnusableError("empty sound track", path)


def _outside(part: Part) -> str:
    return f"it ends before the part from {part[0]:g} to {part[1]:g} s"


def _resampled(path: Path) -> Iterator[av.AudioFrame]:
    """The frames of a sound as float32, all at the rate of the first one."""
    setup: tuple[str, str, int] | None = None
    resampler: av.AudioResampler | None = None
    rate = 0
    for frame in _decoded(path, "audio"):
        assert isinstance(frame, av.AudioFrame)
        frame_setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or setup != frame_setup:
            if not _LOWEST_RATE <= frame.sample_rate <= _HIGHEST_RATE:
                limits = f"expected {_LOWEST_RATE} to {_HIGHEST_RATE} Hz"
                raise UnusableError("impossible sample rate", f"{path}: {frame.sample_rate} Hz; {limits}")
            if resampler is not None:
                yield from resampler.resample(None)  # what it still holds
            setup, rate = frame_setup, rate or frame.sample_rate
            planar = frame.layout.nb_channels < _MANY_CHANNELS
            resampler = av.AudioResampler(format="fltp" if planar else "flt", rate=rate)
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)


def read_frames(path: Path, fps: float, part: Part | None = None) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The frames that a video shows at 0, 1 / fps, 2 / fps, ... seconds after its first one, until it ends.

    Gives (time stamp in seconds, uint8 [H, W, 3]): at each time the last frame that is not later, upright. A video of a
    single frame gives that one. A frame of a slow video can come more than once. Pixels are taken as square.

    part  of the video, in seconds after its first frame: frames from the one until the other; None: all of it.

    Raises UnusableError: no picture, no frames, damage, time stamps that jump.
    """
    step = 1 / Fraction(fps).limit_denominator(1000)
    stop: Fraction | None = None
    shown: tuple[Fraction, av.VideoFrame] | None = None
    due = end = offset = Fraction(0)  # offset: the length of what was joined before, where the stamps begin again
    for frame in _decoded(path, "video"):
        assert isinstance(frame, av.VideoFrame)
        if frame.pts is None or frame.time_base is None:
            continue
        time = frame.pts * frame.time_base + offset
        if shown is None:
            due = time + Fraction(part[0] if part else 0)
            stop = time + Fraction(part[1]) if part else None
        elif time < shown[0] - 1:
            offset, time = offset + end - time, end
        end = time + Fraction(frame.duration or 0) * frame.time_base
        if max(time - shown[0] if shown else 0, end - time) > _LONGEST_GAP:
            raise UnusableError("time stamps that jump", f"{path}: a frame is shown for more than {_LONGEST_GAP} s")
        while shown is not None and due < time:
            if stop is not None and due >= stop:
                return
            yield shown[0], _upright(shown[1])
            due += step
        shown = time, frame
    if shown is None:
        raise UnusableError("no frames", path)
    while (due <= shown[0] or due < end) and (stop is None or due < stop):
        yield shown[0], _upright(shown[1])
        due += step


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """A frame as players show it, uint8 [H, W, 3]: turned and mirrored by quarter turns as its display matrix says."""
    picture = frame.to_ndarray(format="rgb24")
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    # a pixel at (x, y) is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(matrix, "=i4")[:5].tolist()
    if abs(b) > abs(a):
        picture, right, down = picture.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def write_frames(path: Path, folder: Path, fps: float, short_side: int | None = None, part: Part | None = None) -> int:
    """Write a video's frames (see `read_frames`) as `folder/frame_00001.jpg`, ...; return their number.

    short_side  frames whose shorter side is longer are resized to it, in pixels; None: as they are.
    part        see `read_frames`.

    Raises UnusableError: there are none; see `read_frames`.
    """
    folder.mkdir()
    number = 0
    for number, (_, picture) in enumerate(read_frames(path, fps, part), start=1):
        write_small(Image.fromarray(picture), folder / f"frame_{number:05d}.jpg", short_side)
    if part is not None and not number:
        raise UnusableError("no frames", f"{path}: {_outside(part)}")
    return number
