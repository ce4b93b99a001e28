"""A clip whose raw files changed is prepared again, one process at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets.test_cgmnist import write_mnist
from datasets.test_preparation import clips_in, contents, run
from entries.command import inside

from mmpareto.cli import prepare as entry
from mmpareto.datasets import DatasetError
from mmpareto.preparation import folder
from mmpareto.preparation.common import Clip
from mmpareto.preparation.folder import exclusive
from mmpareto.preparation.sources import SOURCES, digest, forget_changed

TEXTS = ["a", "b", "c", "d"]


def made(raw: Path) -> list[str]:
    """The clips that were made since the last call."""
    log = raw / "made.log"
    names = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_a_clip_whose_file_changed_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, raw = tmp_path / "out", tmp_path / "raw"
    clips = clips_in(raw, TEXTS)
    run(out, clips)
    made(raw)
    (raw / "1.raw").write_text("B")
    os.utime(raw / "1.raw", (1, 1))  # of the same size, and older than what was made of it
    clips[2] = Clip("c2", "val", "x", {"text": raw / "3.raw"})  # as where a row of a manifest names another file
    run(out, clips)
    assert made(raw) == ["c1", "c2"]
    assert "the raw files of 2 clips have changed, made again: c1, c2" in capsys.readouterr().err
    assert (out / "text" / "c2.txt").read_text() == (out / "pages" / "c2" / "1.txt").read_text().upper() == "D"
    run(out, clips)
    assert made(raw) == []
    run(tmp_path / "whole", clips)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_folder_of_an_older_version_is_accepted_once(tmp_path: Path) -> None:
    out, raw = tmp_path / "out", tmp_path / "raw"
    clips = clips_in(raw, TEXTS)
    run(out, clips)
    (out / SOURCES).unlink()
    made(raw)
    run(out, clips)
    assert made(raw) == []
    (raw / "0.raw").write_text("new")
    run(out, clips)
    assert made(raw) == ["c0"]


def test_changed_clips_are_gone_before_the_record_says_otherwise(tmp_path: Path) -> None:
    out, raw = tmp_path / "out", tmp_path / "raw"
    run(out, clips_in(raw, TEXTS))
    before = (out / SOURCES).read_text()
    forget_changed(out, {"c0": "0" * 16, "new": "1" * 16}, {"text": ".txt", "pages": ""})
    assert not (out / "dataset.json").exists()
    assert sorted(path.name for path in (out / "pages").iterdir()) == ["c1", "c2", "c3"]
    assert sorted(path.stem for path in (out / "text").iterdir()) == ["c1", "c2", "c3"]
    assert (out / SOURCES).read_text().splitlines()[1:4] == before.splitlines()[
        1:
    ]  # clips that are not listed now stay
    (out / SOURCES).write_text(before[:-1])
    with pytest.raises(DatasetError, match=r"\.sources\.txt: cannot be read .* delete the folder"):
        forget_changed(out, {}, {})


def test_a_digest_is_of_names_sizes_times_and_text(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    (root / "frames").mkdir(parents=True)
    for name in ("a.wav", "b.wav", "frames/1.jpg"):
        (root / name).write_text("x")
        os.utime(root / name, (1, 1))

    def of(place: Path, sound: str = "a.wav", text: str = "a text") -> str:
        return digest({"sound": place / sound, "sight": place / "frames", "words": text}, [place])

    first = of(root)
    shutil.copytree(root, tmp_path / "moved")
    assert of(tmp_path / "moved") == first
    assert of(root, sound="b.wav") != first
    assert of(root, text="another") != first
    assert digest([root / "a.wav"], [root]) != digest([root / "a.wav", root / "b.wav"], [root])
    for change in (
        lambda: (root / "frames" / "1.jpg").write_text("y"),
        lambda: (root / "frames" / "2.jpg").write_text("x"),
        lambda: (root / "a.wav").write_text("xx"),
        lambda: (root / "a.wav").unlink(),
    ):
        before = of(root)
        change()
        assert of(root) != before


def test_cgmnist_is_coloured_again_where_mnist_changed(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_mnist(raw)
    flags = ("cgmnist", "--source", raw, "--workers", "1", "--output")
    assert inside(entry.main, *flags, out).returncode == 0
    shutil.rmtree(raw)
    write_mnist(raw, train=300)
    done = inside(entry.main, *flags, out)
    assert done.returncode == 0
    assert "the raw files of 3 clips have changed" in done.stderr
    assert len(np.load(out / "gray" / "train.npy")) == 270


def test_two_at_once_do_not_even_compare_their_parameters(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with exclusive(out, {"fps": 1}):
        with pytest.raises(DatasetError, match="another process is preparing it"), exclusive(out, {"fps": 2}):
            pass
        assert json.loads((out / ".preparation.json").read_text()) == {"fps": 1}
    assert [path.name for path in out.iterdir()] == ["splits"]


def test_a_lock_file_that_another_process_deleted_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def late(file: Any) -> bool:
        """Lock the first file after its owner has deleted it."""
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / "out" / folder.LOCK).unlink()
        return True

    monkeypatch.setattr(folder, "lock", late)
    with exclusive(tmp_path / "out", {}):
        assert len(calls) == 2
        assert (tmp_path / "out" / folder.LOCK).exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert run(tmp_path / "out", clips_in(tmp_path / "raw", TEXTS[:1]), workers=1).prepared == 1
