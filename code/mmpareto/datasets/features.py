"""Features of sounds, and their readers: Kaldi's log filter bank (`fbank`) and log-magnitude spectra (`stft`).

Shapes: L audio frames, M mel bins.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmpareto.datasets.arrays import ARRAY_SUFFIXES
from mmpareto.datasets.base import DatasetError, Modality, UnusableError, say
from mmpareto.datasets.files import write_array
from mmpareto.datasets.readers import LOG_RANGE, ArrayReader, FramesReader, Reader

if TYPE_CHECKING:
    from mmpareto.datasets.media import Sound

AudioFeatures = Literal["fbank", "stft"]

MEL_BINS = 128
FBANK_FRAMES = 1024  # L: 10.24 s at 10 ms a frame
# (x + 4.503877) / (2 * 5.141276), the recipe for MMPareto's features; applied on the device
FBANK_MEAN, FBANK_STD = -4.503877, 2 * 5.141276
STFT_SHAPE = (257, 188)
# log(1e-7) is -16.1; the greatest magnitude of 512 samples of full scale is below e^6
_STFT_RANGE = (-17.0, 10.0)
_STFT_RATE, _STFT_SECONDS, _STFT_WINDOW, _STFT_HOP = 22050, 3, 512, 353
_LOOKED_AT = 50  # sounds
WINDOW_SECONDS, SHIFT_SECONDS = 0.025, 0.010  # of fbank features


def fbank_frames(samples: int, rate: int) -> int:
    """L of the filter bank of a sound with so many samples a channel; 0 where it is shorter than one window."""
    window, shift = (int(rate * 1000 * seconds * 0.001) for seconds in (WINDOW_SECONDS, SHIFT_SECONDS))  # as Kaldi
    return max(1 + (samples - window) // shift, 0)


def fbank(sound: Sound, frames: int | None = FBANK_FRAMES) -> np.ndarray:
    """Log filter bank of a sound at its own rate, as MMPareto's features are made: float32 [<= frames, 128].

    The mean is subtracted; then Kaldi's filter bank with htk_compat, Hann windows of 25 ms every 10 ms, 128 mel bins,
    no dither. Cut to `frames` (None: not cut), not padded, not normalised.

    Raises UnusableError where the sound is shorter than one window.
    """
    from torchaudio.compliance import kaldi

    waveform = torch.from_numpy(sound.mono())
    if len(waveform) < WINDOW_SECONDS * sound.rate:
        raise UnusableError("sound too short", f"{len(waveform)} samples at {sound.rate} Hz, under 25 ms")
    waveform = waveform - waveform.mean()
    if frames is not None:  # no further than the last window reaches; the mean is that of the whole
        waveform = waveform[: int((frames * SHIFT_SECONDS + 0.1) * sound.rate)]
    features = kaldi.fbank(
        waveform[None],
        htk_compat=True,
        sample_frequency=float(sound.rate),
        use_energy=False,
        window_type="hanning",
        num_mel_bins=MEL_BINS,
        dither=0.0,
        frame_shift=1000 * SHIFT_SECONDS,
    )
    return features[:frames].numpy()


def stft(sound: Sound) -> np.ndarray:
    """Log-magnitude spectra as OGM-GE's features are made: float32 [257, 188].

    Mono at 22,050 Hz, repeated to 3 s (longer ones are cut), clipped to -1 .. 1, STFT with windows of 512 and hops of
    353, log(|S| + 1e-7).
    """
    import soxr

    wave = sound.mono()
    if sound.rate != _STFT_RATE:
        length = math.ceil(len(wave) * _STFT_RATE / sound.rate)
        wave = soxr.resample(wave, sound.rate, _STFT_RATE)
        wave = np.pad(wave, (0, max(length - len(wave), 0)))[:length]  # as librosa, which made OGM-GE's features
    length = _STFT_RATE * _STFT_SECONDS
    wave = np.clip(np.tile(wave, -(-length // len(wave)))[:length], -1.0, 1.0)
    spectra = torch.stft(
        torch.from_numpy(wave),
        _STFT_WINDOW,
        _STFT_HOP,
        window=torch.hann_window(_STFT_WINDOW),
        pad_mode="constant",
        return_complex=True,
    )
    return torch.log(spectra.abs() + 1e-7).numpy()


def write_features(sound: Sound, kind: AudioFeatures, path: Path, frames: int | None = FBANK_FRAMES) -> None:
    """Write a sound's features as .npy in float16; `frames` cuts fbank, see there.

    Their values lie between -17 and 25, where float16 is exact to 0.01, a thousandth of the spread that the
    normalisation divides by. `fbank` is stored without padding: a CREMA-D clip takes 65 kB, not 512.
    """
    features = fbank(sound, frames) if kind == "fbank" else stft(sound)
    write_array(path, features.astype(np.float16))


def audio_visual_readers(audio_features: AudioFeatures, frames: int, image_size: int) -> dict[str, Reader]:
    """Readers of `audio` ([1, 1024, 128] for fbank, [1, 257, 188] for stft) and `visual` [frames, 3, size, size]."""
    return {"audio": FeatureReader(audio_features), "visual": FramesReader(frames, image_size)}


class FeatureReader(ArrayReader):
    """Features that `write_features` stored.

    features  fbank or stft.
    frames    length L of fbank features: longer ones are cut, shorter ones padded.
    """

    def __init__(self, features: AudioFeatures, frames: int = FBANK_FRAMES) -> None:
        self.features = features
        if features not in ("fbank", "stft"):
            raise DatasetError(f"audio_features must be fbank or stft, found {features!r}")
        if features == "fbank":
            modality = Modality("spectrogram", (1, frames, MEL_BINS), (FBANK_MEAN,), (FBANK_STD,))
            super().__init__(modality, padded=True, limits=LOG_RANGE)
        else:
            super().__init__(Modality("spectrogram", (1, *STFT_SHAPE)), limits=_STFT_RANGE)

    def saved(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"reader": "sound", "features": self.features, "stored": True}


class SoundReader:
    """Features of sound files, computed when they are read.

    features  fbank or stft.
    frames    length L of fbank features: longer sounds are cut, shorter ones padded.
    stored    round to float16, as features are that `write_features` stored.
    trained   {rate in Hz: number} of the sounds that a run was trained on: others are warned of; None: not known.

    It reads stored features (.npy, .pt), too. The mel bins of fbank reach half the rate of each sound: its features
    differ at another rate. Those of stft do not.
    """

    def __init__(
        self,
        features: AudioFeatures,
        frames: int = FBANK_FRAMES,
        stored: bool = False,
        trained: Mapping[int, int] | None = None,
    ) -> None:
        self.features, self.stored = features, stored
        self._arrays = FeatureReader(features, frames)
        self.modality = self._arrays.modality
        self._trained = dict(trained or {}) if features == "fbank" else {}
        self._rates: list[int] = []  # of the sounds that were checked, or looked at
        self._warned: dict[int, Path] = {}

    def read(self, path: Path, generator: torch.Generator | None) -> Tensor:
        """[1, L, 128] or [1, 257, 188]; float32, float16 where it is stored."""
        if path.suffix.lower() in ARRAY_SUFFIXES:
            return self._arrays.read(path, generator)
        from mmpareto.datasets.media import read_sound  # PyAV takes 0.2 s to import

        sound = read_sound(path)
        if self._trained and sound.rate not in self._trained and self._warned.setdefault(sound.rate, path) is path:
            usual = max(self._trained, key=lambda rate: self._trained[rate])
            say(
                f"{path}: a sound of {sound.rate} Hz, and the run was trained on sounds of "
                f"{' and '.join(f'{rate} Hz' for rate in sorted(self._trained))}, whose features differ: resample "
                f"sounds of {sound.rate} Hz first (ffmpeg -i SOUND -ar {usual} RESAMPLED.wav)"
            )
        return self._features(sound)

    def _features(self, sound: Sound) -> Tensor:
        _, length, bins = self.modality.shape
        array = torch.from_numpy(fbank(sound, length) if self.features == "fbank" else stft(sound))
        array = torch.cat([array, array.new_zeros(length - len(array), bins)])[None]
        return array.half() if self.stored else array

    def check(self, path: Path) -> None:
        """Decode the sound, and note its rate."""
        if path.suffix.lower() in ARRAY_SUFFIXES:
            self._arrays.read(path, None)
            return
        from mmpareto.datasets.media import read_sound

        sound = read_sound(path)
        self._features(sound)
        self._rates.append(sound.rate)

    def look_at(self, paths: Sequence[Path]) -> None:
        """Note the rates of some sounds where the check noted none, because it was done before."""
        from mmpareto.datasets.media import rate_of

        if self._rates or self.features != "fbank":
            return
        for path in paths[:: max(1, len(paths) // _LOOKED_AT)]:
            if path.suffix.lower() not in ARRAY_SUFFIXES:
                with contextlib.suppress(UnusableError):
                    self._rates.append(rate_of(path))

    def saved(self) -> dict[str, Any]:
        """See `Reader`; with {rate: number} of the sounds that were checked or looked at."""
        saved: dict[str, Any] = {"reader": "sound", "features": self.features, "stored": self.stored}
        if self._rates and self.features == "fbank":
            saved["rates"] = {str(rate): number for rate, number in sorted(Counter(self._rates).items())}
        return saved
