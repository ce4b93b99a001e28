"""Reads damaged files in one process, as train.py and prepare.py read them; see test_fuzzing.py.

    python fuzzed.py SECONDS FILE ...

Prints two lines for each file: its name before it is read, then "refused: ..." or the digest of what was read. A file
that takes longer than SECONDS ends the process.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmpareto.arguments import saved_config
from mmpareto.datasets import DatasetError
from mmpareto.datasets.arrays import load_array
from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.features import fbank
from mmpareto.datasets.images import read_image
from mmpareto.datasets.manifest import array_modality
from mmpareto.datasets.manifest_file import read_manifest
from mmpareto.datasets.media import read_frames, read_sound
from mmpareto.datasets.readers import ArrayReader
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.checkpoints import load_checkpoint


def sound(path: Path) -> Any:
    """The samples; its features are finite."""
    samples = read_sound(path)
    assert np.isfinite(samples.samples).all()
    assert np.isfinite(fbank(samples, 64)).all()
    return samples.samples


def video(path: Path) -> Any:
    """The frames at 2 a second, and the sound."""
    frames = [frame for _, frame in read_frames(path, 2)]
    assert all(frame.dtype == np.uint8 and frame.ndim == 3 for frame in frames)
    return [*frames, sound(path)]


def image(path: Path) -> Any:
    """The pixels."""
    pixels = read_image(path)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    return pixels


def array(path: Path) -> Any:
    """The numbers, after the checks of the first run: finite, of a shape that a modality can have."""
    ArrayReader(array_modality(path)).check(path)
    return load_array(path)


def manifest(path: Path) -> Any:
    """The clips of a manifest, files that are missing passed over."""
    listed = read_manifest(path.parent, missing_ok=True)
    return repr(listed).replace(str(path.parent), "")


def config(path: Path) -> Any:
    """The options of a run."""
    return repr(saved_config(RunDirectory(path.parent)))


def checkpoint(path: Path) -> Any:
    """All values of a checkpoint."""
    return load_checkpoint(path, torch.device("cpu"), ("model", "epoch"))


READERS: dict[str, Callable[[Path], Any]] = {
    ".wav": sound,
    ".mp3": sound,
    ".mp4": video,
    ".png": image,
    ".jpg": image,
    ".npy": array,
    "array.pt": array,
    "manifest.csv": manifest,
    "config.yaml": config,
    "last.pt": checkpoint,
}


def digest(value: Any) -> str:
    """The same for the same values."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor | np.ndarray):
            part = torch.as_tensor(part).contiguous()
            sha.update(f"{part.dtype} {list(part.shape)}".encode())
            sha.update(part.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict | list | tuple):
            sha.update(f"{type(part).__name__} {len(part)}".encode())
            for inner in part.items() if isinstance(part, dict) else part:
                add(inner)
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()


def main(seconds: float, paths: list[Path]) -> None:
    """Reads each file."""
    for path in paths:
        print(path, flush=True)
        faulthandler.dump_traceback_later(seconds, exit=True)
        reader = next(reader for end, reader in READERS.items() if path.name.endswith(end))
        try:
            print("read:", digest(reader(path)), flush=True)
        except (DatasetError, UnusableError, RunError) as error:
            print("refused:", json.dumps(str(error)), flush=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(float(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
