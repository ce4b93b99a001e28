"""Lists of clips: what is read, and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmpareto.datasets import DatasetError
from mmpareto.datasets.lists import (
    check_classes,
    check_ids,
    check_inside,
    check_modality,
    check_unique,
    cut,
    cut_groups,
    read_rows,
    read_table,
)


def test_rows_are_read_without_blanks_and_byte_order_marks(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffid , label\n\n a,1\r\n  , \n"b,c", é\n'.encode())
    assert read_rows(file) == [["id", "label"], ["a", "1"], ["b,c", "é"]]


def test_a_sparse_file_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    os.truncate(tmp_path / "a.csv", 2**40)
    with pytest.raises(DatasetError, match="larger than 1 GiB"):
        read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        ("clip,glücklich".encode("latin-1"), "byte 7 is not UTF-8"),
        (b'"' + b"1001_DFA_ANG_XX,ANG\n" * 8000, "look for a lone quotation mark"),
        (None, "no such"),
        ("id,label\na,x".encode("utf-16"), "is UTF-16, not UTF-8"),
        (b'id,label\na,"x\ny"\n', r"the value 'x\\ny' holds a line break"),
        (b'id,label\na,"x\ry"\n', r"the value 'x\\ry' holds a line break"),
        (b'id,label\na,"x\r\n"\n', "holds a line break"),
        (b"id,label\r\na,x\0y\n", r"line 2 holds a NUL \(U\+0000\)"),
        (b"id\tlabel\na\tx\n", r"line 1 holds a tab \(U\+0009\)"),
        (b'id,label\n"a\t",x\n', "line 2 holds a tab"),
        (b"id,label\na,x\x0by\n", r"a control character \(U\+000B\)"),
        (b"id,label\na,x\x1c\n", r"U\+001C"),
        (b"id,label\na,\x1b[31mx\n", r"U\+001B"),
        ("id,label\na,x\u2028y\n".encode(), r"a line separator \(U\+2028\)"),
        ("id,label\na,x\x85y\n".encode(), r"U\+0085"),
        (b'id,label\na,"x\nb,y\n', "line 2 is not comma-separated"),
        (b'id,label\na,"x"y\n', "line 2 is not comma-separated"),
        (b"id,label\na," + b"x" * 200_000, "line 2 is not comma-separated .field larger"),
    ],
)
def test_lists_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "a.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)


def test_line_ends_quotes_and_marks_do_not_change_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    expected = [["id", "label"], ["a", 'say "x, y"'], ["b", '5" disk'], ["c", "x\u200by"]]
    lines = ["id,label", 'a,"say ""x, y"""', 'b, 5" disk ', "", 'c, "x\u200by"']
    for end in ("\n", "\r\n", "\r"):
        file.write_bytes(("\ufeff\ufeff" + end.join(lines)).encode())
        assert read_rows(file) == expected
        table = read_table(file, ["label", "id"])
        assert [table.columns.tolist(), *table.to_numpy().tolist()] == expected
        assert table.index.tolist() == [2, 3, 5]
    table.to_csv(file, index=False)
    assert read_rows(file) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,name\n", "the first line must name label; found id,name"),
        ("id,label,label\n", "the first line names the column 'label' twice; found id,label,label"),
        ("id;label\na;x\n", "must name id, label; found id;label; its values are separated by ';', expected commas"),
        ("ID,Label\na,x\n", "must name id, label; found ID,Label; write id in the place of ID; write label in the"),
        ("id,label\n\na,x\nb\n", "line 4 has 1 value, the header 2; expected id,label, found 'b'"),
        ("id,label\na,x,y\n", "line 2 has 3 values, the header 2"),
    ],
)
def test_tables_of_another_form_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_table(tmp_path / "a.csv", ["id", "label"])


def test_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(DatasetError, match=r"a\.csv: is a named pipe; expected a regular file"):
        read_rows(tmp_path / "a.csv")


BAD_IDS = [
    "",
    "../a",
    "/a",
    "a/b",
    "a\\b",
    ".hidden",
    "C:a",
    "a\nb",
    "a\0",
    " a",
    "a ",
    "a\u2028b",
    "\ud800",
    "é" * 101,
]


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_that_are_no_file_names(bad: str) -> None:
    with pytest.raises(DatasetError, match=r"list\.csv"):
        check_ids([bad], "list.csv")
    for among in ([bad, "x"], ["x", bad, "y"], ["x", bad]):
        with pytest.raises(DatasetError, match=r"list\.csv: the id "):
            check_ids(among, "list.csv")


@pytest.mark.parametrize("good", ["1001_DFA_ANG_XX", "-abc_DEF-123_000010_000020", "a b", "é"])
def test_ids_that_are(good: str) -> None:
    check_ids([good, "x"], "list.csv")


def test_names_of_a_prepared_datasets_own_files_are_no_modalities() -> None:
    for name in ("splits", "Splits", "dataset.json", "README.md", "a/b", ".."):
        with pytest.raises(DatasetError, match=r"m\.csv: "):
            check_modality(name, "m.csv")
    check_modality("sound", "m.csv")


