"""Packed images: the pixels of the files that they were made from, in training and in scoring, and damaged ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_media import write_frames, write_video
from entries.command import inside, refused
from PIL import Image

from mmpareto.cli import prepare
from mmpareto.datasets import DatasetError, build
from mmpareto.datasets.images import packed_images
from mmpareto.datasets.manifest_file import _read_manifest
from mmpareto.datasets.readers import FramesReader, ImageReader
from mmpareto.datasets.reading import reader_from


def write_source(root: Path) -> Path:
    """A manifest of videos, folders of frames and images."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(6):
        (root / "photo").mkdir(parents=True, exist_ok=True)
        picture = random.integers(0, 256, (32, 45, 3)).astype(np.uint8)
        photo = f"photo/{number}.{('png', 'jpg')[number % 2]}"
        Image.fromarray(picture).save(root / photo)
        write_frames(root / "steps" / str(number), ["1.png", "2.jpg", "3.png", "4.png"], number, (60, 41))
        write_video(root / f"{number}.mp4", 24, 10, size=(48, 36))
        split = ("train", "train", "train", "train", "val", "test")[number]
        rows.append((number, split, "ab"[number % 2], photo, f"steps/{number}", f"{number}.mp4"))
    with open(root / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "split", "label", "photo", "steps", "face"), *rows])
    return root


def prepared(source: Path, output: Path, *flags: str) -> Path:
    common = ("--source", source, "--output", output, "--workers", "1", "--frame_size", "30")
    done = inside(prepare.main, "manifest", *common, *flags)
    assert done.returncode == 0, done.stderr
    return output


def test_a_packed_dataset_gives_the_samples_of_the_other_one_bit_for_bit(tmp_path: Path) -> None:
    source = write_source(tmp_path / "raw")
    plain, packed = prepared(source, tmp_path / "plain"), prepared(source, tmp_path / "packed", "--pack")
    assert (plain / "steps" / "0" / "2.jpg").exists()
    assert sorted(path.name for path in (packed / "steps").iterdir()) == [f"{number}.npy" for number in range(6)]
    frames = packed_images(packed / "face" / "0.npy")
    assert (frames.dtype, frames.shape) == (np.uint8, (3, 30, 40, 3))  # at 0, 1 and 2 s of 2.4
    assert packed_images(packed / "photo" / "1.npy").shape == (1, 30, 42, 3)
    assert packed_images(packed / "steps" / "1.npy").shape == (4, 30, 44, 3)
    for split in ("train", "val"):
        ours, theirs = (build("manifest", root, split, image_size=16, frames=2) for root in (packed, plain))
        for epoch in (1, 2):
            for data in (ours, theirs):
                data.set_epoch(epoch)
            for index in range(len(theirs)):
                first, second = ours[index]["inputs"], theirs[index]["inputs"]
                assert first.keys() == second.keys() == {"photo", "steps", "face"}
                assert all(torch.equal(first[name], second[name]) for name in first)
    for root in (plain, packed):  # predict.py reads the raw files as they were stored
        data = build("manifest", root, "test", image_size=16, frames=2)
        saved = json.loads(json.dumps(data.saved_readers()))
        for name, raw in (("photo", "photo/5.jpg"), ("steps", "steps/5"), ("face", "5.mp4")):
            reader = reader_from(saved[name], data.modalities[name])
            assert torch.equal(reader.read(source / raw, None), data[0]["inputs"][name])
    assert "was prepared as" in refused(prepare.main, "manifest", "--source", source, "--output", packed)


