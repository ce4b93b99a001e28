"""Preparation of a manifest: files that are missing, and columns of several suffixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets.make_manifest import write_rows
from entries.command import inside, refused
from PIL import Image

from mmpareto.cli import prepare as entry
from mmpareto.datasets import DatasetError, build
from mmpareto.preparation import manifest
from mmpareto.preparation.common import Clip


def write_source(root: Path) -> None:
    rows = []
    for number in range(6):
        root.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(root / f"{number}.png")
        np.save(root / f"{number}.npy", np.full(4, number, np.float32))
        split = ("train", "train", "val", "val", "test", "test")[number]
        files = {"photo": f"{number}.png", "sensor": f"{number}.npy"}
        rows.append({"id": f"c{number}", "split": split, "label": "xy"[number % 2], **files})
    write_rows(root, rows)


def test_clips_that_lack_a_file_count_as_unusable_and_name_it(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_source(raw)
    (raw / "1.npy").rename(raw / "1.NPY")
    flags = ("manifest", "--source", raw, "--output", out, "--workers", "1")
    done = inside(entry.main, *flags)
    assert done.returncode == 1
    assert f"unusable, no such file: 1, such as c1: sensor: {raw / '1.npy'} (on disk it is" in done.stdout
    assert "16.7 % of the clips are unusable, more than --max_unusable 5" in done.stderr
    assert inside(entry.main, *flags, "--max_unusable", "20").returncode == 0


def test_a_preparation_that_has_not_ended_is_named(tmp_path: Path) -> None:
    (tmp_path / ".preparation.json").write_text("{}")
    with pytest.raises(DatasetError, match="its preparation has not ended; run it again"):
        build("manifest", tmp_path, "train")


@pytest.mark.parametrize("fps", ["0.0001", "0", "inf", "100000"])
def test_impossible_frame_rates(tmp_path: Path, fps: str) -> None:
    said = refused(entry.main, "manifest", "--source", tmp_path, "--output", tmp_path / "out", "--fps", fps)
    assert "expected a number from 0.001 to 1000" in said


@pytest.mark.parametrize(
    ("names", "source", "suffix"),
    [
        (["a.jpg", "b.jpeg", "c.JPG"], "image", ".jpg"),
        (["a.JPG", "b.JPG"], "image", ".JPG"),
        (["a.jpg", "b.png"], "image", ".png"),
        (["a.NPY", "b.npy"], "array", ".npy"),
        (["a.pt", "b.npy"], "array", ".npy"),
    ],
)
def test_suffixes_of_one_format_are_one_kind(tmp_path: Path, names: list[str], source: Any, suffix: str) -> None:
    assert manifest._suffix(source, [tmp_path / name for name in names]) == suffix


def test_pictures_of_one_format_are_copied(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (9, 9, 3)).astype(np.uint8)).save(tmp_path / "a.jpeg")
    clip = Clip("a", "train", "x", {"m": tmp_path / "a.jpeg"})
    (tmp_path / "out").mkdir()
    manifest.make(clip, tmp_path / "out", sources={"m": "image"}, suffixes={"m": ".jpg"}, fps=1, frame_size=None)
    assert (tmp_path / "out" / "m.jpg").read_bytes() == (tmp_path / "a.jpeg").read_bytes()


def test_bfloat16_beside_arrays_of_numpy(tmp_path: Path) -> None:
    torch.save(torch.tensor([0.1, 300.0], dtype=torch.bfloat16), tmp_path / "a.pt")
    manifest._copy_array(tmp_path / "a.pt", tmp_path / "a.npy")
    expected = torch.tensor([0.1, 300.0], dtype=torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
