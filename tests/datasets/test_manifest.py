"""The manifest: what a CSV file describes, and what it must not."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets.make_manifest import COLUMNS, write_manifest, write_rows
from datasets.make_media import lfs_pointer, write_video, write_wav
from entries.command import inside, refused
from PIL import Image

from mmpareto.cli import prepare as entry
from mmpareto.datasets import SPLITS, DatasetError, base, build, manifest_file
from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.features import fbank
from mmpareto.datasets.lists import read_table
from mmpareto.datasets.manifest import array_modality
from mmpareto.datasets.manifest_file import in_order, read_manifest
from mmpareto.datasets.media import read_sound
from mmpareto.datasets.readers import ImageReader
from mmpareto.preparation.audio_visual import refuse_pointers
from mmpareto.preparation.common import Clip
from mmpareto.preparation.manifest import make

Rows = list[dict[str, Any]]


def dataset(root: Path, split: Any = "train", **options: Any) -> Any:
    return build("manifest", root, split, image_size=16, **options)


def test_kinds_shapes_classes_and_splits(tmp_path: Path) -> None:
    write_manifest(tmp_path, val=True)
    parts = {split: dataset(tmp_path, split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 12, "val": 6, "test": 6}
    about = {name: (m.kind, m.shape) for name, m in parts["train"].modalities.items()}
    longest = 1 + (int(0.5 * 16000) - 400) // 160  # of the training clips: 0.4 and 0.5 s
    assert about == {
        "sound": ("spectrogram", (1, longest, 128)),
        "sight": ("frames", (3, 3, 16, 16)),
        "photo": ("image", (3, 16, 16)),
        "sensor": ("vector", (5,)),
    }
    assert parts["test"].modalities == parts["train"].modalities
    assert parts["train"].classes == ["class 0", "class 1", "class 2"]
    test = parts["test"]
    expected = fbank(read_sound(tmp_path / "sound" / "3.wav"), longest)
    np.testing.assert_allclose(test[0]["inputs"]["sound"][0], expected, atol=1e-5)
    np.testing.assert_array_equal(test[0]["inputs"]["sensor"], np.load(tmp_path / "sensor" / "3.npy"))
    assert (test[0]["id"], test[0]["label"]) == ("clip3", 0)


def test_validation_is_cut_from_train_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path)
    base.say.cache_clear()  # another test may have said it
    parts = {split: dataset(tmp_path, split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 15, "val": 3, "test": 6}
    assert sorted(parts["val"].labels) == [0, 1, 2]
    assert capsys.readouterr().err.count("no clip has the split val; 3 of 18 are cut from train") == 1


def test_lengths_and_frames_by_option(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    data = dataset(tmp_path, audio_frames=20, frames=1)
    assert data[0]["inputs"]["sound"].shape == (1, 20, 128)
    assert data[0]["inputs"]["sight"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("held", "option", "message"),
    [
        (["sensor", "sound"], "frames", "frames is for frames, and"),
        (["sensor", "sound"], "image_size", "holds sensor (array), sound (sound); leave it out"),
        (["sensor", "photo"], "audio_frames", "audio_frames is for sound or features, and"),
        (["sensor", "photo"], "frames", "leave it out"),
    ],
)
def test_options_of_modalities_that_are_not_there(tmp_path: Path, held: list[str], option: str, message: str) -> None:
    write_manifest(tmp_path)
    header, *rows = [line.split(",") for line in (tmp_path / "manifest.csv").read_text().splitlines()]
    kept = [header.index(name) for name in ("id", "split", "label", *held)]
    lines = [",".join(row[place] for place in kept) for row in (header, *rows)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    assert len(build("manifest", tmp_path, "test")) == 6
    with pytest.raises(DatasetError, match=re.escape(message)):
        build("manifest", tmp_path, "test", **{option: 2})


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "expected"),
    [
        ((7,), "float32", "vector", (7,)),
        ((9, 4), "float64", "spectrogram", (1, 9, 4)),
        ((1, 9, 4), "float32", "spectrogram", (1, 9, 4)),
        ((3, 8, 8), "uint8", "image", (3, 8, 8)),
        ((2, 3, 8, 8), "uint8", "frames", (2, 3, 8, 8)),
    ],
)
def test_arrays_by_their_shape(tmp_path: Path, shape: tuple[int, ...], dtype: str, kind: str, expected: object) -> None:
    rows = write_manifest(tmp_path)
    for row in rows:
        np.save(tmp_path / row["sensor"], np.ones(shape, dtype))
    modality = dataset(tmp_path).modalities["sensor"]
    assert (modality.kind, modality.shape) == (kind, expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "outcome"),
    [
        ((28, 30, 1), "uint8", "refused"),
        ((224, 224, 3), "uint8", "refused"),
        ((2, 16, 16, 4), "uint8", "refused"),
        ((28, 28, 3), "float32", "warned"),
        ((2, 28, 28, 3), "float64", "warned"),
        ((16, 9, 3), "uint8", "warned"),  # 16 channels, perhaps
        ((3, 28, 3), "uint8", ""),
        ((4, 9, 9, 9), "uint8", ""),
        ((16, 64, 5), "float32", ""),
    ],
)
def test_images_whose_channels_come_last(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape, dtype))
    advice = re.escape(f"is read as {shape[-3]} channels of {shape[-2]} x {shape[-1]} values; store the channels")
    if outcome == "refused":
        with pytest.raises(DatasetError, match=rf"a\.npy: an array of shape .*, which {advice}"):
            array_modality(tmp_path / "a.npy")
    else:
        assert array_modality(tmp_path / "a.npy").shape == shape
        assert bool(re.search(advice, capsys.readouterr().err)) == (outcome == "warned")


def test_labels_that_are_numbers_are_ordered_by_value() -> None:
    assert in_order({"10", "9", "1"}) == ["1", "9", "10"]
    assert in_order({"b10", "b9"}) == ["b10", "b9"]


def change(**values: str) -> Callable[[Path, Rows], None]:
    def spoil(root: Path, rows: Rows) -> None:
        rows[4] |= values
        write_rows(root, rows)

    return spoil


def drop(column: str) -> Callable[[Path, Rows], None]:
    return lambda root, rows: write_rows(root, rows, [name for name in COLUMNS if name != column])


def media(action: Callable[[Path], object]) -> Callable[[Path, Rows], None]:
    def spoil(root: Path, rows: Rows) -> None:
        action(root)

    return spoil


def pipe(path: Path, target: str | Path | None = None) -> None:
    """Puts a named pipe, or a link to something else, in the place of a file."""
    path.unlink()
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)


BAD: dict[str, tuple[Callable[[Path, Rows], None], str]] = {
    "absolute path": (change(sound="/etc/passwd"), "clip4, sound: the path '/etc/passwd' must be relative"),
    "climbing path": (change(sensor="../secret.npy"), "'../secret.npy' must be relative"),
    "no modality": (change(sensor="", sound="", sight="", photo=""), "clip4 has no modality; take its line out"),
    "climbing id": (change(id="../clip"), "the id '../clip' cannot be the name of a file"),
    "name of a column": (
        lambda root, rows: write_rows(root, [{**row, "": ""} for row in rows], [*COLUMNS, ""]),
        "no name",
    ),
    "id twice": (change(id="clip3"), "found 1 id more than once: clip3"),
    "unknown split": (change(split="dev2"), "clip4 has the split 'dev2'; expected train, val or test"),
    "no label": (change(label=""), "clip4 has no label"),
    "class without training clips": (
        change(label="rare", split="test"),
        r"no training clips of some classes: rare \(1 clip\)",
    ),
    "missing file": (change(photo="photo/99.png"), "1 of 24 files of the modality photo are not there"),
    "unknown kind of file": (change(photo="manifest.csv"), "cannot tell what manifest.csv is"),
    "two kinds in a column": (change(photo="sensor/4.npy"), "photo holds several kinds of files"),
    "no id column": (drop("id"), "the first line must name id; found"),
    "no split column": (drop("split"), "the first line must name split; found"),
    "no test clips": (
        lambda root, rows: write_rows(root, [r for r in rows if r["split"] == "train"]),
        "has the split test",
    ),
    "one modality": (
        lambda root, rows: write_rows(root, rows, ["id", "split", "label", "sound"]),
        "two or more modalities",
    ),
    "empty file": (media(lambda root: (root / "manifest.csv").write_text("")), "the file is empty"),
    "header alone": (media(lambda root: (root / "manifest.csv").write_text(",".join(COLUMNS))), "names no clips"),
    "short row": (media(lambda root: (root / "manifest.csv").open("a").write("x,train\n")), "line 26 has 2 values"),
    "not UTF-8": (media(lambda root: (root / "manifest.csv").write_bytes(b"id,\xe9")), "is not UTF-8"),
    "no manifest": (media(lambda root: (root / "manifest.csv").rename(root / "m.csv")), "has no manifest.csv"),
    "empty sound": (media(lambda root: (root / "sound" / "4.wav").write_bytes(b"")), "empty file: .*4.wav"),
    "silent sound": (
        media(lambda root: write_wav(root / "sound" / "4.wav", np.zeros(8000))),
        "clip4, sound: silent sound",
    ),
    "no frames": (media(lambda root: [path.unlink() for path in (root / "sight" / "4").iterdir()]), "no frames"),
    "cut-off image": (
        media(lambda root: (root / "photo" / "4.png").write_bytes((root / "photo" / "4.png").read_bytes()[:200])),
        "clip4, photo: .*cannot be read as an image",
    ),
    "array of another shape": (media(lambda root: np.save(root / "sensor" / "4.npy", np.ones(6))), r"found \[6\]"),
    "cut-off picture in a folder": (
        media(
            lambda root: (root / "sight" / "4" / "1.jpg").write_bytes(
                (root / "sight" / "4" / "1.jpg").read_bytes()[:-9]
            )
        ),
        r"clip4, sight: .*1\.jpg: cannot be read as an image",
    ),
    "named pipe for a picture": (media(lambda root: pipe(root / "photo" / "4.png")), r"photo/4\.png is a named pipe"),
    "named pipe for an array": (media(lambda root: pipe(root / "sensor" / "4.npy")), r"sensor/4\.npy is a named pipe"),
    "device for an array": (media(lambda root: pipe(root / "sensor" / "4.npy", "/dev/zero")), "is a device"),
    "named pipe for the manifest": (media(lambda root: pipe(root / "manifest.csv")), r"manifest\.csv: is a named pipe"),
    "folder for the manifest": (media(lambda root: pipe(root / "manifest.csv", root)), r"manifest\.csv: is a folder"),
    "line break in a label": (change(label="class\n1"), r"the value 'class\\n1' holds a line break"),
    "NUL in a path": (change(sensor="sensor/4\0.npy"), "line 6 holds a NUL"),
    "long path": (change(sensor="sensor/" + "x" * 300), "more than 255 bytes"),
    "other case": (change(photo="photo/4.PNG"), "photo/4.PNG .on disk it is .*differ in upper or lower case alone"),
    "backslashes": (change(photo="photo\\4.png"), "paths have / between folders"),
    "array with NaN": (media(lambda root: np.save(root / "sensor" / "4.npy", np.full(5, np.nan))), "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_manifests_say_what_is_wrong_and_where(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    rows = write_manifest(tmp_path)
    spoil(tmp_path, rows)
    with pytest.raises(DatasetError, match=message) as caught:
        [dataset(tmp_path, split) for split in SPLITS]
    assert str(tmp_path) in str(caught.value)


def test_links_to_files_and_paths_in_any_form_are_read(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path)
    (tmp_path / "sensor" / "4.npy").rename(tmp_path / "sensor" / "elsewhere.npy")
    (tmp_path / "sensor" / "4.npy").symlink_to("elsewhere.npy")
    rows[0]["sight"] += "/"
    rows[1]["photo"] = f"./photo//../{rows[1]['photo']}".replace("photo//../", "")
    write_rows(tmp_path, rows)
    assert len(dataset(tmp_path)) == 15


def test_names_in_another_unicode_form_are_found_and_named(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path)
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (tmp_path / "photo").rename(tmp_path / decomposed)
    write_rows(tmp_path, [row | {"photo": row["photo"].replace("photo", composed)} for row in rows])
    with pytest.raises(DatasetError, match="24 of 24 files of the modality photo are not there") as caught:
        dataset(tmp_path)
    assert "differ in Unicode form (NFC or NFD) alone" in str(caught.value)
    assert "cafe\\u0301/0.png" in str(caught.value)


def test_a_manifest_is_read_once_for_its_splits_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_manifest(tmp_path, val=True)
    reads: list[Path] = []

    def counted(path: Path, columns: Sequence[str]) -> Any:
        reads.append(path)
        return read_table(path, columns)

    monkeypatch.setattr(manifest_file, "read_table", counted)
    for split in SPLITS:
        dataset(tmp_path, split)
    assert len(reads) == 1
    write_rows(tmp_path, rows[:-1])
    assert len(dataset(tmp_path, "test")) == 5
    assert len(reads) == 2


def test_flags_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "raw", val=True)
    flags = ("manifest", "--source", tmp_path / "raw", "--output", tmp_path / "out")
    for useless, message in (
        (("--sound", "sight"), "--sound names sight, which holds no videos but frames"),
        (("--fps", "2"), "--fps is for videos that are seen"),
        (("--val_fraction", "0.2"), "has clips of the split val: leave --val_fraction out"),
    ):
        assert message in refused(entry.main, *flags, *useless)
    rows = read_table(tmp_path / "raw" / "manifest.csv", ()).to_dict("records")
    write_rows(tmp_path / "raw", rows, ["id", "split", "label", "sound", "sensor"])
    assert "--frame_size is for images and videos; " in refused(entry.main, *flags, "--frame_size", "8")


def test_larger_images_are_stored_at_the_size_asked_for(tmp_path: Path) -> None:
    """The shorter side is the one asked for, as Pillow resizes it; smaller images are copied to the byte."""
    rows = write_manifest(tmp_path / "raw", 12)
    random = np.random.default_rng(0)
    large = Image.fromarray(random.integers(0, 256, (60, 90, 3)).astype(np.uint8))
    large.save(tmp_path / "raw" / "photo" / "0.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    large.save(tmp_path / "raw" / "sight" / "0" / "1.jpg", exif=turned)
    out = tmp_path / "out"
    flags = ("--source", tmp_path / "raw", "--output", out, "--workers", "1", "--frame_size", "30")
    assert inside(entry.main, "manifest", *flags).returncode == 0
    stored = np.asarray(Image.open(out / "photo" / "clip0.png"))
    np.testing.assert_array_equal(stored, np.asarray(large.resize((45, 30), Image.Resampling.BICUBIC)))
    assert [Image.open(out / "sight" / "clip0" / f"{n}.jpg").size for n in (0, 1, 2)] == [(24, 20), (30, 45), (24, 20)]
    for name in ("photo/1.png", "sight/1/2.jpg"):
        place = out / name.replace("/1", "/clip1")
        assert place.read_bytes() == (tmp_path / "raw" / name).read_bytes()
    assert len(rows) == 12


def test_validation_is_cut_in_whole_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_manifest(tmp_path, 24)
    speakers = [row | {"group": f"speaker {number // 6}"} for number, row in enumerate(rows)]
    write_rows(tmp_path, speakers)
    base.say.cache_clear()
    listed = read_manifest(tmp_path)
    assert list(listed.sources) == ["sound", "sight", "photo", "sensor"]
    of = {row["id"]: row["group"] for row in speakers}
    groups = {split: {of[item.id] for item in items} for split, items in listed.clips.items()}
    assert len(groups["val"]) == 1
    assert not groups["val"] & groups["train"]
    said = capsys.readouterr().err
    assert "4 of 18 are cut from train, stratified by class, in whole groups (1)" in said
    assert "manifest: 4 of 4 groups have clips in several splits, such as speaker 0 in train and test" in said
    alone = [row | {"group": "" if row["split"] == "test" else row["group"]} for row in speakers]
    write_rows(tmp_path, alone)
    base.say.cache_clear()
    read_manifest(tmp_path)
    assert "several splits" not in capsys.readouterr().err
    write_rows(tmp_path, [row | {"group": "one"} for row in rows])
    with pytest.raises(DatasetError, match=r"no choice of whole groups \(1 group\) leaves every class in train"):
        read_manifest(tmp_path)
    write_rows(tmp_path, [row | {"group": row["photo"]} for row in rows])
    with pytest.raises(DatasetError, match=r"the column group names the group of each clip, .* holds the file photo/0"):
        read_manifest(tmp_path)


def test_what_is_not_there_is_left_out_of_a_preparation(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path)
    shutil.rmtree(tmp_path / "sight" / "4")
    (tmp_path / "sound" / "5.wav").unlink()
    listed = read_manifest(tmp_path, missing_ok=True)
    assert listed.sources == {"sound": "sound", "sight": "frames", "photo": "image", "sensor": "array"}
    with pytest.raises(DatasetError, match="1 of 24 files of the modality sound are not there"):
        read_manifest(tmp_path)
    write_rows(tmp_path, [row | {"sight": "sight/none"} for row in rows])
    with pytest.raises(DatasetError, match="not one file of the modality sight is there"):
        read_manifest(tmp_path, missing_ok=True)


def test_clips_are_prepared_from_pictures_of_any_kind(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path / "raw")
    sources: Any = {"sight": "frames", "photo": "image"}
    Image.fromarray(np.full((9, 9), 120 * 257, np.uint16)).save(tmp_path / "raw" / "photo" / "0.png")

    def prepared(number: int) -> Path:
        paths = {name: tmp_path / "raw" / rows[number][name] for name in sources}
        folder = tmp_path / f"out{number}"
        folder.mkdir()
        clip = Clip(rows[number]["id"], "train", "x", paths)
        suffixes = {"sight": "", "photo": ".bmp"}
        make(clip, folder, sources=sources, suffixes=suffixes, fps=1, frame_size=None)
        return folder

    folder = prepared(0)
    assert ImageReader(4).read(folder / "photo.bmp", None).unique().tolist() == [120]
    assert sorted(path.name for path in (folder / "sight").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
    refuse_pointers([Clip("a", "train", "x", {"sight": tmp_path / "raw" / "sight" / "0"})], tmp_path)
    lfs_pointer(tmp_path / "raw" / "photo" / "1.png")
    with pytest.raises(UnusableError, match="git-lfs pointer"):
        prepared(1)


def test_videos_are_prepared_first(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path)
    for number, row in enumerate(rows):
        row["sight"] = f"clips/{number}.mp4"
        write_video(tmp_path / row["sight"], 2)
    write_rows(tmp_path, rows)
    with pytest.raises(DatasetError, match="sight holds videos, which are prepared first: python code/prepare"):
        dataset(tmp_path)
