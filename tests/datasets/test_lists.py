"""Lists of clips: what is read, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mmpareto.datasets import DatasetError
from mmpareto.datasets.lists import check_classes, check_id, check_unique, cut, inside, read_rows


def test_rows_are_read_without_blanks_and_byte_order_marks(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffid , label\n\n a,1\r\n  , \n"b,c", é\n'.encode())
    assert read_rows(file) == [["id", "label"], ["a", "1"], ["b,c", "é"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        ("clip,glücklich".encode("latin-1"), "byte 7 is not UTF-8"),
        (b'"' + b"1001_DFA_ANG_XX,ANG\n" * 8000, "look for a lone quotation mark"),
        (None, "no such"),
    ],
)
def test_lists_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "a.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("bad", ["", "../a", "/a", "a/b", "a\\b", ".hidden", "C:a", "a\nb", "a\0"])
def test_ids_that_are_no_file_names(bad: str) -> None:
    with pytest.raises(DatasetError, match=r"list\.csv"):
        check_id(bad, "list.csv")


@pytest.mark.parametrize("good", ["1001_DFA_ANG_XX", "-abc_DEF-123_000010_000020", "a b", "é"])
def test_ids_that_are(good: str) -> None:
    assert check_id(good, "list.csv") == good


@pytest.mark.parametrize("bad", ["", "/etc/passwd", "../a", "a/../../b", "C:\\a", "\\\\host\\a"])
def test_paths_stay_inside(tmp_path: Path, bad: str) -> None:
    with pytest.raises(DatasetError, match="stay inside"):
        inside(tmp_path, bad, "m.csv")
    assert inside(tmp_path, "a/b.wav", "m.csv") == tmp_path / "a" / "b.wav"


def test_duplicates_and_unknown_classes_are_named() -> None:
    with pytest.raises(DatasetError, match="x: 2 ids come more than once: a, c"):
        check_unique(["a", "b", "a", "c", "c"], "x")
    with pytest.raises(DatasetError, match="unknown classes Z; known: A, B"):
        check_classes(["A", "Z"], ["A", "B"], "x")


def test_cuts_are_stratified_seeded_and_whole() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    stay, off = cut(labels, 0.2, 0, "validation")
    assert sorted(stay + off) == list(range(100))
    assert Counter(labels[i] for i in off) == {"a": 12, "b": 6, "c": 2}
    assert (stay, off) == cut(labels, 0.2, 0, "validation")
    assert off != cut(labels, 0.2, 1, "validation")[1]


def test_a_small_cut_has_every_class() -> None:
    _, off = cut(["a", "b", "c"] * 5, 0.1, 0, "validation")
    assert len(off) == 3


@pytest.mark.parametrize("labels", [["a", "a", "b"], ["a", "b"], ["a", "b", "a", "b", "c"]])
def test_cuts_that_cannot_be_made(labels: list[str]) -> None:
    with pytest.raises(DatasetError, match="on both sides"):
        cut(labels, 0.5, 0, "validation")
