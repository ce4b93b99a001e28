"""Small media files in the formats of the datasets, made with PyAV and the standard library."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
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
    rate: int = 16000,
) -> Path:
    """A video whose frame k is a uniform gray of brightness 7 k + 16 (modulo 240); `sound` [N] is its track."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        track = None
        if sound is not None:
            track = container.add_stream("aac", rate=rate)
            track.layout = "mono"
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), brightness(number), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        if track is not None and sound is not None:
            block = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
            block.sample_rate = rate
            block.pts = 0
            container.mux(track.encode(block))
            container.mux(track.encode())
    return path


def brightness(number: int) -> int:
    """Of frame `number` of `write_video`."""
    return (7 * number + 16) % 240


def write_frames(folder: Path, names: list[str], seed: int = 0) -> Path:
    """A folder of small random JPEG frames with these names, written in this order."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(random.integers(0, 255, (30, 40, 3)).astype(np.uint8)).save(folder / name)
    return folder


def lfs_pointer(path: Path) -> Path:
    """What git leaves in place of a file that git-lfs has not fetched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n")
    return path
