"""The clip loader: which frames, what shapes, which messages, and the same augmentation for any worker."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_media import lfs_pointer, side_cars, write_frames
from PIL import Image
from torchvision.transforms._presets import ImageClassification

from mmpareto.datasets import DatasetError, Modality, to_device
from mmpareto.datasets.arrays import load_array
from mmpareto.datasets.clips import ClipDataset
from mmpareto.datasets.images import read_image
from mmpareto.datasets.items import Item, Items
from mmpareto.datasets.readers import (
    LOG_RANGE,
    ArrayReader,
    FramesReader,
    ImageReader,
    chosen_frames,
    frame_files,
)
from mmpareto.inputs import values_of
from mmpareto.training.data import Loader

IMAGENET = ImageClassification(crop_size=4)


@pytest.mark.parametrize("first", [0, 1, 9])
def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path, first: int) -> None:
    numbers = list(range(first, first + 4))
    names = {number: f"frame_{number}.jpg" for number in numbers}  # 9, 10: not in the order of letters
    write_frames(tmp_path / "c", [names[numbers[i]] for i in (2, 0, 3, 1)])
    (tmp_path / "c" / "notes.txt").write_text("no frame")
    assert [path.name for path in frame_files(tmp_path / "c")] == [names[number] for number in numbers]


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "no frames"), (["first.jpg"], "needs its number"), (["1.jpg", "01.jpg"], "have the same number")],
)
def test_folders_that_are_no_frames(tmp_path: Path, names: list[str], message: str) -> None:
    write_frames(tmp_path / "c", names)
    with pytest.raises(DatasetError, match=message):
        frame_files(tmp_path / "c")
    with pytest.raises(DatasetError, match="expected a folder"):
        frame_files(tmp_path / "d")


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [(10, 2, [2, 7]), (3, 3, [0, 1, 2]), (1, 3, [0, 0, 0]), (2, 3, [0, 0, 1]), (9, 3, [1, 4, 7]), (2, 1, [1])],
)
def test_middle_frames_of_equal_parts(count: int, frames: int, expected: list[int]) -> None:
    assert chosen_frames(count, frames, None) == expected


def test_random_frames_stay_in_their_parts_and_reach_all_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [chosen_frames(10, 2, generator) for _ in range(200)]
    assert {first for first, _ in drawn} == set(range(5))
    assert {second for _, second in drawn} == set(range(5, 10))


def test_scored_images_are_resized_whole_as_pillow_does(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "c", ["1.png"])
    reader = ImageReader(20)
    assert (reader.modality.mean, reader.modality.std) == (tuple(IMAGENET.mean), tuple(IMAGENET.std))
    pixels = reader.read(folder / "1.png", None)
    with Image.open(folder / "1.png") as image:
        expected = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert pixels.dtype == torch.uint8
    assert np.abs(pixels.numpy().astype(int) - expected).max() <= 1


def test_gray_and_transparent_images_have_three_channels(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 100).save(tmp_path / "1.png")
    Image.new("RGBA", (9, 9), (10, 20, 30, 255)).save(tmp_path / "2.png")
    assert ImageReader(4).read(tmp_path / "1.png", None).unique().tolist() == [100]
    assert ImageReader(4).read(tmp_path / "2.png", None)[:, 0, 0].tolist() == [10, 20, 30]


def test_images_of_every_format_and_depth_come_as_bytes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (9, 9), (10, 120, 230))
    for name in ("a.bmp", "a.webp", "a.png", "a.jpg"):
        picture.save(tmp_path / name, quality=100)
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=[Image.new("RGB", (9, 9))], lossless=True)
    picture.convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    Image.fromarray(np.full((9, 9), 120 * 257, np.uint16)).save(tmp_path / "deep.png")
    for path in tmp_path.iterdir():
        ImageReader(4).check(path)
        pixels = ImageReader(4).read(path, None)
        assert pixels.dtype == torch.uint8, path
        expected = [120] * 3 if path.name == "deep.png" else [10, 120, 230]
        assert np.abs(pixels[:, 1, 1].numpy().astype(int) - expected).max() <= 3, path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_images_stand_as_they_were_taken(tmp_path: Path, name: str) -> None:
    """A camera on its side stores columns as rows and says so: 6, to be turned clockwise by a quarter."""
    picture = Image.new("RGB", (16, 8))
    picture.paste((255, 255, 255), (0, 0, 8, 4))  # upper left; upper right once turned
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / name, exif=turned, quality=100)
    pixels = read_image(tmp_path / name)
    assert pixels.shape == (3, 16, 8)
    corners = pixels[0, [2, 2, 13, 13], [1, 6, 1, 6]].tolist()
    assert [round(value / 255) for value in corners] == [0, 1, 0, 0]


def test_cut_off_and_absent_images_are_found_by_the_check(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "c", ["0.jpg", "1.png", "2.jpg"])
    data = (folder / "0.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(data + b"of the camera's own")  # after the picture's end: whole
    FramesReader(1, 4).check(folder)
    for name in ("0.jpg", "1.png"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[: len(kept) * 3 // 4])
        with pytest.raises(DatasetError, match=f"{name}: cannot be read as an image"):
            FramesReader(1, 4).check(folder)
        lfs_pointer(folder / name)
        with pytest.raises(DatasetError, match=f"{name}: is a git-lfs pointer; run"):
            FramesReader(1, 4).check(folder)
        (folder / name).write_bytes(kept)


def spectra(frames: int) -> ArrayReader:
    return ArrayReader(Modality("spectrogram", (1, frames, 4)), padded=True, limits=LOG_RANGE)


def test_spectrograms_are_padded_and_cut(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    np.save(tmp_path / "a.npy", array)
    torch.save(torch.from_numpy(array)[None], tmp_path / "a.pt")
    for file in (tmp_path / "a.npy", tmp_path / "a.pt"):
        longer = spectra(8).read(file, None)
        assert longer.shape == (1, 8, 4)
        np.testing.assert_array_equal(longer[0, :5].numpy(), array)
        assert not longer[0, 5:].any()
        np.testing.assert_array_equal(spectra(3).read(file, None)[0].numpy(), array[:3])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3)), r"expected an array of shape \[8, 4\], or another first dimension, found \[5, 3\]"),
        (np.zeros((0, 4)), r"found \[0, 4\]"),
        (np.full((5, 4), np.nan), "not finite"),
        (np.full((5, 4), 1e3), "values from 0 to 1000, expected -40 to 40"),
    ],
)
def test_arrays_of_another_form_are_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DatasetError, match=message) as caught:
        spectra(8).check(tmp_path / "a.npy")
    assert "a.npy" in str(caught.value)


def test_arrays_that_differ_in_length_are_sequences(tmp_path: Path) -> None:
    reader = ArrayReader(Modality("spectrogram", (1, 8, 4)), padded=False)
    np.save(tmp_path / "a.npy", np.zeros((5, 4)))
    with pytest.raises(DatasetError, match=r"shape \[8, 4\], found \[5, 4\]; where samples differ .* by --sequences"):
        reader.read(tmp_path / "a.npy", None)
    np.save(tmp_path / "a.npy", np.zeros((5, 3)))
    with pytest.raises(DatasetError, match=r"found \[5, 3\]$"):
        reader.read(tmp_path / "a.npy", None)


def test_pickles_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    torch.save({"f": print}, tmp_path / "a.pt")
    for name in ("a.npy", "a.pt"):
        with pytest.raises(DatasetError, match="cannot be read as an array"):
            ArrayReader(Modality("vector", (1,))).read(tmp_path / name, None)


def test_tensors_that_others_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(tensor: torch.Tensor) -> torch.Tensor:
        torch.save(tensor, tmp_path / "a.PT")
        return load_array(tmp_path / "a.PT")

    assert not saved(torch.ones(3, requires_grad=True)).requires_grad
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        assert saved(torch.ones(3)).device.type == "cpu"
    with pytest.raises(DatasetError, match="found complex ones"):
        saved(torch.ones(3, dtype=torch.complex64))


def test_damaged_arrays_are_always_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 4), np.float32))
    torch.save(torch.zeros(5, 4), tmp_path / "a.pt")
    for name in ("a.npy", "a.pt"):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(DatasetError, match=rf"{name}: cannot be read as an array: \S"):
                load_array(tmp_path / name)


def dataset(root: Path, seed: int = 0, clips: int = 7) -> ClipDataset:
    items = []
    for number in range(clips):
        folder = root / "sight" / f"c{number}"
        if not folder.exists():
            write_frames(folder, ["0.jpg", "1.jpg", "2.jpg"], number)
            (root / "sense").mkdir(exist_ok=True)
            np.save(root / "sense" / f"c{number}.npy", np.full(3, number, np.float32))
        paths = {"sight": folder, "sense": root / "sense" / f"c{number}.npy"}
        items.append(Item(f"c{number}", "ab"[number % 2], paths))
    readers = {"sight": FramesReader(2, 16), "sense": ArrayReader(Modality("vector", (3,)))}
    return ClipDataset("made", "train", items, readers, ["a", "b"], seed)


def epoch(root: Path, workers: int, number: int, seed: int = 0, on_device: bool = False) -> dict[str, torch.Tensor]:
    data = dataset(root, seed)
    if on_device:
        data.augment_on_device()
    loader = Loader(data, 3, shuffle=True, seed=seed, workers=workers, pin=False)
    images: dict[str, torch.Tensor] = {}
    for current in range(number + 1):
        images = {
            identifier: values_of(to_device(batch["inputs"], data.modalities, "cpu")["sight"])[position]
            for batch in loader.epoch(current)
            for position, identifier in enumerate(batch["id"])
        }
    return images


def test_augmentation_repeats_for_any_number_of_workers_and_on_the_device(tmp_path: Path) -> None:
    dataset(tmp_path)
    alone = epoch(tmp_path, 0, 1)
    for spread in (epoch(tmp_path, 2, 1), epoch(tmp_path, 2, 1, on_device=True)):
        assert alone.keys() == spread.keys()
        assert all(torch.equal(alone[name], spread[name]) for name in alone)
    for other in (epoch(tmp_path, 0, 0), epoch(tmp_path, 0, 1, seed=1)):
        assert not all(torch.equal(alone[name], other[name]) for name in alone)


def test_without_augmentation_training_samples_are_read_as_the_others(tmp_path: Path) -> None:
    clips = dataset(tmp_path)
    augmented = clips[0]["inputs"]["sight"]
    clips.augmenting = False
    plain = clips[0]["inputs"]["sight"]
    clips.split = "val"
    assert torch.equal(plain, clips[0]["inputs"]["sight"])
    assert not torch.equal(plain, augmented)


def test_augmentation_leaves_pytorchs_own_generator_alone(tmp_path: Path) -> None:
    clips = dataset(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    clips[0]
    assert torch.equal(torch.rand(2), expected)


def test_problems_name_the_clip_and_are_found_once(tmp_path: Path) -> None:
    clips = dataset(tmp_path)
    clips.check(tmp_path)
    stamp = tmp_path / ".checked.json"
    assert json.loads(stamp.read_text())
    np.save(tmp_path / "sense" / "c3.npy", np.zeros(4))
    (tmp_path / "sight" / "c5" / "1.jpg").write_bytes(b"no image")
    clips.check(tmp_path)  # trusted: checked before
    with pytest.raises(DatasetError, match=r"made: clip c3, sense: .*c3\.npy"):
        clips[3]
    stamp.unlink()
    with pytest.raises(DatasetError) as caught:
        clips.check(tmp_path)
    assert "clip c3, sense" in str(caught.value)
    assert "clip c5, sight" in str(caught.value)
    assert not stamp.exists()
    for number in range(6):
        np.save(tmp_path / "sense" / f"c{number}.npy", np.zeros(4))
    with pytest.raises(DatasetError, match=r"and 3 more: c3, c4, c5\nrepair these files, or take their clips out"):
        clips.check(tmp_path)


def test_side_cars_of_macos_are_no_frames(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "c", ["1.jpg", "2.png"])
    side_cars(tmp_path)
    assert [path.name for path in frame_files(folder)] == ["1.jpg", "2.png"]
    FramesReader(2, 4).check(folder)


KINDS: dict[str, Callable[[], object]] = {
    r"layout torch.sparse_coo, expected a dense one; save tensor.to_dense\(\)": lambda: torch.eye(4).to_sparse(),
    "layout torch.sparse_csr": lambda: torch.eye(4).to_sparse_csr(),
    "without values": lambda: torch.zeros(4, device="meta"),
    r"quantised tensor, expected a dense one; save tensor.dequantize\(\)": lambda: torch.quantize_per_tensor(
        torch.ones(4), 0.1, 0, torch.qint8
    ),
    "expected real numbers": lambda: torch.ones(4, dtype=torch.complex64),
    "expected a tensor, found list": lambda: [torch.zeros(4)],
    "expected a tensor, found dict": lambda: {"a": torch.zeros(4)},
    "expected a tensor, found str": lambda: "text",
    r"a tensor of \[1000000000000\] in a file of": lambda: torch.zeros(1).expand(10**12),
    "cannot be read as an array": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("message", KINDS)
def test_other_kinds_of_tensors_are_named(tmp_path: Path, message: str) -> None:
    torch.save(KINDS[message](), tmp_path / "a.pt")
    with pytest.raises(DatasetError, match=rf"a\.pt: cannot be read as an array.*|{message}") as caught:
        load_array(tmp_path / "a.pt")
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "int8", "bool", "int64"])
def test_tensors_of_every_real_type_are_read(tmp_path: Path, dtype: str) -> None:
    torch.save(torch.tensor([1.0, 0.0]).to(getattr(torch, dtype)), tmp_path / "a.pt")
    array = load_array(tmp_path / "a.pt")
    assert array.dtype == (getattr(torch, dtype) if dtype in ("bfloat16", "float16") else torch.float32)
    assert array.tolist() == [1.0, 0.0]


def test_parameters_views_and_legacy_files_are_read(tmp_path: Path) -> None:
    torch.save(torch.nn.Parameter(torch.ones(3)), tmp_path / "a.pt")
    torch.save(torch.arange(12.0).view(3, 4)[:, 1], tmp_path / "b.pt")
    torch.save(torch.ones(1).expand(3), tmp_path / "c.pt")
    torch.save(torch.ones(3), tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    assert load_array(tmp_path / "b.pt").tolist() == [1.0, 5.0, 9.0]
    for name in "acd":
        array = load_array(tmp_path / f"{name}.pt")
        assert (array.tolist(), array.requires_grad) == ([1.0] * 3, False)


def test_compressed_records_that_announce_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(10**6), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "a.pt", "w") as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(DatasetError, match=r"its records announce \d+ bytes, the file has \d+"):
        load_array(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a", "b"]), "expected numbers"),
        (np.array([{}], dtype=object), "expected numbers"),
        (np.array([b"a"]), "expected numbers"),
        (np.zeros(2, dtype=[("x", "f4")]), "expected numbers"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "expected numbers"),
        (np.zeros(2, dtype=np.complex128), "expected real numbers"),
    ],
)
def test_arrays_without_numbers_are_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=rf"a\.npy: cannot be read as an array.*{message}"):
        load_array(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "u2", "u8", "?", "f2"])
def test_arrays_of_every_real_type_are_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 0], [1, 1]], dtype=dtype, order="F"))
    assert load_array(tmp_path / "a.npy").tolist() == [[1, 0], [1, 1]]


def test_headers_that_announce_terabytes_are_refused(tmp_path: Path) -> None:
    for name, shape in (("a.npy", "(4398046511104,)"), ("b.npy", "(65536, 65536, 1024)"), ("c.npy", "(-1, 4)")):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        (tmp_path / name).write_bytes(
            b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
        )
        with pytest.raises(DatasetError, match=rf"{name}: cannot be read as an array: .*the header announces"):
            load_array(tmp_path / name)


def png(path: Path, width: int, height: int) -> Path:
    """A PNG file that announces this size and holds ten rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(10 * (3 * min(width, 1000) + 1)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_pictures_that_announce_more_than_any_camera_takes_are_refused(tmp_path: Path) -> None:
    assert read_image(png(tmp_path / "small.png", 4, 10)).shape == (3, 10, 4)
    file = png(tmp_path / "a.png", 2**20, 2**20)
    for read in (read_image, ImageReader(4).check):
        with pytest.raises(DatasetError, match=r"a\.png: cannot be read as an image: Image size .* exceeds limit"):
            read(file)


def test_small_files_that_unpack_to_gigabytes_and_other_formats_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    picture = Image.new("RGB", (64, 64))
    picture.save(file, "JPEG", progressive=True)
    data = bytearray(file.read_bytes())
    size = data.index(b"\xff\xc2") + 5
    data[size : size + 4] = struct.pack(">HH", 30_000, 30_000)
    postscript = io.BytesIO()
    picture.save(postscript, "EPS")  # which Pillow would give to Ghostscript
    for content, message in ((data, "exceeds limit"), (postscript.getvalue(), "cannot identify")):
        file.write_bytes(content)
        assert len(content) < 2**16
        for read in (read_image, ImageReader(4).check):
            with pytest.raises(DatasetError, match=rf"a\.png: cannot be read as an image: .*{message}"):
                read(file)
    picture.save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")] * 2)
    assert read_image(file).shape == (3, 64, 64)  # the first picture, not a canvas for each


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    vector = ArrayReader(Modality("vector", (4,)))
    readers = {".png": ImageReader(4), ".jpg": ImageReader(4), ".npy": vector, ".pt": vector}
    for suffix, reader in readers.items():
        for number, kind in enumerate(("a named pipe", "a device", "a folder")):
            path = tmp_path / f"{number}{suffix}"
            if kind == "a named pipe":
                os.mkfifo(path)
            elif kind == "a device":
                path.symlink_to("/dev/zero")
            else:
                path.mkdir()
            for use in (reader.check, lambda path, reader=reader: reader.read(path, None)):
                with pytest.raises(DatasetError, match=rf"{number}\{suffix}: is {kind}; expected a regular file"):
                    use(path)
    (tmp_path / "frames").mkdir()
    os.mkfifo(tmp_path / "frames" / "1.jpg")
    with pytest.raises(DatasetError, match="a named pipe"):
        FramesReader(1, 4).check(tmp_path / "frames")


class Filler:
    """Pickled as a call of `bytearray`, which torch.load allows."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (2**33,)


@pytest.mark.parametrize("legacy", [False, True])
def test_an_array_that_asks_for_memory_is_refused_before_it_is_taken(tmp_path: Path, legacy: bool) -> None:
    file = tmp_path / "a.pt"
    torch.save(Filler(), file, _use_new_zipfile_serialization=not legacy)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError, match="bytearray, which is no part of a tensor"):
        load_array(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    array = torch.arange(6.0).view(2, 3)
    torch.save(array, file, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(load_array(file), array)


def test_items_keep_every_modality_and_tell_text_from_paths() -> None:
    items = Items.of([Item("a", "x", {"sound": Path("a.wav")}), Item("b", "y", {"sound": Path("b.wav"), "note": "Hi"})])
    assert [item.paths for item in items] == [
        {"sound": Path("a.wav")},
        {"sound": Path("b.wav"), "note": "Hi"},
    ]
    assert items.absent("note").tolist() == [True, False]
