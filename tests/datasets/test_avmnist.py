"""AV-MNIST: pairs of one digit, disjoint splits, noise and removed energy as asked for, from raw files to arrays."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_media import write_wav
from datasets.real import real
from datasets.test_cgmnist import write_mnist
from entries.command import inside, refused

from mmpareto import datasets
from mmpareto.cli import prepare
from mmpareto.datasets import SPLITS, DatasetError
from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.cgmnist import mnist_split
from mmpareto.datasets.in_memory import InMemoryImages
from mmpareto.preparation.avmnist import LENGTH, RATE, in_noise, recordings, waveform, without_leading_components

SPEAKERS = ("anna", "ben", "carl", "dora")


def write_spoken_digits(root: Path, takes: int) -> None:
    """Four speakers who say each digit a few times, as a tone of the digit."""
    seconds = np.arange(2000) / RATE
    for digit in range(10):
        for number, speaker in enumerate(SPEAKERS):
            for take in range(takes):
                wave = np.sin(2 * np.pi * (300 + 250 * digit + 10 * number + take) * seconds)
                write_wav(root / "recordings" / f"{digit}_{speaker}_{take}.wav", wave, RATE)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken digits, and a small MNIST."""
    root = tmp_path_factory.mktemp("av")
    write_spoken_digits(root / "fsdd", takes=1)
    write_mnist(root / "mnist")
    return root


def prepared(raw: Path, output: Path, *flags: str) -> dict[str, InMemoryImages]:
    common = ("--sound", raw / "fsdd", "--image", raw / "mnist", "--output", output, "--workers", "1")
    done = inside(prepare.main, "avmnist", *common, *flags)
    assert done.returncode == 0, done.stderr
    parts = {split: datasets.build("avmnist", output, split) for split in SPLITS}
    assert all(isinstance(part, InMemoryImages) for part in parts.values())
    return parts  # type: ignore[return-value]


@pytest.fixture(scope="module")
def arrays(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset; copy it before a change."""
    output = tmp_path_factory.mktemp("arrays") / "avmnist"
    prepared(raw, output, "--pairs", "2")
    return output


def test_the_pairs_of_the_splits(raw: Path, arrays: Path, tmp_path: Path) -> None:
    parts = prepared(raw, tmp_path, "--pairs", "2")
    assert {split: len(part) for split, part in parts.items()} == {"train": 20, "val": 20, "test": 40}
    for part in parts.values():
        assert np.bincount(part.labels).tolist() == [len(part) // 10] * 10
        batch = part.__getitems__([0, 1])
        assert batch["inputs"]["sound"].shape == (2, 1, 48, 32)
        assert batch["inputs"]["image"].shape == (2, 1, 28, 28)
        assert not torch.equal(batch["inputs"]["sound"][0], batch["inputs"]["sound"][1])  # another noise
    for path in sorted(tmp_path.rglob("*.npy")):
        assert path.read_bytes() == (arrays / path.relative_to(tmp_path)).read_bytes()


def test_images_are_of_the_sounds_digit(raw: Path, tmp_path: Path) -> None:
    """Where nothing is removed, they are MNIST's own."""
    parts = prepared(raw, tmp_path, "--removed_energy", "0", "--pairs", "1")
    train, _, _ = mnist_split(raw / "mnist", "train", False)
    images, labels, _ = mnist_split(raw / "mnist", "test", False)
    centred = torch.from_numpy((images / 255 - train.mean(0) / 255).reshape(len(images), -1))
    distances = torch.cdist(parts["test"].images["image"].double().flatten(1), centred)
    assert distances.min(1).values.max() < 0.02  # float16
    assert np.array_equal(labels[distances.argmin(1)], parts["test"].labels)


def test_speakers_are_in_one_split(tmp_path: Path) -> None:
    """Of seven takes of each digit; the names alone are read."""
    (tmp_path / "recordings").mkdir()
    for digit, speaker, take in itertools.product(range(10), SPEAKERS, range(7)):
        (tmp_path / "recordings" / f"{digit}_{speaker}_{take}.wav").touch()

    def who(paths: list[Path]) -> set[str]:
        return {path.stem.split("_")[1] for path in paths}

    by_speaker = recordings(tmp_path, "speaker", None, 0)
    assert {split: who(paths) for split, paths in by_speaker.items()} == {
        "train": {"anna"},
        "val": {"ben"},
        "test": {"carl", "dora"},
    }
    cut = recordings(tmp_path, "speaker", 0.2, 0)
    assert {split: who(paths) for split, paths in cut.items()} == {
        "train": {"anna", "ben"},
        "val": {"anna", "ben"},
        "test": {"carl", "dora"},
    }
    official = recordings(tmp_path / "recordings", "official", None, 0)
    assert {path.stem.split("_")[2] for path in official["test"]} == set("01234")
    assert {path.stem.split("_")[2] for part in ("train", "val") for path in official[part]} == set("56")
    for splits in (by_speaker, cut, official):
        together = [path for paths in splits.values() for path in paths]
        assert len(together) == len(set(together)) == 280


def test_no_part_for_validation_is_one_recording_of_each_digit(tmp_path: Path) -> None:
    for digit in range(10):
        for take in range(25):
            (tmp_path / f"{digit}_anna_{take}.wav").touch()
    sizes = {part: len(recordings(tmp_path, "official", part, 0)["val"]) for part in (None, 0.0, 0.1, 0.2)}
    assert sizes == {None: 20, 0.0: 10, 0.1: 20, 0.2: 40}


def test_a_recording_that_begins_with_silence_is_refused(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "0_anna_0.wav", np.append(np.full(LENGTH, 0.25), np.sin(np.arange(500))), RATE)
    with pytest.raises(UnusableError, match=r"silent sound.*0_anna_0\.wav: its first 0\.784 s have one value"):
        waveform(sound)


@pytest.mark.parametrize("snr", [-9.0, 0.0, 20.0])
def test_noise_has_its_power_and_falls_by_3_db_an_octave(snr: float) -> None:
    tone = np.sin(np.arange(LENGTH, dtype=np.float32))
    noise = in_noise(tone, snr, np.random.default_rng(0)) - tone
    assert 10 * np.log10(np.mean(tone**2) / np.mean(noise**2)) == pytest.approx(snr, abs=0.1)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[size : 2 * size].mean() for size in (100, 200, 400, 800)]
    steps = -10 * np.log10(np.divide(octaves[1:], octaves[:-1]))
    assert steps.mean() == pytest.approx(3.0, abs=0.5)


