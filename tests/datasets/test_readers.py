"""Readers of images and folders of frames: the order of the frames, and what their check decodes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpareto.datasets import DatasetError
from mmpareto.datasets.readers import FramesReader, ImageReader, frame_files, frame_names


@pytest.mark.parametrize(
    "names",
    [
        ["00-01-900", "00-02-100", "01-00-000"],  # minutes, seconds, milliseconds
        ["0h59m59s", "1h00m00s", "1h00m01s"],
        [f"clip_00_{second}" for second in range(30, 60)] + [f"clip_01_{second}" for second in range(30)],
        ["frame1_cam8", "frame2_cam7", "frame10_cam0"],
        ["1_of_300", "2_of_300", "10_of_300"],
        ["839201_8", "102938_9", "555555_10"],  # the last number counts: the first ones are no part of the order
        ["3fa9_1", "0bc2_5", "1ce_10"],
    ],
)
def test_frames_come_in_the_order_of_all_numbers_in_their_names(names: list[str], tmp_path: Path) -> None:
    for name in random.Random(0).sample(names, len(names)):
        (tmp_path / f"{name}.jpg").touch()
    assert [path.stem for path in frame_files(tmp_path)] == names


def test_a_folder_of_frames_is_listed_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for number in (2, 10):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(tmp_path / f"{number}.png")
    reader = FramesReader(2, 4)
    before = reader.read(tmp_path, None)
    with monkeypatch.context() as patch:
        patch.setattr("os.listdir", None)
        assert reader.read(tmp_path, None).equal(before)
    (tmp_path / "2.png").rename(tmp_path / "11.png")
    (tmp_path / "a.txt").touch()  # another size or time of the folder
    assert frame_names(tmp_path) == ["10.png", "11.png"]
    assert reader.read(tmp_path, None).equal(before.flip(0))


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp", "gif"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_cut_off_image_of_any_format_is_found_by_the_check(kind: str, part: float, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    path = tmp_path / "a.png"  # a reader goes by the content
    Image.fromarray(pixels).save(path, {"jpg": "JPEG"}.get(kind, kind.upper()))
    ImageReader(4).check(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DatasetError, match=r"a\.png: cannot be read as an image"):
        ImageReader(4).check(path)
