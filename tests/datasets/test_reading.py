"""A run's saved readers read files as the dataset's own do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_manifest import write_manifest, write_rows
from datasets.make_media import write_video
from datasets.test_manifest_variable import OPTIONS, write
from entries.command import inside
from PIL import Image

from mmpareto.cli import prepare
from mmpareto.datasets import DatasetError, Modality, MultimodalDataset, build, collate, modality_from, to_device
from mmpareto.datasets.images import read_image
from mmpareto.datasets.reading import is_file_of, read_input, reader_from


def check_alike(data: MultimodalDataset) -> None:
    saved = json.loads(json.dumps(data.saved_readers()))
    for name, reader in data.readers.items():  # type: ignore[attr-defined]
        modality = modality_from(json.loads(json.dumps(asdict(data.modalities[name]))))
        again = reader_from(saved[name], modality)
        assert isinstance(again, type(reader))
        assert again.modality == reader.modality
        for source in data.items.sources(name):  # type: ignore[attr-defined]
            expected = reader.read(source, None)
            assert torch.equal(again.read(source, None), expected)
            assert torch.equal(read_input(source, again, modality), expected)


def test_media(tmp_path: Path) -> None:
    write_manifest(tmp_path, 12)
    check_alike(build("manifest", tmp_path, "test", image_size=8, frames=2))


@pytest.mark.parametrize("flags", [(), ("--fps", "3", "--frame_size", "32"), ("--pack",)])
def test_a_video_stands_for_the_frames_that_were_taken_from_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    rows = []
    for number in range(6):
        picture = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        write_video(tmp_path / f"{number}.mp4", 15 + number, picture=picture if number % 2 else None)
        np.save(tmp_path / f"{number}.npy", np.ones(3, np.float32))
        split = ("train", "val", "test")[number // 2]
        rows.append({"id": f"c{number}", "split": split, "label": "ab"[number % 2], "face": f"{number}.mp4"})
        rows[-1]["sense"] = f"{number}.npy"
    write_rows(tmp_path, rows)
    prepared = tmp_path / "prepared"
    arguments = ("manifest", "--source", tmp_path, "--output", prepared, "--workers", "1", *flags)
    assert inside(prepare.main, *arguments).returncode == 0
    data = build("manifest", prepared, "test", image_size=16, frames=2)
    saved = json.loads(json.dumps(data.saved_readers()))["face"]
    reader = reader_from(saved, data.modalities["face"])
    for number in (4, 5):
        assert torch.equal(reader.read(tmp_path / f"{number}.mp4", None), data[number - 4]["inputs"]["face"])
    of_folders = reader_from({"reader": "frames"}, data.modalities["face"])
    with pytest.raises(DatasetError, match="does not say how many frames a second"):
        of_folders.read(tmp_path / "4.mp4", None)
    with pytest.raises(ValueError, match="is no positive number"):
        reader_from(saved | {"fps": -1}, data.modalities["face"])


def test_text_sequences_and_tokens(tmp_path: Path) -> None:
    write(tmp_path)
    data = build("manifest", tmp_path, "test", **OPTIONS)
    check_alike(data)
    readers, modalities = data.readers, data.modalities  # type: ignore[attr-defined]
    assert is_file_of("a.npy", readers["sensor"])
    assert is_file_of("a.TXT", readers["note"])
    assert not is_file_of("a red ball", readers["caption"])
    text = (tmp_path / "note" / "1.txt").read_text()
    as_file, as_text = (
        read_input(value, readers["note"], modalities["note"]) for value in (str(tmp_path / "note" / "1.txt"), text)
    )
    assert torch.equal(as_file, as_text)
    with pytest.raises(DatasetError, match=r"a character that UTF-8 does not know \('\\udcff' at 1\)"):
        read_input("a\udcff", readers["caption"], modalities["caption"])
    sequence = read_input(np.ones((2, 3)), readers["sensor"], modalities["sensor"])
    assert sequence.dtype == torch.float32
    assert read_input([1, 2], readers["codes"], modalities["codes"]).tolist() == [1, 2]
    for value, name in (([1.5], "codes"), ([99], "codes"), (np.ones((2, 4)), "sensor")):
        with pytest.raises(DatasetError, match="the array: "):
            read_input(value, readers[name], modalities[name])
    with pytest.raises(DatasetError, match="expected a path, an array or a tensor, found object"):
        read_input(object(), readers["sensor"], modalities["sensor"])


def test_whole_numbers_are_not_taken_for_bytes() -> None:
    modality = Modality("image", (1, 2, 2))
    reader = reader_from(None, modality)
    values = np.full((1, 2, 2), 255)
    others: list[object] = [values, values.tolist(), values.astype(np.uint16), values.astype(np.float64), values > 0]
    for value, expected in zip(others, (255, 255, 255, 255, 1), strict=True):
        inputs = [read_input(given, reader, modality) for given in (values.astype(np.uint8), value)]
        batch = collate([{"inputs": {"a": x}, "label": 0, "id": ""} for x in inputs])
        pixels = to_device(batch["inputs"], {"a": modality}, "cpu")["a"]
        assert isinstance(pixels, torch.Tensor)
        assert pixels[:, 0, 0, 0].tolist() == [1, expected]
    ids = Modality("tokens", (3, 5))
    assert read_input([1, 2], reader_from(None, ids), ids).dtype == torch.int64


@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_picture_keeps_its_high_byte(channels: int, tmp_path: Path) -> None:
    Image.fromarray(np.array([[300, 40000], [255, 65535]], np.uint16)).save(tmp_path / "a.png")
    modality = Modality("image", (channels, 2, 2))
    pixels = read_input(tmp_path / "a.png", reader_from(None, modality), modality)
    assert pixels.tolist() == [[[1, 156], [0, 255]]] * channels
    assert torch.equal(pixels, read_image(tmp_path / "a.png")[:channels])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_picture_for_samples_in_memory_stands_as_it_was_taken(channels: int, depth: type, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = np.arange(0, 24, dtype=depth).reshape(4, 6) * (257 if depth == np.uint16 else 1)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    modality = Modality("image", (channels, 6, 4))
    read = read_input(tmp_path / "a.png", reader_from(None, modality), modality)
    assert torch.equal(read, read_image(tmp_path / "a.png")[:channels])
    assert read[0, 0].tolist() == [18, 12, 6, 0]


def test_a_missing_file_is_named_once() -> None:
    modality = modality_from({"kind": "vector", "shape": [3], "mean": None, "std": None})
    for suffix in (".npy", ".pt"):
        with pytest.raises(DatasetError, match=rf"^nowhere{suffix}: there is no such file$"):
            read_input(f"nowhere{suffix}", reader_from(None, modality), modality)
