"""Random crops that are resized on the device: drawn as torchvision draws them, with the pixels that it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_manifest import write_manifest, write_rows
from entries.command import inside, refused
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resized_crop

from mmpareto.arguments import parse
from mmpareto.cli import train
from mmpareto.config import DataConfig
from mmpareto.datasets import Batches, DatasetError, MultimodalDataset, Split, to_device
from mmpareto.datasets.crops import Crop, Crops, _resized_at_once, black, joined, resized
from mmpareto.datasets.readers import ImageReader
from mmpareto.inputs import Input
from mmpareto.training.data import Loader
from mmpareto.training.setup import build_split

CPU = torch.device("cpu")
SIZE = 24
# height and width of an image; top, left, height and width of a part of it
BOXES = [
    ((40, 50), (0, 0, 40, 50)),
    ((40, 50), (3, 7, 20, 15)),
    ((40, 50), (39, 49, 1, 1)),
    ((300, 200), (10, 20, 280, 170)),
    ((30, 90), (5, 0, 24, 24)),
    ((90, 30), (0, 2, 90, 3)),
]


def image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def crops_of(boxes: list[tuple[tuple[int, int], tuple[int, int, int, int]]]) -> tuple[list[Tensor], Crops]:
    """Parts of images [3, h, w], and the same as crops of which every second one is flipped."""
    parts = []
    for (height, width), (top, left, high, wide) in boxes:
        parts.append(image(height, width)[:, top : top + high, left : left + wide])
    return parts, joined(Crop(part.permute(1, 2, 0), number % 2 == 1) for number, part in enumerate(parts))


@pytest.mark.parametrize("shape", [(40, 56), (7, 400), (400, 7), (1, 1), (16, 16)])
def test_crops_and_flips_are_drawn_as_torchvision_draws_them(shape: tuple[int, int]) -> None:
    library = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip()])
    reader = ImageReader(16)
    ours = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        for number in range(20):  # one state goes on from image to image
            stored = image(*shape, number)
            assert torch.equal(reader.fitted(stored, ours), library(stored))


def test_boxes_and_flips_have_the_distribution_of_torchvision() -> None:
    """Of 1,500 draws of ours and of the library's own function, from other seeds."""
    reader, stored, count = ImageReader(16), image(60, 80), 1500
    generator = torch.Generator().manual_seed(1)
    drawn = [reader._crop(stored, generator) for _ in range(count)]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        library = [v2.RandomResizedCrop.get_params(stored, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    for pick in (lambda high, wide: high * wide, lambda high, wide: high / wide):
        ours, theirs = ([pick(*shape) for shape in shapes] for shapes in (
            [part.shape[1:] for part, _ in drawn], [box[2:] for box in library]
        ))  # fmt: skip
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01
    flips = sum(flipped for _, flipped in drawn)
    assert stats.binomtest(flips, count).pvalue > 0.01


def test_on_a_cpu_pixels_are_those_of_torchvision() -> None:
    _, crops = crops_of(BOXES)
    for number, (((height, width), box), pixels) in enumerate(zip(BOXES, resized(crops, SIZE, CPU), strict=True)):
        expected = resized_crop(image(height, width), *box, [SIZE, SIZE], antialias=True)
        assert torch.equal(pixels, expected.flip(-1) if number % 2 else expected)


def agrees_with_torchvision(device: torch.device) -> None:
    """All at once: within one of 255 of torchvision's bytes, and its float64 result rounded, but for ties."""
    parts, crops = crops_of(BOXES)
    pixels = _resized_at_once(crops, SIZE, device).cpu()
    assert pixels.dtype == torch.uint8
    assert (pixels.int() - resized(crops, SIZE, CPU).int()).abs().max() <= 1
    for number, part in enumerate(parts):
        exact = torch.nn.functional.interpolate(part[None].double(), [SIZE, SIZE], mode="bilinear", antialias=True)[0]
        exact = exact.flip(-1) if number % 2 else exact
        assert (pixels[number].double() - exact).abs().max() < 0.5 + 1e-3


def test_pixels_of_a_whole_batch_at_once_are_those_of_torchvision() -> None:
    agrees_with_torchvision(CPU)
    black_pixels = _resized_at_once(joined(black((2, 3, SIZE, SIZE))), SIZE, CPU)
    assert black_pixels.shape == (2, 3, SIZE, SIZE)
    assert not black_pixels.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")
def test_pixels_on_a_gpu_are_those_of_torchvision() -> None:
    agrees_with_torchvision(torch.device("cuda"))
    _, crops = crops_of(BOXES)
    pinned = Crops(*(part.pin_memory() for part in crops))
    torch.cuda.set_sync_debug_mode("error")  # nothing waits for the device
    try:
        resized(pinned, SIZE, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with frames and a photo, some of another size; one clip of four has no photo, another no frames."""
    folder = tmp_path_factory.mktemp("augmented")
    rows = write_manifest(folder, clips=16, val=True)
    for number, row in enumerate(rows):
        if number % 4 == 1:
            row["sight" if number % 8 == 1 else "photo"] = ""
    v2.functional.to_pil_image(image(50, 31)).save(folder / "photo" / "0.png")
    write_rows(folder, rows, ["id", "split", "label", "sight", "photo", "sensor"])
    return folder


def split_of(root: Path, augment: str, split: Split = "train") -> MultimodalDataset:
    options = {"image_size": 16, "frames": 2}
    return build_split(DataConfig("manifest", str(root), dataset_options=options, augment=augment), 3, split)


def inputs(data: MultimodalDataset, epoch: int = 1, start: int = 0) -> dict[str, list[Input]]:
    """{modality: what the model gets}, by batch."""
    loader = Loader(data, 3, shuffle=True, seed=0, workers=0, pin=False)
    moved = [to_device(batch["inputs"], data.modalities, CPU) for batch in loader.epoch(epoch, start)]
    return {name: [batch[name] for batch in moved] for name in data.modalities}


def test_on_a_cpu_the_model_gets_what_it_gets_of_workers(root: Path) -> None:
    on_device = split_of(root, "device")
    stored = Batches(on_device).__getitems__([0, 1, 2])["inputs"]
    assert [isinstance(stored[name], Crops) for name in ("sight", "photo", "sensor")] == [True, True, False]
    crops, expected = inputs(on_device), inputs(split_of(root, "workers"))
    for name, batches in expected.items():
        for ours, theirs in zip(crops[name], batches, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()


def test_crops_of_an_epoch_repeat_from_any_batch_on(root: Path) -> None:
    data = split_of(root, "device")
    whole, rest, other = inputs(data), inputs(data, start=2), inputs(data, epoch=0)
    for name in ("sight", "photo"):
        assert len(rest[name]) == len(whole[name]) - 2 > 0
        assert all(map(torch.equal, whole[name][2:], rest[name]))
        assert not all(map(torch.equal, whole[name], other[name]))


@pytest.mark.parametrize("augment", ["device", "none"])
def test_samples_for_scoring_are_resized_whole(root: Path, augment: str) -> None:
    for split in ("val", "test"):
        plain, data = split_of(root, "workers", split), split_of(root, augment, split)
        for index in range(len(plain)):
            for name, value in plain[index]["inputs"].items():
                assert torch.equal(value, data[index]["inputs"][name])
    data = split_of(root, augment)
    data.augmenting = False  # as linear probes read training samples
    plain = split_of(root, "workers")
    plain.split = "val"
    assert torch.equal(data[0]["inputs"]["photo"], plain[0]["inputs"]["photo"])


def test_without_augmentation_no_clip_is_read_at_random(root: Path) -> None:
    data, plain = split_of(root, "none"), split_of(root, "workers")
    plain.split = "val"
    for name, value in plain[3]["inputs"].items():
        assert torch.equal(value, data[3]["inputs"][name])


@pytest.mark.parametrize("dataset", ["digits", "twoview"])
def test_a_dataset_without_images_to_crop_refuses_the_device(dataset: str, tmp_path: Path) -> None:
    message = f"--augment device resizes random crops of images on the device, and {dataset} has no images that are"
    with pytest.raises(DatasetError, match=message):
        build_split(parse(["--dataset", dataset, "--augment", "device"], tmp_path).data, 0, "train")


def test_a_manifest_without_images_refuses_the_device(root: Path, tmp_path: Path) -> None:
    rows = [("a", "train", "x"), ("b", "train", "y"), ("c", "val", "x"), ("d", "test", "y")]
    for name in ("one", "two"):
        np.save(tmp_path / f"{name}.npy", np.ones(3, np.float32))
    lines = ["id,split,label,one,two", *(",".join((*row, "one.npy", "two.npy")) for row in rows)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    flags = ("--dataset", "manifest", "--data_root", tmp_path, "--augment", "device", "--ckpt_path", tmp_path / "run")
    assert "manifest has no images that are augmented; leave the flag out" in refused(train.main, *flags)


def test_modelnet40_is_augmented_where_it_is_asked_for(tmp_path: Path) -> None:
    for flags, expected in (
        ([], "none"),
        (["--augment", "device"], "device"),
        (["--augment", "false"], "none"),  # as its own switch was until 2026-11
        (["--augment", "true"], "workers"),
    ):
        assert parse(["--dataset", "modelnet40", *flags], tmp_path).data.augment == expected
    assert parse(["--dataset", "cremad"], tmp_path).data.augment == "workers"


@pytest.mark.slow
def test_a_run_augmented_on_a_cpu_is_that_of_workers_and_resumes(root: Path, tmp_path: Path) -> None:
    """Bit for bit, in micro-batches and with modalities missing."""
    flags = ["--dataset", "manifest", "--data_root", str(root), "--image_size", "16", "--encoder", "photo=cnn"]
    flags += ["--batch_size", "4", "--accumulate", "2", "--missing", "photo=0.2", "--num_workers", "0"]
    flags += ["--gpu_ids", "cpu"]

    def weights(run: str, *more: str) -> dict[str, Tensor]:
        done = inside(train.main, *flags, "--ckpt_path", tmp_path / run, *more)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / run / "last.pt", weights_only=True)["model"]

    workers = weights("workers", "--epochs", "2")
    device = weights("device", "--epochs", "2", "--augment", "device")
    weights("parted", "--epochs", "1", "--augment", "device")
    parted = weights("parted", "--epochs", "2", "--augment", "device", "--resume")
    refusal = refused(train.main, *flags, "--ckpt_path", tmp_path / "parted", "--epochs", "3", "--resume")
    assert "--augment device (now workers)" in refusal
    for name, value in workers.items():
        assert torch.equal(value, device[name])
        assert torch.equal(value, parted[name])