def test_leading_components_go_up_to_the_energy() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (300, 28, 28)).astype(np.uint8)
    images[:, :14] //= 8
    before = without_leading_components(images, images, 0.0)
    np.testing.assert_allclose(before, images / 255 - images.mean(0) / 255, atol=1e-6)
    for energy in (0.5, 0.9):
        left = without_leading_components(images, images, energy).var(0).sum() / before.var(0).sum()
        assert 1 - energy - 0.02 < left <= 1 - energy


def test_bad_sources_are_named(raw: Path, tmp_path: Path) -> None:
    common = ("avmnist", "--output", tmp_path / "out", "--image", raw / "mnist")
    assert "--sound /none: there is no such folder" in refused(prepare.main, *common, "--sound", "/none")
    assert "holds no recordings named as FSDD" in refused(prepare.main, *common, "--sound", raw / "mnist")
    flags = ("avmnist", "--output", tmp_path / "out", "--sound", raw / "fsdd", "--image", raw / "fsdd")
    assert "lacks train-images-idx3-ubyte" in refused(prepare.main, *flags)
    assert "expected a number from -100 to 100" in refused(
        prepare.main, *common, "--sound", raw / "fsdd", "--snr", "nan"
    )
    few = tmp_path / "few"
    write_wav(few / "0_anna_0.wav", np.sin(np.arange(2000)), RATE)
    assert "needs at least 4 speakers, found 1" in refused(prepare.main, *common, "--sound", few)


def test_a_damaged_recording_is_refused_by_name(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "fsdd", tmp_path / "fsdd")
    (tmp_path / "fsdd" / "recordings" / "3_anna_0.wav").write_bytes(b"RIFF")
    flags = ("--sound", tmp_path / "fsdd", "--image", raw / "mnist", "--output", tmp_path / "out")
    said = refused(prepare.main, "avmnist", *flags)
    assert "3_anna_0.wav" in said
    assert "fetch the file again, or delete it" in said


def test_damaged_arrays_are_named(arrays: Path, tmp_path: Path) -> None:
    root = tmp_path / "avmnist"
    shutil.copytree(arrays, root)
    np.save(root / "image" / "val.npy", np.zeros((3, 1, 28, 28), np.float16))
    with pytest.raises(
        DatasetError, match=r"val.npy: expected float16 \[20, 1, 28, 28\], found float16 \[3, 1, 28, 28\]"
    ):
        datasets.build("avmnist", root, "val")
    (root / "label" / "test.npy").write_bytes(b"no array")
    with pytest.raises(DatasetError, match="cannot be read"):
        datasets.build("avmnist", root, "test")
    with pytest.raises(DatasetError, match="give the folder of the data with --data_root"):
        datasets.build("avmnist", None, "test")


def test_the_real_recordings() -> None:
    splits = recordings(real("fsdd"), "speaker", None, 0)
    assert {split: len(paths) for split, paths in splits.items()} == {"train": 1500, "val": 500, "test": 1000}
    official = recordings(real("fsdd"), "official", None, 0)
    assert {split: len(paths) for split, paths in official.items()} == {"train": 2430, "val": 270, "test": 300}
