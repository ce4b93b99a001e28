"""Prepare AV-MNIST: spoken digits of FSDD in pink noise, beside MNIST without its leading principal components.

--sound holds <digit>_<speaker>_<n>.wav, in the folder or in recordings/ below it; --image holds MNIST's four idx files,
plain or .gz. Each recording is paired with images of its digit, by chance; no recording and no image is in two splits.

Splits:
  speaker   no speaker is in two splits: the last two by alphabet are test, the one before is validation, or with
            --val_fraction that part of the recordings of the other speakers.
  official  FSDD's own: recordings 0 to 4 of each speaker and digit are test; validation is cut from train. All speakers
            are in all splits.
"""

import argparse
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mmpareto.datasets.avmnist import BINS, FRAMES
from mmpareto.datasets.base import SPLITS, DatasetError, Split, UnusableError
from mmpareto.datasets.cgmnist import mnist_split, raw_files
from mmpareto.datasets.files import write_array
from mmpareto.datasets.in_memory import DIGITS
from mmpareto.datasets.lists import VAL_FRACTION, cut
from mmpareto.datasets.media import is_silent, read_sound
from mmpareto.flag_values import count, decibels, fraction
from mmpareto.preparation.common import PREPARATIONS, Clip, Outcome, add_cut_arguments, samples_of
from mmpareto.preparation.common import prepare as prepare_clips