BAD_PATHS = [
    "",
    "/etc/passwd",
    "../a",
    "a/../../b",
    "C:\\a",
    "\\\\host\\a",
    "a\0b",
    "a\nb",
    "a/" + "x" * 256,
    "..",
    "a/..",
]


@pytest.mark.parametrize("bad", BAD_PATHS)
def test_paths_stay_check_inside(tmp_path: Path, bad: str) -> None:
    message = "longer than file systems take" if "xxx" in bad else "stay inside"
    with pytest.raises(DatasetError, match=message):
        check_inside(bad, tmp_path, "m.csv")
    for path, shortest in (
        ("a.wav", "a.wav"),
        ("./b//c", "b/c"),
        ("./a//b.wav/", "a/b.wav"),
        ("...", "..."),
        ("a.", "a."),
    ):
        assert check_inside(path, tmp_path, "m.csv") == shortest


def test_duplicates_and_unknown_classes_are_named() -> None:
    with pytest.raises(DatasetError, match="x: found 2 ids more than once: a, c"):
        check_unique(["a", "b", "a", "c", "c"], "x")
    with pytest.raises(DatasetError, match="unknown classes Z; known: A, B"):
        check_classes(["A", "Z"], ["A", "B"], "x")


def test_cuts_are_stratified_seeded_and_whole() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    stay, off = cut(range(100), labels, 0.2, 0, "validation")
    assert sorted(stay + off) == list(range(100))
    assert Counter(labels[i] for i in off) == {"a": 12, "b": 6, "c": 2}
    assert (stay, off) == cut(range(100), labels, 0.2, 0, "validation")
    assert off != cut(range(100), labels, 0.2, 1, "validation")[1]
    assert cut([f"clip {i}" for i in range(100)], labels, 0.2, 0, "validation")[1] == [f"clip {i}" for i in off]


@pytest.mark.parametrize("part", [0.0, 0.1])
def test_a_small_cut_has_as_many_samples_as_there_are_classes(part: float) -> None:
    _, off = cut(range(15), ["a", "b", "c"] * 5, part, 0, "validation")
    assert len(off) == 3


def test_a_small_class_can_be_on_one_side_only() -> None:
    labels = ["a"] * 98 + ["b"] * 2
    _, off = cut(range(100), labels, 0.1, 0, "validation")
    assert Counter(labels[i] for i in off) == {"a": 10}


@pytest.mark.parametrize("part", [0.1, 0.25, 0.75])
def test_groups_stay_whole_and_classes_stay_on_both_sides(part: float) -> None:
    random = np.random.default_rng(0)
    groups = [f"g{k}" for k in random.integers(0, 40, 800)]
    labels = ["abc"[k] for k in random.choice(3, 800, p=(0.6, 0.3, 0.1))]
    stay, off = cut_groups(range(800), labels, groups, part, 0, "validation")
    assert sorted(stay + off) == list(range(800))
    assert not {groups[i] for i in stay} & {groups[i] for i in off}
    assert abs(len(off) - 800 * part) < 30
    for label in "abc":
        share = sum(labels[i] == label for i in off) / labels.count(label)
        assert abs(share - part) < 0.06
    assert (stay, off) == cut_groups(range(800), labels, groups, part, 0, "validation")
    assert off != cut_groups(range(800), labels, groups, part, 1, "validation")[1]


@pytest.mark.parametrize(
    ("labels", "groups"),
    [("aabb", "xxxx"), ("aabb", "xxyy"), ("aaab", "xyzz")],  # one group; a class in each; a class in one of them
)
def test_groups_that_cannot_be_cut(labels: str, groups: str) -> None:
    with pytest.raises(DatasetError, match="give clips of some groups the split val"):
        cut_groups(range(4), labels, groups, 0.5, 0, "validation")


def test_a_sample_without_a_group_is_one_of_its_own() -> None:
    labels = ["ab"[k % 2] for k in range(6000)]
    groups = ["speaker"] * 100 + [""] * 5900  # as many groups would take a minute
    _, off = cut_groups(range(6000), labels, groups, 0.1, 0, "validation")
    assert abs(len(off) - 600) < 150
    assert len({index in set(off) for index in range(100)}) == 1  # the speaker is on one side
    assert Counter(labels[index] for index in off if index >= 100)["a"] > 200


def test_a_cut_of_nothing_has_a_group() -> None:
    _, off = cut_groups(range(40), "ab" * 20, [f"g{k // 4}" for k in range(40)], 0.0, 0, "validation")
    assert len(off) == 4


def test_few_groups_are_enough() -> None:
    """Two speakers who say every class: one of them is validation, whatever the part."""
    stay, off = cut_groups(range(4), "abab", "xxyy", 0.1, 0, "validation")
    assert {tuple(stay), tuple(off)} == {(0, 1), (2, 3)}


@pytest.mark.parametrize("labels", [["a", "a", "b"], ["a", "b"], ["a", "b", "a", "b", "c"]])
def test_cuts_that_cannot_be_made(labels: list[str]) -> None:
    with pytest.raises(DatasetError, match="on both sides"):
        cut(range(len(labels)), labels, 0.5, 0, "validation")
