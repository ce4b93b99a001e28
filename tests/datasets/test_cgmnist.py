"""CG-MNIST: idx files, the published arrays, colours that follow the class in training alone."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.real import real

from mmpareto.datasets import SPLITS, DatasetError, build
from mmpareto.datasets.cgmnist import read_idx, read_mnist, read_published
from mmpareto.datasets.colouring import MEAN_COLOURS
from mmpareto.datasets.in_memory import InMemoryImages

NAMES = {"train": "train", "test": "t10k"}


def write_idx(path: Path, array: np.ndarray) -> None:
    data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with a white square that tells them apart, and labels."""
    random = np.random.default_rng(seed)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 6:20, 8:22] = random.integers(30, 255, (count, 14, 14))
    images[:, 10, 10] = 255
    return images, (np.arange(count) % 10).astype(np.uint8)


def write_mnist(root: Path, suffix: str = "", train: int = 400, test: int = 50) -> None:
    for part, count in (("train", train), ("test", test)):
        images, labels = digits(count, count)
        write_idx(root / f"{NAMES[part]}-images-idx3-ubyte{suffix}", images)
        write_idx(root / f"{NAMES[part]}-labels-idx1-ubyte{suffix}", labels)


def dataset(root: Path, split: str, **options: float) -> InMemoryImages:
    data = build("cgmnist", root, split, **options)  # type: ignore[arg-type]
    assert isinstance(data, InMemoryImages)
    return data


def brightest(data: InMemoryImages) -> np.ndarray:
    """The colour of each digit's white pixel, [N, 3] in 0 .. 1."""
    return data.images["colour"][:, :, 10, 10].numpy() / 255


@pytest.mark.parametrize(("folder", "suffix"), [(".", ""), (".", ".gz"), ("MNIST/raw", "")])
def test_idx_files_plain_or_packed_here_or_below(tmp_path: Path, folder: str, suffix: str) -> None:
    write_mnist(tmp_path / folder, suffix)
    parts = {split: dataset(tmp_path, split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 360, "val": 40, "test": 50}
    images, labels = digits(50, 50)
    np.testing.assert_array_equal(parts["test"].images["gray"][:, 0].numpy(), images)
    np.testing.assert_array_equal(parts["test"].labels, labels)
    both = np.concatenate([parts[s].images["gray"][:, 0].numpy() for s in ("train", "val")]).reshape(400, -1)
    assert len(np.unique(both, axis=0)) == 400  # disjoint and whole
    assert np.bincount(parts["val"].labels).tolist() == [4] * 10


def test_colour_is_the_gray_digit_times_one_colour(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for split in SPLITS:
        data = dataset(tmp_path, split)
        colour = brightest(data)[:, :, None, None]
        expected = data.images["gray"].numpy() * colour
        np.testing.assert_allclose(data.images["colour"].numpy(), expected, atol=1.01)


def test_colours_follow_the_class_in_training_alone(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=4000, test=500)
    agreement = {}
    for split in SPLITS:
        data = dataset(tmp_path, split, variance=0.0)
        nearest = np.abs(brightest(data)[:, None] - MEAN_COLOURS[None]).sum(2).argmin(1)
        agreement[split] = float((nearest == data.labels).mean())
    assert agreement["train"] == 1
    assert agreement["val"] == pytest.approx(0.1, abs=0.05)
    assert agreement["test"] == pytest.approx(0.1, abs=0.05)


def test_the_variance_is_that_of_the_colours(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=4000)
    data = dataset(tmp_path, "train", variance=0.01)
    middle = (MEAN_COLOURS > 0.35) & (MEAN_COLOURS < 0.65)  # where clipping at 0 and 1 does not reach
    spread = (brightest(data) - MEAN_COLOURS[data.labels])[middle[data.labels]]
    assert spread.var() == pytest.approx(0.01, rel=0.15)


def test_the_dataset_is_the_same_everywhere(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    one, other = dataset(tmp_path, "train"), build("cgmnist", tmp_path, "train", seed=7)
    assert isinstance(other, InMemoryImages)
    assert torch.equal(one.images["colour"], other.images["colour"])
    assert not torch.equal(one.images["colour"], dataset(tmp_path, "train", variance=0.02).images["colour"])


def test_batches_come_without_a_call_for_each_sample(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = dataset(tmp_path, "train")
    batch = data.__getitems__([5, 3, 300])
    for position, index in enumerate([5, 3, 300]):
        single = data[index]
        assert torch.equal(batch["inputs"]["colour"][position], single["inputs"]["colour"])
        assert (batch["id"][position], int(batch["label"][position])) == (single["id"], single["label"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.unlink(), "lacks train-labels-idx1-ubyte"),
        (lambda f: f.write_bytes(b""), "is no whole idx file of bytes in 1 dimension"),
        (lambda f: f.write_bytes(f.read_bytes()[:-3]), "is no whole idx file"),
        (lambda f: f.write_bytes(b"<html>not found</html>"), "is no whole idx file"),
        (lambda f: write_idx(f, np.zeros(399, np.uint8)), "400 images, but 399 labels"),
        (lambda f: write_idx(f, np.full(400, 10, np.uint8)), "expected labels 0 to 9"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, spoil: object, message: str) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "train-labels-idx1-ubyte"
    spoil(file)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=message):
        dataset(tmp_path, "train")
    header = bytes((0, 0, 8, 1))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(header + (1000).to_bytes(4) + b"x" * 1000)[:-20])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_idx(tmp_path / "cut.gz", 1)


@pytest.mark.parametrize(
    ("shape", "held"), [((2**32 - 1,), 10), ((100,), 10), ((10,), 1000), ((2**31, 2), 10), ((10, 1), 10)]
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_hold_what_they_announce(tmp_path: Path, shape: tuple[int, ...], held: int, suffix: str) -> None:
    content = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + bytes(held)
    file = tmp_path / f"a{suffix}"
    file.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DatasetError, match="is no whole idx file of bytes in 1 dimension"):
        read_idx(file, 1)


def test_nothing_is_unpacked_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    images, _ = digits(5, 0)
    write_idx(tmp_path / "a.gz", images)
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz", 3), images)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    header = bytes((0, 0, 8, 1)) + struct.pack(">I", 2**29)
    (tmp_path / "a.gz").write_bytes(gzip.compress(header) + gzip.compress(bytes(2**24), 1) * 32)
    with pytest.raises(DatasetError, match="is no whole idx file"):
        read_idx(tmp_path / "a.gz", 1)


def test_damaged_gzip_and_pipes_are_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">I", 5000) + os.urandom(5000)))
    for place in (30, 2000, len(packed) - 6):
        spoiled = packed.copy()
        spoiled[place] ^= 255
        (tmp_path / "a.gz").write_bytes(spoiled)
        with pytest.raises(DatasetError, match=r"a\.gz"):
            read_idx(tmp_path / "a.gz", 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="is a named pipe"):
        read_idx(tmp_path / "pipe", 1)