SOURCES = {"sound": "a clone of the Free Spoken Digit Dataset", "image": "MNIST's idx files"}
TEST_SPEAKERS = 2
OFFICIAL_TEST = 5  # recordings 0 to 4
RATE = 8000  # Hz
WINDOW, HOP = 256, 128  # samples of a spectrogram's frame, and between two frames
LENGTH = (FRAMES - 1) * HOP + WINDOW  # samples: 0.784 s; 97 % of the recordings are shorter
_NAME = re.compile(r"(\d)_([^_]+)_(\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this preparation."""
    parser.add_argument("--split", choices=("speaker", "official"), default="speaker", help="(default: speaker)")
    parser.add_argument(
        "--snr", type=decibels, default=-9.0, metavar="DB", help="of the sounds, with pink noise, in dB (default: -9)"
    )
    parser.add_argument(
        "--removed_energy",
        type=fraction,
        default=0.75,
        metavar="X",
        help="part of the images' variance that goes with the leading principal components (default: 0.75)",
    )
    parser.add_argument(
        "--pairs", type=count, default=4, metavar="N", help="of each recording, each with its own image and noise "
        "(default: 4)",
    )  # fmt: skip
    add_cut_arguments(
        parser,
        f"of train, as validation (default: a speaker; {VAL_FRACTION} for --split official)",
    )


@PREPARATIONS.register("avmnist", summary="AV-MNIST, from FSDD and MNIST")
def prepare(args: argparse.Namespace) -> Outcome:
    """Prepare the dataset as the flags say; a split's pairs share a file for each modality."""
    splits = recordings(args.sound, args.split, args.val_fraction, args.split_seed)
    # all splits' recordings and images are read before any work: the arrays of a split are made as a whole
    for path in (path for paths in splits.values() for path in paths):
        try:
            waveform(path)
        except UnusableError as error:
            raise DatasetError(f"{error}; fetch the file again, or delete it") from error
    mnist_split(args.image, "test", download=False)
    source, images = {"sound": args.sound, "image": args.image}, raw_files(args.image)
    clips = [Clip(split, split, "", source, raw=[*splits[split], *images]) for split in SPLITS]
    parameters = {
        "split": args.split,
        "val_fraction": args.val_fraction,
        "split_seed": args.split_seed,
        "snr": args.snr,
        "removed_energy": args.removed_energy,
        "pairs": args.pairs,
    }
    return prepare_clips(
        args.output,
        name="avmnist",
        clips=clips,
        classes=DIGITS,
        modalities={"sound": ".npy", "image": ".npy", "label": ".npy"},
        make=functools.partial(make, splits=splits, snr=args.snr, removed_energy=args.removed_energy, pairs=args.pairs),
        parameters=parameters,
        workers=min(args.workers, len(clips)),
        tools=("av", "numpy", "scikit-learn", "torchaudio"),
        sources=(args.sound, args.image),
        members=functools.partial(samples_of, output=args.output),
    )


def recordings(source: Path, split: str, val_fraction: float | None, seed: int) -> dict[Split, list[Path]]:
    """FSDD's recordings by split, in the order of their names.

    Raises:
        DatasetError: where there are none, or too few speakers.
    """
    folder = source / "recordings" if (source / "recordings").is_dir() else source
    matches = {path: match for path in sorted(folder.glob("*.wav")) if (match := _NAME.fullmatch(path.stem))}
    if not matches:
        raise DatasetError(f"{folder} holds no recordings named as FSDD names them, such as 0_jackson_0.wav")
    what = f"{folder}: validation"
    if split == "official":
        test = [path for path, match in matches.items() if int(match[3]) < OFFICIAL_TEST]
        part = VAL_FRACTION if val_fraction is None else val_fraction
        train, val = _cut([path for path in matches if path not in set(test)], part, seed, what)
        return {"train": train, "val": val, "test": test}
    speakers = sorted({match[2] for match in matches.values()})
    if len(speakers) < TEST_SPEAKERS + 2:
        raise DatasetError(f"--split speaker needs at least {TEST_SPEAKERS + 2} speakers, found {len(speakers)}")
    by_speaker = {speaker: [path for path, match in matches.items() if match[2] == speaker] for speaker in speakers}
    others, test = speakers[:-TEST_SPEAKERS], [path for name in speakers[-TEST_SPEAKERS:] for path in by_speaker[name]]
    if val_fraction is None:
        train, val = [path for name in others[:-1] for path in by_speaker[name]], by_speaker[others[-1]]
    else:
        train, val = _cut([path for name in others for path in by_speaker[name]], val_fraction, seed, what)
    return {"train": train, "val": val, "test": test}


def _cut(paths: list[Path], part: float, seed: int, what: str) -> tuple[list[Path], list[Path]]:
    return cut(paths, [path.stem[0] for path in paths], part, seed, what)


def make(
    clip: Clip,
    folder: Path,
    *,
    splits: Mapping[Split, Sequence[Path]],
    snr: float,
    removed_energy: float,
    pairs: int,
) -> None:
    """Write the arrays of one split: float16 [N, 1, 48, 32] and [N, 1, 28, 28], labels int64 [N]."""
    random = np.random.default_rng([0, SPLITS.index(clip.split)])
    paths = [path for path in splits[clip.split] for _ in range(pairs)]
    labels = np.array([int(path.stem[0]) for path in paths])
    sounds = np.stack([spectrogram(in_noise(waveform(path), snr, random)) for path in paths])
    images, digits, _ = mnist_split(clip.source["image"], clip.split, download=False)
    chosen = _images_of(labels, digits, random)
    train, _, _ = mnist_split(clip.source["image"], "train", download=False)
    hard = without_leading_components(train, images[chosen], removed_energy)
    write_array(folder / "sound.npy", sounds[:, None].astype(np.float16))
    write_array(folder / "image.npy", hard[:, None].astype(np.float16))
    write_array(folder / "label.npy", labels)


def _images_of(labels: np.ndarray, digits: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each of N labels an image of that digit, int64 [N]; none comes twice while there are others."""
    chosen = np.empty(len(labels), np.int64)
    for digit in np.unique(labels):
        places, available = np.flatnonzero(labels == digit), np.flatnonzero(digits == digit)
        if not len(available):
            raise UnusableError("no image", f"MNIST holds no digit {digit}")
        rounds = [random.permutation(available) for _ in range(-(-len(places) // len(available)))]
        chosen[places] = np.concatenate(rounds)[: len(places)]
    return chosen


def waveform(path: Path) -> np.ndarray:
    """A recording, float32 [<= LENGTH], its mean subtracted; longer ones are cut.

    Raises UnusableError where it cannot be read, is silent, or has another rate than FSDD's.
    """
    sound = read_sound(path)
    if sound.rate != RATE:
        raise UnusableError("another sample rate", f"{path}: {sound.rate} Hz, expected {RATE}")
    samples = sound.mono()[:LENGTH]
    if is_silent(samples):
        raise UnusableError("silent sound", f"{path}: its first {LENGTH / RATE:g} s have one value")
    return samples - samples.mean()


def in_noise(samples: np.ndarray, snr: float, random: np.random.Generator) -> np.ndarray:
    """A sound in the middle of pink noise whose power is `snr` dB below that of the sound; float32 [LENGTH]."""
    frequencies = np.fft.rfftfreq(LENGTH)
    spectrum = np.fft.rfft(random.standard_normal(LENGTH))
    spectrum[1:] /= np.sqrt(frequencies[1:])
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, LENGTH)
    noise *= np.sqrt(np.mean(samples**2) / np.mean(noise**2) / 10 ** (snr / 10))
    start = (LENGTH - len(samples)) // 2
    noise[start : start + len(samples)] += samples
    return noise.astype(np.float32)


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram of LENGTH samples, float32 [48, 32], with mean 0 and deviation 1."""
    from torchaudio.compliance import kaldi

    features = kaldi.fbank(
        torch.from_numpy(samples)[None],
        sample_frequency=float(RATE),
        frame_length=1000 * WINDOW / RATE,
        frame_shift=1000 * HOP / RATE,
        num_mel_bins=BINS,
        window_type="hanning",
        use_energy=False,
        dither=0.0,
    ).numpy()
    return (features - features.mean()) / features.std()


def without_leading_components(train: np.ndarray, images: np.ndarray, energy: float) -> np.ndarray:
    """Remove the leading principal components of the training images up to a part of their variance.

    Args:
        train: uint8 [M, 28, 28], whose mean and components are taken.
        images: uint8 [N, 28, 28].
        energy: 0 .. 1; the components are the fewest that hold that part of the variance.

    Returns:
        float32 [N, 28, 28], in units of white, the mean image subtracted.
    """
    flat = train.reshape(len(train), -1).astype(np.float64) / 255
    mean = flat.mean(0)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    share = np.cumsum(values[::-1]) / values.sum()
    leading = vectors[:, ::-1][:, : np.searchsorted(share, energy) + 1] if energy else vectors[:, :0]
    centred = images.reshape(len(images), -1) / 255 - mean
    return (centred - centred @ leading @ leading.T).reshape(images.shape).astype(np.float32)
