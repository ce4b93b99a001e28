"""A prepared dataset from a stranger: its dataset.json and its splits name nothing outside its folder."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmpareto.datasets import DatasetError, prepared
from mmpareto.datasets.lists import read_table
from mmpareto.datasets.prepared import read_description, read_split
from mmpareto.writing import write_text

WHOLE = {"name": "manifest", "parameters": {}, "modalities": {"x": ".npy"}, "classes": ["a"]}


@pytest.mark.parametrize(
    "change",
    [
        {"modalities": {"../x": ".npy"}},
        {"modalities": {"/tmp": ".npy"}},
        {"modalities": {"x": "/../../y"}},
        {"modalities": {"x": None}},
        {"modalities": {"splits": ".csv"}},
        {"modalities": ["x"]},
        {"modalities": {}},
        {"classes": ["a", "a"]},
        {"classes": ["a\nb"]},
        {"classes": ["\x1b[2J"]},
        {"classes": ["\ud800"]},
        {"classes": [1]},
        {"classes": "abc"},
        {"classes": []},
        {"parameters": 3},
        {"name": ["manifest"]},
    ],
)
def test_a_description_that_preparations_do_not_write_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(WHOLE))
    assert read_description(tmp_path, "manifest") == WHOLE
    (tmp_path / "dataset.json").write_text(json.dumps(WHOLE | change))
    with pytest.raises(DatasetError):
        read_description(tmp_path, "manifest")


def test_deep_nesting_and_pipes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_description(tmp_path, "manifest")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DatasetError, match="is a named pipe"):
        read_description(tmp_path, "manifest")


def test_ids_of_a_split_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(WHOLE))
    (tmp_path / "splits").mkdir()
    split = tmp_path / "splits" / "train.csv"
    split.write_text("id,label\nc1,a\n")
    assert read_split(tmp_path, "manifest", "train", {}, ["a"])[0].paths == {"x": tmp_path / "x" / "c1.npy"}
    for bad, message in (
        ("id,label\n../c1,a\n", r"the id '\.\./c1' cannot be"),
        ("id,label\n/c1,a\n", "the id '/c1' cannot be"),
        ("id,label\nc1,other\n", "unknown classes other"),
        ("id,label\nc1\n", "line 2 has 1 value, the header 2; expected id,label"),
        ("id,label\nc1,a,b\n", "line 2 has 3 values, the header 2"),
    ):
        split.write_text(bad)
        with pytest.raises(DatasetError, match=message):
            read_split(tmp_path, "manifest", "train", {}, ["a"])
    split.unlink()
    os.mkfifo(split)
    with pytest.raises(DatasetError, match="is a named pipe"):
        read_split(tmp_path, "manifest", "train", {}, ["a"])


def test_writing_follows_no_link_and_waits_for_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody could tell the name of the file in progress."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: "00")
    (tmp_path / "mine").write_text("mine")
    beside = tmp_path / f".stamp.00.{os.getpid()}.part"
    for place in (lambda: beside.symlink_to("mine"), lambda: os.mkfifo(beside)):
        place()
        with pytest.raises(FileExistsError):
            write_text(tmp_path / "stamp", "one")
        assert (tmp_path / "mine").read_text() == "mine"
        assert not (tmp_path / "stamp").exists()


def test_the_file_of_a_split_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(WHOLE))
    (tmp_path / "splits").mkdir()
    split = tmp_path / "splits" / "train.csv"
    split.write_text("id,label\nc1,a\n")
    reads: list[Path] = []

    def counted(path: Path, columns: Sequence[str]) -> Any:
        reads.append(path)
        return read_table(path, columns)

    monkeypatch.setattr(prepared, "read_table", counted)
    for _ in range(3):
        assert read_split(tmp_path, "manifest", "train", {}, ["a"]).ids == ["c1"]
    assert reads == [split]
    split.write_text("id,label\nc1,a\nc2,a\n")
    assert read_split(tmp_path, "manifest", "train", {}, ["a"]).ids == ["c1", "c2"]
    with pytest.raises(DatasetError, match="unknown classes a"):
        read_split(tmp_path, "manifest", "train", {}, ["b"])
