"""Manifests of text, sequences and token ids, with empty cells; read as they are and prepared."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets.make_manifest import write_rows

from mmpareto.cli import prepare as entry
from mmpareto.datasets import SPLITS, Batches, DatasetError, MultimodalDataset, build, modality_from
from mmpareto.inputs import Padded

tokenizers = pytest.importorskip("tokenizers", reason="text needs the library tokenizers")

WORDS = ("a red ball", "the blue, round ball", "green grass", "Grass is green!", "red", "nothing but blue sky")
OPTIONS: dict[str, Any] = {"text": ("caption",), "sequences": ("sensor",), "tokens": ("codes",)}


def write(root: Path) -> list[dict[str, str]]:
    """12 clips: captions in the list, notes in files, sequences of 3 features, token ids; some cells are empty."""
    generator = np.random.default_rng(0)
    for folder in ("note", "sensor", "codes"):
        (root / folder).mkdir(parents=True)
    rows = []
    for number in range(12):
        length = 1 + number % 5
        (root / "note" / f"{number}.txt").write_text(f"Note {number}: {WORDS[number % 6]}\n")
        np.save(root / "sensor" / f"{number}.npy", generator.normal(size=(length, 3)).astype(np.float32))
        np.save(root / "codes" / f"{number}.npy", generator.integers(0, 7, length + 2))
        rows.append(
            {
                "id": f"clip{number}",
                "split": "train" if number < 8 else "val" if number < 10 else "test",
                "label": f"class {number % 2}",
                "caption": "" if number in (2, 9) else WORDS[number % 6],
                "note": f"note/{number}.txt",
                "sensor": "" if number in (3, 10) else f"sensor/{number}.npy",
                "codes": f"codes/{number}.npy",
            }
        )
    write_rows(root, rows)
    return rows


def parts(root: Path, **options: Any) -> dict[str, MultimodalDataset]:
    return {split: build("manifest", root, split, **OPTIONS | options) for split in SPLITS}


def test_kinds_lengths_and_absent_modalities(tmp_path: Path) -> None:
    write(tmp_path)
    data = parts(tmp_path)
    about = {name: (m.kind, m.shape[0]) for name, m in data["train"].modalities.items()}
    assert about["sensor"] == ("sequence", 5)
    assert about["codes"] == ("tokens", 7)
    assert {about[name][0] for name in ("caption", "note")} == {"tokens"}
    assert data["train"].modalities["sensor"].shape == (5, 3)
    assert data["train"].modalities["codes"].shape == (7, 7)
    assert {name: np.flatnonzero(rows).tolist() for name, rows in data["train"].absent.items()} == {
        "caption": [2],
        "sensor": [3],
    }
    assert {name: np.flatnonzero(rows).tolist() for name, rows in data["val"].absent.items()} == {"caption": [1]}
    sample = data["train"][0]["inputs"]
    assert torch.equal(sample["sensor"], torch.from_numpy(np.load(tmp_path / "sensor" / "0.npy")))
    assert torch.equal(sample["codes"], torch.from_numpy(np.load(tmp_path / "codes" / "0.npy")))
    batch = Batches(data["train"]).__getitems__([1, 2, 3])
    assert batch["present"]["caption"].tolist() == [True, False, True]
    assert batch["present"]["note"].tolist() == [True, True, True]
    caption = batch["inputs"]["caption"]
    assert isinstance(caption, Padded)
    assert caption.mask[1].sum() == 1  # the stand-in
    lengths = data["train"].lengths
    assert lengths is not None
    expected = [sum(len(data["train"][k]["inputs"][m]) for m in about) for k in (0, 1)]
    assert lengths[:2].tolist() == expected


def test_text_is_tokenised_by_what_the_training_split_taught(tmp_path: Path) -> None:
    write(tmp_path)
    data = parts(tmp_path)
    modality = data["train"].modalities["caption"]
    assert modality.tokenizer is not None
    tokenizer = tokenizers.Tokenizer.from_str(modality.tokenizer)
    assert modality.shape == (max(len(tokenizer.encode(words).ids) for words in WORDS), tokenizer.get_vocab_size())
    assert data["train"][1]["inputs"]["caption"].tolist() == tokenizer.encode(WORDS[1]).ids
    assert tokenizer.decode(tokenizer.encode("Red ball").ids) == "red ball"
    saved = modality_from(dict(vars(modality)) | {"shape": list(modality.shape)})
    assert saved == modality
    (tmp_path / "note" / "0.txt").write_text("other words altogether")
    again = build("manifest", tmp_path, "test", modalities=data["train"].modalities, **OPTIONS)
    assert again.modalities == data["train"].modalities


def test_files_that_change_in_one_process_are_read_again(tmp_path: Path) -> None:
    write(tmp_path)
    before = parts(tmp_path)["train"].modalities
    assert parts(tmp_path)["train"].modalities == before
    (tmp_path / "note" / "0.txt").write_text(" ".join(["many other words"] * 20))
    np.save(tmp_path / "sensor" / "0.npy", np.ones((20, 3), np.float32))
    np.save(tmp_path / "codes" / "0.npy", np.full(20, 30))
    later = parts(tmp_path)["train"].modalities
    assert later["caption"] == before["caption"]
    assert (later["note"].shape[0], later["sensor"].shape, later["codes"].shape) == (60, (20, 3), (20, 31))
    for kept in (tmp_path / "tokenizer.json", tmp_path):
        sizes = []
        for name in ("caption", "note"):
            (tmp_path / "tokenizer.json").write_text(str(later[name].tokenizer))
            sizes.append(parts(tmp_path, tokenizer=str(kept))["train"].modalities["note"].shape[1])
        assert sizes == [later["caption"].shape[1], later["note"].shape[1]]


def test_lengths_vocabulary_and_tokenizer_by_option(tmp_path: Path) -> None:
    write(tmp_path)
    small = parts(tmp_path, longest=2, vocabulary=40)["train"]
    assert small.modalities["sensor"].shape == (2, 3)
    assert small.modalities["caption"].shape[0] == 2
    assert small.modalities["caption"].shape[1] <= 40
    assert {len(small[k]["inputs"]["sensor"]) for k in range(8) if k != 3} == {1, 2}
    words = small[1]["inputs"]["caption"]
    assert len(words) == 2  # a longer text is cut
    whole = tokenizers.Tokenizer.from_str(str(small.modalities["caption"].tokenizer)).encode(WORDS[1]).ids
    assert words.tolist() == whole[:2] != whole
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "tokenizer.json").write_text(str(small.modalities["caption"].tokenizer))
    for where in (tmp_path / "kept", tmp_path / "kept" / "tokenizer.json"):
        data = parts(tmp_path, tokenizer=str(where))["train"]
        assert data.modalities["caption"].shape[1] == data.modalities["note"].shape[1]


def test_prepared_as_it_is_read(tmp_path: Path) -> None:
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    write(raw)
    flags = ["--text", "caption", "--sequences", "sensor", "--tokens", "codes", "--workers", "1"]
    for output in (prepared, tmp_path / "again"):
        assert entry.main(["manifest", "--source", str(raw), "--output", str(output), *flags]) == 0
    same = filecmp.dircmp(prepared, tmp_path / "again")
    assert not same.left_only
    assert not same.diff_files
    assert (prepared / "splits" / "train.csv").read_text().splitlines()[3] == "clip2,class 0,caption"
    assert not (prepared / "caption" / "clip2.txt").exists()
    plain, read_again = parts(raw), {split: build("manifest", prepared, split) for split in SPLITS}
    for split in SPLITS:
        assert plain[split].modalities == read_again[split].modalities
        assert plain[split].absent.keys() == read_again[split].absent.keys()
        for index in range(len(plain[split])):
            for name, value in plain[split][index]["inputs"].items():
                assert torch.equal(value, read_again[split][index]["inputs"][name])


def change(number: int, **cells: str) -> Any:
    def spoil(root: Path, rows: list[dict[str, str]]) -> None:
        rows[number].update(cells)
        write_rows(root, rows)

    return spoil


def files(action: Any) -> Any:
    return lambda root, rows: action(root)


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "not UTF-8": (
        files(lambda root: (root / "note" / "1.txt").write_bytes(b"\xff")),
        {},
        "1.txt: is not text in UTF-8",
    ),
    "no sequence": (
        files(lambda root: np.save(root / "sensor" / "1.npy", np.ones((4, 2)))),
        {},
        r"clip1, sensor: .* expected a sequence of shape \[length, 3\], found \[4, 2\]",
    ),
    "empty sequence": (files(lambda root: np.save(root / "sensor" / "1.npy", np.ones((0, 3)))), {}, r"found \[0, 3\]"),
    "not finite": (files(lambda root: np.save(root / "sensor" / "1.npy", np.full((2, 3), np.nan))), {}, "not finite"),
    "unknown token": (
        files(lambda root: np.save(root / "codes" / "11.npy", np.array([9]))),
        {},
        "clip11, codes: .*values from 9 to 9; expected whole numbers from 0 to 6",
    ),
    "no token": (
        files(lambda root: np.save(root / "codes" / "1.npy", np.ones(0, np.int64))),
        {},
        "1.npy: expected one token id or more, found an empty array",
    ),
    "not a token": (
        files(lambda root: np.save(root / "codes" / "1.npy", np.array([1, np.nan]))),
        {},
        "1.npy: expected one token id or more, found values that are not finite",
    ),
    "text without a declaration": (
        files(lambda root: None),
        {"text": ()},
        "if caption holds the text itself, name it with --text",
    ),
    "text for a sequence": (files(lambda root: None), {"sequences": ("note",)}, "note holds text, and is named as seq"),
    "unknown column": (files(lambda root: None), {"tokens": ("code",)}, "there is no modality 'code'"),
    "named twice": (files(lambda root: None), {"tokens": ("sensor",)}, "--tokens names sensor, which is named already"),
    "paths in a column of text": (
        files(lambda root: None),
        {"text": ("caption", "note")},
        r"note holds the text itself, and 12 of 12 cells are paths of files, such as note/0.txt; leave note out of",
    ),
    "mistyped path in a column of text": (
        lambda root, rows: change(5, caption="a.TXT")(root, rows),
        {},
        "caption holds the text itself, and 1 of 10 cells are paths of files, such as a.TXT",
    ),
    "path with a space in a column of text": (
        lambda root, rows: ((root / "a b.txt").write_text("c"), change(5, caption="a b.txt")(root, rows)),
        {},
        "1 of 10 cells are paths of files, such as a b.txt",
    ),
    "no tokenizer": (files(lambda root: None), {"tokenizer": "./none"}, "there is no none; give a tokenizer.json"),
    "nothing in training": (
        lambda root, rows: write_rows(root, [row | ({"sensor": ""} if row["split"] != "test" else {}) for row in rows]),
        {},
        "no training clip has the modality sensor",
    ),
    "vocabulary without text": (
        lambda root, rows: write_rows(
            root, [{k: v for k, v in row.items() if k not in ("caption", "note")} for row in rows]
        ),
        {"text": (), "vocabulary": 9},
        "vocabulary is for text or words",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_manifests_say_what_is_wrong(tmp_path: Path, name: str) -> None:
    spoil, options, message = BAD[name]
    spoil(tmp_path, write(tmp_path))
    with pytest.raises(DatasetError, match=message):
        parts(tmp_path, **options)
