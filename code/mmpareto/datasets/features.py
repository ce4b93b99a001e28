"""Features of sounds: Kaldi's log filter bank (`fbank`) and log-magnitude spectra (`stft`).

Shapes: L audio frames, M mel bins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mmpareto.datasets.media import Sound
from mmpareto.datasets.preparation import UnusableError

AudioFeatures = Literal["fbank", "stft"]

MEL_BINS = 128
FBANK_FRAMES = 1024  # L: 10.24 s at 10 ms a frame
# (x + 4.503877) / (2 * 5.141276), the recipe for MMPareto's features; applied on the device
FBANK_MEAN, FBANK_STD = -4.503877, 2 * 5.141276
STFT_SHAPE = (257, 188)
_STFT_RATE, _STFT_SECONDS, _STFT_WINDOW, _STFT_HOP = 22050, 3, 512, 353
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
    import torch
    from torchaudio.compliance import kaldi

    waveform = torch.from_numpy(sound.mono())
    if len(waveform) < WINDOW_SECONDS * sound.rate:
        raise UnusableError("sound too short", f"{len(waveform)} samples at {sound.rate} Hz, under 25 ms")
    if frames is not None:  # no further than the last window reaches; the mean is that of the whole
        waveform = (waveform - waveform.mean())[: int((frames * SHIFT_SECONDS + 0.1) * sound.rate)]
    else:
        waveform = waveform - waveform.mean()
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
    import librosa

    wave = librosa.resample(sound.mono(), orig_sr=sound.rate, target_sr=_STFT_RATE)
    length = _STFT_RATE * _STFT_SECONDS
    wave = np.clip(np.tile(wave, -(-length // len(wave)))[:length], -1.0, 1.0)
    return np.log(np.abs(librosa.stft(wave, n_fft=_STFT_WINDOW, hop_length=_STFT_HOP)) + 1e-7)


def write_features(sound: Sound, kind: AudioFeatures, path: Path, frames: int | None = FBANK_FRAMES) -> None:
    """Writes a sound's features as .npy in float16; `frames` cuts fbank, see there.

    Their values lie between -17 and 25, where float16 is exact to 0.01, a thousandth of the spread that the
    normalisation divides by. `fbank` is stored without padding: a CREMA-D clip takes 65 kB, not 512.
    """
    features = fbank(sound, frames) if kind == "fbank" else stft(sound)
    np.save(path, features.astype(np.float16), allow_pickle=False)
