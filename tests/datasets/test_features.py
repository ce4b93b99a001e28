"""Features against plain computations in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from datasets.make_media import tone

from mmpareto.datasets import to_device
from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.features import FeatureReader, fbank, stft, write_features
from mmpareto.datasets.media import Sound


def plain_fbank(samples: np.ndarray, rate: int, bins: int = 128) -> np.ndarray:
    """Kaldi's log filter bank with Hann windows, htk_compat, no dither, no energy, in float64: [frames, bins]."""
    samples = samples.astype(np.float64) - samples.mean()
    length, shift = int(rate * 0.025), int(rate * 0.010)
    padded = 1 << (length - 1).bit_length()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))

    def mel(hertz: np.ndarray | float) -> np.ndarray | float:
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    low, high = mel(20.0), mel(rate / 2)
    step = (high - low) / (bins + 1)
    centres = mel(np.arange(padded // 2) * rate / padded)  # the Nyquist bin has no weight in Kaldi
    bank = np.zeros((bins, padded // 2))
    for number in range(bins):
        left, centre, right = (low + (number + k) * step for k in range(3))
        rising, falling = (centres - left) / (centre - left), (right - centres) / (right - centre)
        bank[number] = np.maximum(0, np.minimum(rising, falling))
    rows = []
    for start in range(0, len(samples) - length + 1, shift):
        frame = samples[start : start + length]
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate(([frame[0]], frame[:-1]))
        power = np.abs(np.fft.rfft(frame * window, padded)) ** 2
        rows.append(np.log(np.maximum(bank @ power[:-1], np.finfo(np.float32).eps)))
    return np.array(rows)


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 11025])
def test_fbank_is_kaldis(rate: int) -> None:
    samples = tone(0.8, 440, rate).astype(np.float32)
    features = fbank(Sound(samples[None], rate), None)
    expected = plain_fbank(samples, rate)
    assert features.shape == expected.shape == (len(expected), 128)
    # the library works in float32: relative errors of 1e-7 of a window's power (some 1e3) in bins that hold 1e-3 of it
    # are 1e-1 in the worst bin's power, hence a looser bound for the worst and a tight one for the mean
    assert np.abs(features - expected).mean() < 1e-3
    assert np.abs(features - expected).max() < 0.05


def test_fbank_takes_the_mean_of_channels_and_is_cut() -> None:
    samples = tone(1.0)
    stereo = Sound(np.stack([samples, np.zeros_like(samples)]).astype(np.float32), 16000)
    mono = Sound((samples / 2)[None].astype(np.float32), 16000)
    np.testing.assert_allclose(fbank(stereo), fbank(mono), atol=1e-3)
    assert fbank(mono).shape == (98, 128)  # 1 + (16000 - 400) // 160
    np.testing.assert_allclose(fbank(mono, 20), fbank(mono, None)[:20], atol=1e-3)


@pytest.mark.parametrize("seconds", [0.7, 3.0, 4.5])
def test_stft_is_scipys(seconds: float) -> None:
    samples = tone(seconds, 700, 22050).astype(np.float32)  # at the rate of the features: nothing is resampled
    spectrogram = stft(Sound(samples[None], 22050))
    tiled = np.tile(samples.astype(np.float64), 6)[: 3 * 22050]
    window = scipy.signal.get_window("hann", 512)  # periodic
    padded = np.pad(np.clip(tiled, -1, 1), 256)
    spectra = np.stack([np.fft.rfft(window * padded[s : s + 512]) for s in range(0, len(padded) - 511, 353)], axis=1)
    expected = np.log(np.abs(spectra) + 1e-7)
    assert spectrogram.shape == expected.shape == (257, 188)
    # float32 errors of 1e-7 of a magnitude of 100 beside magnitudes of 1e-3
    np.testing.assert_allclose(spectrogram, expected, atol=0.02)
    assert np.abs(spectrogram - expected).mean() < 1e-4


def test_stft_resamples_to_22050_hz() -> None:
    spectrogram = stft(Sound(tone(3.0, 1000, 16000)[None].astype(np.float32), 16000))
    assert spectrogram.mean(axis=1).argmax() == round(1000 * 512 / 22050)


def test_stored_features_are_exact_to_a_hundredth(tmp_path: Path) -> None:
    sound = Sound(tone(0.5)[None].astype(np.float32), 16000)
    write_features(sound, "fbank", tmp_path / "a.npy")
    stored = np.load(tmp_path / "a.npy")
    assert stored.dtype == np.float16
    assert np.abs(stored.astype(np.float64) - fbank(sound)).max() <= 0.01


def test_a_sound_shorter_than_a_window_is_unusable() -> None:
    with pytest.raises(UnusableError, match="too short"):
        fbank(Sound(np.ones((1, 399), np.float32), 16000))


def test_fbank_features_are_normalised_as_published() -> None:
    modality = FeatureReader("fbank").modality
    stored = torch.full(modality.shape, -4.503877)
    stored[..., 1] += 2 * 5.141276
    moved = to_device({"audio": stored[None]}, {"audio": modality}, torch.device("cpu"))["audio"]
    assert moved[0, 0, 0, :2].tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