def test_no_mnist_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DatasetError, match=r"holds no MNIST, and it could not be downloaded.*refused") as caught:
        dataset(tmp_path / "new", "train")
    assert "t10k-labels-idx1-ubyte.gz" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_download_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    def fetched(self: MNIST, root: str, train: bool, download: bool) -> None:
        assert download
        self.root = root
        write_mnist(Path(root) / "MNIST" / "raw")
        if broken_off:
            raise KeyboardInterrupt

    monkeypatch.setattr(MNIST, "__init__", fetched)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)  # what an older version left
    broken_off = True
    with pytest.raises(KeyboardInterrupt):
        dataset(tmp_path, "train")
    assert [path.name for path in tmp_path.rglob("*")] == ["MNIST", "raw"]
    broken_off = False
    assert len(dataset(tmp_path, "train")) == 360


def published(path: Path, **change: object) -> dict[str, np.ndarray]:
    """A coloured MNIST as published: a pickled dict in a .npy file, colours round means of its own."""
    content: dict[str, np.ndarray] = {}
    means = np.random.default_rng(9).uniform(0.2, 1.0, (10, 3))
    for part, count in (("train", 400), ("test", 50)):
        images, labels = digits(count, count)
        images[:, 10, 10] = 255
        colour = means[labels if part == "train" else np.roll(labels, 3)]
        content[f"{part}_image"] = (images[..., None] * colour[:, None, None]).astype(np.uint8)
        content[f"{part}_label"] = labels
    np.save(path, {**content, **change}, allow_pickle=True)  # type: ignore[arg-type]
    content["means"] = means
    return content


def test_the_published_arrays(tmp_path: Path) -> None:
    content = published(tmp_path / "mnist_10color_jitter_var_0.030.npy")
    test = dataset(tmp_path, "test")
    np.testing.assert_array_equal(test.images["colour"].numpy(), content["test_image"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(test.labels, content["test_label"])
    train = dataset(tmp_path, "train")
    assert len(train) == 360
    # the gray digit comes back out of the coloured one, up to what rounding to bytes took
    np.testing.assert_allclose(test.images["gray"][:, 0].numpy(), digits(50, 50)[0], atol=4)
    # validation is painted anew: its colours are among the file's means, and do not follow the class
    val = dataset(tmp_path, "val", variance=0.03)
    assert np.abs(brightest(train) - content["means"][train.labels]).max() < 0.02
    follows = np.abs(brightest(val) - content["means"][val.labels]).max(1) < 0.02
    assert follows.mean() < 0.5
    with pytest.raises(DatasetError, match=r"none with the variance 0\.02"):
        dataset(tmp_path, "train", variance=0.02)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo harm > harm.txt",)


@pytest.mark.parametrize("payload", [Evil(), print, Path("x")])
def test_pickles_with_anything_but_arrays_are_refused(
    tmp_path: Path, payload: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mnist_10color_jitter_var_0.030.npy"
    published(file, train_label=payload)
    with pytest.raises(DatasetError, match="is no part of an array"):
        read_published(file)
    assert not (tmp_path / "harm.txt").exists()


def test_published_files_of_another_form(tmp_path: Path) -> None:
    file = tmp_path / "mnist_10color_jitter_var_0.030.npy"
    for change in ({"train_image": np.zeros((400, 28, 28), np.uint8)}, {"test_label": np.full(50, 11)}):
        published(file, **change)
        with pytest.raises(DatasetError, match="is no coloured MNIST as published"):
            read_published(file)
    np.save(file, np.zeros(3))
    with pytest.raises(DatasetError, match="expected a pickled dict"):
        read_published(file)
    file.write_bytes(pickle.dumps({"train_image": 1}))
    with pytest.raises(DatasetError, match="is no coloured MNIST as published"):
        read_published(file)


def test_real_mnist() -> None:
    parts = read_mnist(real("mnist"))
    assert [len(labels) for _, labels in parts.values()] == [60000, 10000]
    assert parts["train"][1][:5].tolist() == [5, 0, 4, 1, 9]  # the well-known beginning of MNIST
    data = dataset(real("mnist"), "train")
    assert len(data) == 54000
    assert data.images["gray"].float().mean() / 255 == pytest.approx(0.1307, abs=2e-3)
