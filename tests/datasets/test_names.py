"""Warnings about labels and ids: typing errors, rare and missing classes, names that look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from datasets.make_manifest import write_manifest, write_rows
from datasets.make_media import tone, write_wav

from mmpareto.datasets import SPLITS, MultimodalDataset, build
from mmpareto.datasets.names import class_text, class_warnings, name_warnings, sample_warnings

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
MIXED = "Unicode form, case, spaces, invisible characters or zeros around a number"


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        ([COMPOSED, DECOMPOSED], "Unicode form (NFC, NFD)"),
        (["Happy", "happy"], "upper and lower case"),
        (["Straße", "STRASSE"], "upper and lower case"),
        (["happy", "hap\u200bpy"], "invisible characters"),
        (["happy", "\ufeffhappy"], "invisible characters"),
        (["happy", "ha\u00adppy"], "invisible characters"),
        (["happy", "happy\ufe0f"], "invisible characters"),
        (["very happy", "very  happy"], "spaces"),
        (["very happy", "very\u00a0happy"], "spaces"),
        (["veryhappy", "very happy"], "spaces"),
        (["Very happy", "very\u200b\u00a0happy"], MIXED),
        ([COMPOSED.upper(), DECOMPOSED], MIXED),
        (["1", "01"], "zeros around a number"),
        (["10", "10.0"], "zeros around a number"),
        (["0", "000"], "zeros around a number"),
    ],
)
def test_names_that_look_alike_are_named_with_their_counts(names: list[str], difference: str) -> None:
    first, second = names
    warning = name_warnings("classes", [first, "other", second], {first: 39, "other": 40, second: 1})[0]
    assert f"classes that look alike: {first!a} (39), {second!a} (1) differ in {difference} alone" in warning


def test_a_large_group_of_names_that_look_alike_is_cut_short() -> None:
    names = ["a" * count + "A" * (1000 - count) for count in range(1000)]
    (warning,) = name_warnings("ids", names)
    assert warning.count("'") == 2 * 5
    assert "and 995 more differ in upper and lower case alone" in warning


def test_different_names_are_no_reason_to_warn() -> None:
    assert name_warnings("classes", ["mid", "midd", "1", "10", "1.5", "v01", "v1", "é", "e", "日本", "中国"]) == []


def test_invisible_characters_are_named_without_a_second_name() -> None:
    assert (
        "classes with invisible characters: 'hap\\u200bpy' (7)"
        in name_warnings("classes", ["hap\u200bpy", "sad"], {"hap\u200bpy": 7, "sad": 1})[0]
    )


def test_a_class_with_one_or_two_samples_is_named_with_what_it_may_be() -> None:
    counts = {"train": [40, 1, 30, 2], "val": [4, 0, 3, 1], "test": [4, 1, 3, 1]}
    rare, absent = class_warnings(["mid", "midd", "low", "rare"], counts)
    assert "2 of 4 classes have one or two samples in train" in rare
    assert "'midd' (1 train, 0 val, 1 test), similar to 'mid' (40 train, 4 val, 4 test)" in rare
    assert "'rare' (2 train, 1 val, 1 test); look for typing errors" in rare
    assert "1 of 4 classes have no samples in val: 'midd' (1 train, 0 val, 1 test)" in absent


def test_classes_without_samples_are_named_for_each_split() -> None:
    counts = {"train": [0, 9], "val": [1, 0], "test": [1, 0]}
    assert [text.split(":")[0] for text in class_warnings(["a", "b"], counts)] == [
        f"1 of 2 classes have no samples in {split}" for split in counts
    ]


def test_long_lists_are_cut_short() -> None:
    names = [f"class {number}" for number in range(1000)]
    counts = {"train": [1] * 1000, "val": [0] * 1000, "test": [5] * 1000}
    rare, absent = class_warnings(names, counts)
    assert "1000 of 1000 classes have one or two samples" in rare
    assert "'class 4'" in rare
    assert "'class 5' (" not in rare.replace("similar to 'class 5' (", "")
    assert "; and 995 more;" in rare
    assert "; and 995 more;" in absent


def test_samples_of_each_class_are_shown_shortly() -> None:
    counts = {"train": [40, 1], "val": [4, 0], "test": [5, 1]}
    assert class_text(["mid", "midd"], counts) == "samples in train/val/test: mid 40/4/5, midd 1/0/1"
    many = {"train": list(range(1, 1001)), "val": [2] * 1000}
    assert class_text([str(i) for i in range(1000)], many) == (
        "1000 classes, least/median/most samples of one: train 1/500.5/1000, val 2/2/2"
    )


def test_ids_and_modalities_are_looked_at_too() -> None:
    warnings = sample_warnings(
        ["a"],
        {"train": np.zeros(3, int), "val": np.zeros(3, int), "test": np.zeros(3, int)},
        {"train": ["x1", "x2", COMPOSED], "val": ["x3", "X1", DECOMPOSED], "test": ["x2", "x4", "x5"]},
        ["sound", "Sound"],
    )
    assert warnings[0].startswith("ids that are in two splits: 'x2'")
    assert (
        "ids that look alike: 'x1', 'X1' differ in upper and lower case alone; 'caf\\xe9', 'cafe\\u0301'" in warnings[1]
    )
    assert "modalities that look alike: 'sound', 'Sound'" in warnings[2]


def test_a_file_that_is_in_two_splits_under_two_ids_is_named(tmp_path: Path) -> None:
    rows = []
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", np.ones(3))
        split = ("train", "train", "val", "test")[number % 4]
        rows.append({"id": f"c{number}", "split": split, "label": "ab"[number // 4], "a": f"{number}.npy"})
        rows[-1] |= {"b": "" if number == 1 else f"{number}.npy", "words": "the same words"}
    write_rows(tmp_path, rows)
    data = {split: build("manifest", tmp_path, split, text=("words",)) for split in SPLITS}
    assert not warned(data)
    rows[2]["a"] = "./0.npy"
    rows[7]["b"] = "1.npy"
    write_rows(tmp_path, rows)
    data = {split: build("manifest", tmp_path, split, text=("words",)) for split in SPLITS}
    (warning,) = warned(data)
    assert warning.startswith("files that are in two splits: '0.npy'; '1.npy'; where they are the same samples")


def warned(data: Mapping[str, MultimodalDataset]) -> list[str]:
    labels = {split: np.repeat([0, 1], 3) for split in data}
    files = {split: part.sample_files() for split, part in data.items()}
    return sample_warnings(["a", "b"], labels, {}, ["s", "t"], files)


@pytest.mark.parametrize(
    ("labels", "lacking", "message"),
    [
        ("aabbcc", "-++---", ""),  # of two classes
        ("aabbcc", "++----", r"without s are all of the class 'a' (2 of its 2): its absence gives the class away"),
        ("aabbcc", "+-----", ""),  # one of two: by chance, perhaps
        ("b" * 30 + "a", "+" * 10 + "-" * 21, r"'b' (10 of its 30)"),
        ("b" * 30 + "a", "+" * 9 + "-" * 22, ""),
        ("b" * 10, "+" * 9 + "-", ""),  # there is no other class
    ],
)
def test_a_modality_that_one_class_alone_lacks_gives_it_away(labels: str, lacking: str, message: str) -> None:
    indices = np.array(["abc".index(label) for label in labels])
    absent = {"s": np.array([mark == "+" for mark in lacking]), "t": np.zeros(len(labels), bool)}
    counts = {"train": indices}
    found = [
        text
        for text in sample_warnings(["a", "b", "c"], counts, {}, ["s", "t"], absent=absent)
        if text.startswith("training samples without")
    ]
    assert len(found) == bool(message)
    assert all(message in text for text in found)


def test_sounds_of_several_rates_are_counted(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path, 12, val=True)
    options = {"image_size": 8, "frames": 1}
    for expected in ([], ["16000 Hz (5 train, 3 val, 3 test), 22050 Hz (1 train)"]):
        data = {split: build("manifest", tmp_path, split, **options) for split in SPLITS}
        readers = {split: part.saved_readers() for split, part in data.items()}
        labels = {split: part.labels for split, part in data.items()}
        warnings = sample_warnings(["a", "b", "c"], labels, {}, ["sound"], readers=readers)
        assert [re.split("[:;] ", text)[1] for text in warnings if " Hz " in text] == expected
        write_wav(tmp_path / rows[0]["sound"], tone(0.4, 300, 22050), 22050)
        (tmp_path / ".checked.json").unlink()
    # a dataset that was checked before: some training sounds are looked at
    again = [build("manifest", tmp_path, "train", **options).saved_readers()["sound"] for _ in range(2)]
    assert again[0] == again[1] == readers["train"]["sound"]
    assert again[0]["rates"] == {"16000": 5, "22050": 1}
