"""Two views of digits: pairs within a class and a split, angles and noise as asked for, the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets.real import real
from datasets.test_cgmnist import write_mnist

from mmpareto import datasets
from mmpareto.datasets import SPLITS, DatasetError
from mmpareto.datasets.digits import digits_split
from mmpareto.datasets.in_memory import InMemoryImages
from mmpareto.datasets.twoview import partners, rotate


def two_views(split: str, root: Path | None = None, **options: Any) -> InMemoryImages:
    dataset = datasets.build("twoview", root, split, **options)  # type: ignore[arg-type]
    assert isinstance(dataset, InMemoryImages)
    return dataset


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_partners_are_others_of_the_class_and_each_is_one_once() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    partner = partners(labels, np.random.default_rng(1))
    assert np.array_equal(labels[partner], labels)
    assert (partner != np.arange(200)).all()
    assert sorted(partner) == list(range(200))


@pytest.mark.parametrize("split", SPLITS)
def test_both_views_are_images_of_the_same_class_and_split(split: str) -> None:
    """Without rotation and noise the views are the images themselves."""
    dataset = two_views(split, rotation=0.0, noise=0.0, pairs=2)
    small, labels, ids = digits_split(split)  # type: ignore[arg-type]
    assert len(dataset) == 2 * len(labels)
    assert np.array_equal(dataset.labels, np.tile(labels, 2))
    assert dataset.sample_ids() == [f"{name}_{number}" for number in range(2) for name in ids]
    images = F.interpolate(small, size=(12, 12), mode="bilinear", align_corners=False).round()
    turned = dataset.images["rotated"].float().view(2, *images.shape)  # the first view of pair i is image i
    torch.testing.assert_close(turned, images.expand_as(turned), atol=1, rtol=0)
    label_of = {image.byte().numpy().tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert len(label_of) == len(labels)
    second = [image.numpy().tobytes() for image in dataset.images["noisy"]]
    assert [label_of[image] for image in second] == dataset.labels.tolist()
    assert all(set(part) == set(label_of) for part in (second[: len(labels)], second[len(labels) :]))
    assert (dataset.images["noisy"] != torch.cat([images, images])).flatten(1).any(1).all()  # never itself


def test_no_image_is_in_two_splits() -> None:
    images = [rows(two_views(split, rotation=0.0, noise=0.0, pairs=1).images["noisy"]) for split in SPLITS]
    assert not images[0] & images[1] | images[0] & images[2] | images[1] & images[2]


def test_rotation_is_counter_clockwise_about_the_centre() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    for quarters in range(4):
        turned = rotate(image, torch.tensor([90.0 * quarters]))
        torch.testing.assert_close(turned, torch.rot90(image, quarters, (2, 3)), atol=1e-4, rtol=0)


def test_options_are_the_difficulty() -> None:
    plain = two_views("val", rotation=0.0, noise=0.0, pairs=1)
    noisy = two_views("val", rotation=0.0, noise=0.5, pairs=1)
    added = noisy.images["noisy"].float() - plain.images["noisy"].float()
    black = plain.images["noisy"] == 0
    assert added[black].mean() == pytest.approx(255 * 0.25, rel=0.02)
    assert added[black].max() <= 128
    assert added.min() >= 0
    little, much = (two_views("val", rotation=angle, pairs=1).images["rotated"].float() for angle in (10.0, 90.0))
    upright = plain.images["rotated"].float()
    assert (much - upright).abs().mean() > 2 * (little - upright).abs().mean()


def test_the_dataset_is_the_same_for_every_seed_and_pairs_differ() -> None:
    one, other = two_views("train"), two_views("train", seed=7)
    assert all(torch.equal(one.images[name], other.images[name]) for name in one.images)
    assert len(one) == 2 * 1197
    first, second = one.images["rotated"][:1197], one.images["rotated"][1197:2394]
    assert not torch.equal(first, second)
    batch = one.__getitems__([3, 2000])
    assert torch.equal(batch["inputs"]["noisy"][1], one[2000]["inputs"]["noisy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -1.0}, "--rotation must lie between 0 and 180 degrees, found -1"),
        ({"rotation": 181.0}, "found 181"),
        ({"noise": -0.1}, "--noise must lie between 0 and 100, found -0.1"),
        ({"noise": float("nan")}, "found nan"),
        ({"pairs": 0}, "--pairs must be 1 or more, found 0"),
        ({"source": "mnist"}, "reads MNIST; give its folder with --data_root"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        two_views("val", **options)


def test_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    parts = {split: two_views(split, tmp_path, source="mnist", pairs=2) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 720, "val": 80, "test": 100}
    assert parts["train"].modalities["noisy"].shape == (1, 28, 28)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match="lacks t10k-labels-idx1-ubyte"):
        two_views("train", tmp_path, source="mnist")


def test_real_mnist() -> None:
    dataset = two_views("test", real("mnist"), source="mnist", pairs=1)
    assert len(dataset) == 10000
    assert dataset.labels[:5].tolist() == [7, 2, 1, 0, 4]  # the well-known beginning of the test part
