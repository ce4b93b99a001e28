"""Small media files in the formats of the datasets, made with PyAV and the standard library."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """16-bit .wav of float samples in -1 .. 1, [N] or [N, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return path


def tone(seconds: float = 1.0, frequency: float = 440.0, rate: int = 16000) -> np.ndarray:
    """A sine with a little noise, [N]."""
    times = np.arange(int(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * frequency * times) + 0.01 * np.random.default_rng(0).normal(size=len(times))


def write_video(
    path: Path,
    frames: int = 30,
    fps: int | Fraction = 10,
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    rate: int = 16000,
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1),
    picture: np.ndarray | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A video whose frame k is a uniform gray of brightness 7 k + 16 (modulo 240); `sound` [N] is its track.

    matrix   (a, b, c, d): players show the pixel (x, y) at (a x + c y, b x + d y).
    picture  uint8 [H, W, 3], shown instead in each frame.
    options  of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if matrix != (1, 0, 0, 1):
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        track = None
        if sound is not None:
            track = container.add_stream(sound_codec, rate=rate)
            track.layout = "mono"
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), brightness(number), dtype=np.uint8)
            shown = shade if picture is None else picture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
        if track is not None and sound is not None:
            encode(container, track, sound)
    return path


def encode(container: Any, track: Any, samples: np.ndarray) -> None:
    """Encodes float samples in -1 .. 1, [N] or [N, channels], as the whole of a sound track."""
    blocks = np.atleast_2d(samples.T).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(blocks), format="fltp", layout=track.layout.name)
    frame.sample_rate = track.rate
    frame.pts = 0
    resampler = av.AudioResampler(track.format.name, track.layout.name, track.rate, track.frame_size or None)
    for converted in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(track.encode(converted))
    container.mux(track.encode())


def write_sound(
    path: Path, samples: np.ndarray, codec: str, rate: int = 44100, options: dict[str, str] | None = None
) -> Path:
    """A sound file of float samples in -1 .. 1, [N] or [N, 2]; `options` are those of the container."""
    with av.open(str(path), "w", options=options or {}) as container:
        track: Any = container.add_stream(codec, rate=rate)
        track.layout = "mono" if samples.ndim == 1 else "stereo"
        if codec == "libmp3lame":
            track.options = {"q:a": "4", "compression_level": "9"}
        encode(container, track, samples)
    return path


def write_tracks(path: Path, sounds: list[np.ndarray], default: int | None, rate: int = 16000) -> Path:
    """A file of several AAC tracks, one of which is marked as the default one (None: each as the format marks it)."""
    with av.open(str(path), "w") as container:
        tracks: list[Any] = [container.add_stream("aac", rate=rate) for _ in sounds]
        for number, (track, samples) in enumerate(zip(tracks, sounds, strict=True)):
            track.layout = "mono" if samples.ndim == 1 else "stereo"
            if default is not None:
                track.disposition = Disposition.default if number == default else 0
        for track, samples in zip(tracks, sounds, strict=True):
            encode(container, track, samples)
    return path


def brightness(number: int) -> int:
    """Of frame `number` of `write_video`."""
    return (7 * number + 16) % 240


def write_frames(folder: Path, names: list[str], seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """A folder of random frames with these names, written in this order."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(random.integers(0, 255, (*size[::-1], 3)).astype(np.uint8)).save(folder / name)
    return folder


def side_cars(root: Path) -> None:
    """What macOS leaves on other file systems and in archives: ._name beside each file, .DS_Store and __MACOSX."""
    content = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02".ljust(4096, b"\x00")
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(content)
        (path.parent / ".DS_Store").write_bytes(content)
        copy = root / "__MACOSX" / path.relative_to(root).with_name(f"._{path.name}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)


def lfs_pointer(path: Path) -> Path:
    """What git leaves in place of a file that git-lfs has not fetched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n")
    return path