def test_names_in_capitals_and_files_that_come_later_change_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "raw")
    lines = (source / "manifest.csv").read_text()
    for number in range(6):
        old = source / "photo" / f"{number}.{('png', 'jpg')[number % 2]}"
        lines = lines.replace(f"photo/{old.name}", f"photo/{number}.JPG")
        Image.open(old).convert("RGB").save(source / "photo" / f"{number}.jpg")
        (source / "photo" / f"{number}.jpg").rename(source / "photo" / f"{number}.JPG")
    (source / "manifest.csv").write_text(lines.replace("photo/3.JPG", "photo/3.png"))
    late = source / "photo" / "3.png"
    late.unlink(missing_ok=True)
    flags = ("--max_unusable", "50")
    first = prepared(source, tmp_path / "out", *flags)
    assert (first / "photo" / "0.png").exists()  # one of them is a .png, although it is not there yet
    Image.new("RGB", (50, 40)).save(late)
    _read_manifest.cache_clear()  # as in another process
    assert (prepared(source, tmp_path / "out", *flags) / "photo" / "3.png").exists()
    (source / "manifest.csv").write_text(lines)
    assert "was prepared as" in refused(prepare.main, "manifest", "--source", source, "--output", first, *flags)
    data = build("manifest", prepared(source, tmp_path / "capitals"), "test", image_size=16, frames=2)
    reader = reader_from(json.loads(json.dumps(data.saved_readers()))["photo"], data.modalities["photo"])
    assert torch.equal(reader.read(source / "photo" / "5.JPG", None), data[0]["inputs"]["photo"])


def test_frames_are_mapped_and_not_read_whole(tmp_path: Path) -> None:
    images = (np.arange(4 * 3 * 5 * 5) % 251).astype(np.uint8).reshape(4, 3, 5, 5)
    np.save(tmp_path / "a.npy", images.transpose(0, 2, 3, 1))
    assert isinstance(packed_images(tmp_path / "a.npy"), np.memmap)
    assert FramesReader(4, 5).read(tmp_path / "a.npy", None).numpy().tolist() == images.tolist()
    assert ImageReader(5).read(tmp_path / "a.npy", None).numpy().tolist() == images[0].tolist()


def test_samples_that_are_read_keep_no_file_open(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 5, 5, 3), np.uint8))
    before = len(os.listdir("/dev/fd"))
    for reader in (ImageReader(5), FramesReader(2, 5)):
        generator = torch.Generator()
        kept = [reader.read(tmp_path / "a.npy", None), reader.read(tmp_path / "a.npy", generator)]
        crops = reader.crops(tmp_path / "a.npy", generator)
        assert len(os.listdir("/dev/fd")) == before, (kept, crops)


def test_frames_of_several_sizes_are_left_out(tmp_path: Path) -> None:
    source = write_source(tmp_path / "raw")
    Image.new("RGB", (9, 9)).save(source / "steps" / "3" / "2.jpg")
    flags = ("--source", source, "--output", tmp_path / "out", "--workers", "1", "--pack", "--max_unusable", "50")
    done = inside(prepare.main, "manifest", *flags)
    assert "unusable, frames of several sizes: 1, such as 3:" in done.stdout


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"expected uint8 \[F, H, W, 3\], found float32 \[2, 4, 4, 3\]"),
        (np.zeros((4, 4, 3), np.uint8), r"found uint8 \[4, 4, 3\]"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"found uint8 \[2, 3, 4, 4\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"found uint8 \[0, 4, 4, 3\]"),
    ],
)
def test_other_arrays_are_no_packed_images(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DatasetError, match=message):
        FramesReader(1, 4).check(tmp_path / "a.npy")


def test_a_packed_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 3), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=r"a.npy: cannot be read as packed images: 95 bytes of data"):
        ImageReader(4).check(tmp_path / "a.npy")


def test_pack_is_for_images(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros(3, np.float32))
    rows = [("id", "split", "label", "a", "b")]
    rows += [
        (f"c{k}", split, "xy"[k % 2], "v.npy", "v.npy") for k, split in enumerate(("train", "train", "val", "test"))
    ]
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    flags = ("--source", tmp_path, "--output", tmp_path / "out", "--pack")
    assert "--pack is for images" in refused(prepare.main, "manifest", *flags)
