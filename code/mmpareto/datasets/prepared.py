"""Reads a prepared dataset's splits, and lays out the readers of sounds that its datasets share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpareto.datasets.base import DatasetError, Modality, Split
from mmpareto.datasets.clips import ArrayReader, FramesReader, Reader, spectrogram_reader
from mmpareto.datasets.features import (
    FBANK_FRAMES,
    FBANK_MEAN,
    FBANK_STD,
    MEL_BINS,
    STFT_SHAPE,
    AudioFeatures,
    fbank,
    stft,
)
from mmpareto.datasets.files import hint
from mmpareto.datasets.items import Items
from mmpareto.datasets.lists import check_classes, check_ids, read_rows
from mmpareto.datasets.media import read_sound
from mmpareto.datasets.preparation import UnusableError, read_description

_STFT_RANGE = (-17.0, 10.0)  # log(1e-7) is -16.1; the greatest magnitude of 512 samples of full scale is below e^6


def audio_visual_readers(audio_features: AudioFeatures, frames: int, image_size: int) -> dict[str, Reader]:
    """Readers of `audio` ([1, 1024, 128] for fbank, [1, 257, 188] for stft) and `visual` [frames, 3, size, size]."""
    return {"audio": audio_reader(audio_features), "visual": FramesReader(frames, image_size)}


def audio_reader(audio_features: AudioFeatures, frames: int = FBANK_FRAMES) -> ArrayReader:
    """The reader of a sound's features as `features.write_features` leaves them; `frames` is the L of fbank."""
    if audio_features == "fbank":
        return spectrogram_reader(frames, MEL_BINS, FBANK_MEAN, FBANK_STD)
    if audio_features == "stft":
        return ArrayReader(Modality("spectrogram", (1, *STFT_SHAPE)), limits=_STFT_RANGE)
    raise DatasetError(f"audio_features must be fbank or stft, found {audio_features!r}")


class SoundReader:
    """Features of sound files, computed when they are read.

    features  fbank or stft.
    frames    length L of fbank features: longer sounds are cut, shorter ones padded.
    """

    def __init__(self, features: AudioFeatures, frames: int = FBANK_FRAMES) -> None:
        self.features = features
        self._stored = audio_reader(features, frames)

    @property
    def modality(self) -> Modality:
        """That of the features."""
        return self._stored.modality

    def read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """float32 [1, L, 128] or [1, 257, 188]."""
        del generator  # nothing is augmented
        _, length, bins = self.modality.shape
        try:
            sound = read_sound(path)
            array = torch.from_numpy(fbank(sound, length) if self.features == "fbank" else stft(sound))
        except UnusableError as error:
            raise DatasetError(f"{error.reason}: {error.detail or path}") from error
        return torch.cat([array, array.new_zeros(length - len(array), bins)])[None]

    def check(self, path: Path) -> None:
        """Decodes the sound."""
        self.read(path, None)


def read_split(root: Path, name: str, split: Split, parameters: Mapping[str, Any], classes: Sequence[str]) -> Items:
    """The clips of one split of a prepared dataset; its file is read once, as long as it stays as it is.

    Raises DatasetError where the folder is not prepared, or with other parameters, or its split names unknown classes.
    """
    description = read_description(root, name, parameters)
    suffixes: dict[str, str] = description["modalities"]
    file = root / "splits" / f"{split}.csv"
    version: tuple[int, ...] = ()  # of a file that is not there: reading it says so
    with contextlib.suppress(OSError):
        state = file.stat()
        version = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return _read_rows(root, file, tuple(suffixes.items()), tuple(classes), version)


@functools.lru_cache(maxsize=3)  # each split of a manifest asks for the training clips too
def _read_rows(
    root: Path, file: Path, suffixes: tuple[tuple[str, str], ...], classes: tuple[str, ...], version: tuple[int, ...]
) -> Items:
    """The clips of a split's file, checked."""
    del version  # of the file: another one is read again
    header, *rows = read_rows(file)
    if header[:2] != ["id", "label"]:
        raise DatasetError(f"{file}: expected the header id,label, found {','.join(header)}")
    if any(len(row) != len(header) for row in rows):
        raise DatasetError(f"{file}: expected {','.join(header)} in each line")
    check_ids([row[0] for row in rows], file)
    check_classes([row[1] for row in rows], classes, file)
    places = [(f"{modality}/", suffix) for modality, suffix in suffixes]
    paths = (
        (identifier, label, *(folder + identifier + suffix for folder, suffix in places))
        for identifier, label, *_ in rows
    )
    return Items(root, [modality for modality, _ in suffixes], paths)


def needs_root(root: Path | None, name: str) -> Path:
    """`root`; DatasetError where it is None or no folder."""
    if root is None:
        raise DatasetError(f"{name}: give the folder of the data with --data_root")
    if not root.is_dir():
        raise DatasetError(
            f"{name}: the folder {root} is missing{hint(root)}; data/{name}/README.md says how to make it"
        )
    return root
