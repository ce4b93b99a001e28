"""Kinetics-Sounds: the listed seconds of a whole video, and videos that several splits list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets.make_media import tone, write_video
from PIL import Image

from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.features import fbank
from mmpareto.datasets.kinetics_sounds import CLASSES
from mmpareto.datasets.media import read_sound
from mmpareto.preparation.audio_visual import make
from mmpareto.preparation.common import Clip
from mmpareto.preparation.kinetics_sounds import part_of, published_list, warn_of_shared


@pytest.mark.parametrize(
    ("clip", "file", "part"),
    [
        ("abcdefghijk_000010_000020", "abcdefghijk.mp4", (10.0, 20.0)),
        ("abcdefghijk_000010_000020", "abcdefghijk.f137.mp4", (10.0, 20.0)),
        ("abcdefghijk_000010_000020", "abcdefghijk_000010_000020.mp4", None),
        ("abcdefghijk_000010_000020", "abcdefghijk_10_20.mp4", None),
        ("abcdefghijk", "abcdefghijk.mp4", None),
    ],
)
def test_files_without_times_in_their_names_may_be_whole(
    clip: str, file: str, part: tuple[float, float] | None
) -> None:
    assert part_of(clip, Path(file)) == part


@pytest.mark.parametrize(
    ("part", "frames", "seconds"),
    [
        (None, range(6), (0.0, 6.0)),
        ((2.0, 4.0), range(2, 4), (2.0, 4.0)),  # 6 s are longer than 2
        ((30.0, 35.0), range(6), (0.0, 6.0)),  # cut already: 6 s, on a key frame, are the 5 that are listed
    ],
)
def test_the_listed_seconds_of_a_longer_file(
    tmp_path: Path, part: tuple[float, float] | None, frames: range, seconds: tuple[float, float]
) -> None:
    file = write_video(tmp_path / "abcdefghijk.mkv", 60, 10, sound=tone(6.0), sound_codec="pcm_s16le")
    clip = Clip("a", "train", "x", {"audio": file, "visual": file}, part=part)
    (tmp_path / "out").mkdir()
    make(clip, tmp_path / "out", audio_features="fbank", fps=1)
    shades = [np.asarray(Image.open(path)).mean() for path in sorted((tmp_path / "out" / "visual").iterdir())]
    assert shades == pytest.approx([70 * second % 240 + 16 for second in frames], abs=8)
    expected = fbank(read_sound(file, seconds))
    np.testing.assert_allclose(np.load(tmp_path / "out" / "audio.npy"), expected, atol=0.02)


def test_a_part_that_the_file_does_not_reach_is_unusable(tmp_path: Path) -> None:
    file = write_video(tmp_path / "abcdefghijk.mp4", 60, 10, sound=tone(6.0))
    clip = Clip("a", "train", "x", {"audio": file, "visual": file}, part=(10.0, 12.0))
    with pytest.raises(UnusableError, match="it ends before the part from 10 to 12 s"):
        make(clip, tmp_path, audio_features="fbank", fps=1)


def test_videos_in_several_splits_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    train = [("aaaaaaaaaaa_000010_000020", "singing"), ("aaaaaaaaaaa_000030_000040", "singing"), ("b" * 11, "singing")]
    warn_of_shared({"train": train})
    assert capsys.readouterr().err == ""
    warn_of_shared({"train": train, "test": [("aaaaaaaaaaa_000000_000010", "singing"), ("c" * 11, "singing")]})
    said = capsys.readouterr().err
    assert "warning: 1 video in several splits, such as aaaaaaaaaaa_000030_000040 (train) and" in said
    assert "aaaaaaaaaaa_000000_000010 (test); take them out of all splits but one" in said


def test_labels_of_a_published_list_are_places_in_the_alphabet(tmp_path: Path) -> None:
    lines = [f"-ab_000000{k}_000000_000010,10,{label}\n" for k, label in enumerate((0, 25, 30))]
    (tmp_path / "list.txt").write_text("".join(lines))
    assert [name for _, name in published_list(tmp_path / "list.txt")] == ["blowing_nose", "singing", "tickling"]
    assert sorted(CLASSES) == CLASSES
    assert len(CLASSES) == 31
