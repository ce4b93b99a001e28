"""Files that replace older ones together: a kill at any time leaves the old ones or the new ones, all of them whole."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmpareto import writing
from mmpareto.json_files import json_text
from mmpareto.runs import RunDirectory
from mmpareto.writing import atomically, write_text, write_together

NAMES = [f"{number}.txt" for number in range(9)] + ["below/10.txt"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content(text: str) -> dict[str, bytes]:
    return {name: text.encode() for name in NAMES}


def test_files_are_replaced_outdated_ones_go_and_others_stay(tmp_path: Path) -> None:
    write_together(tmp_path / "new", content("old"))
    (tmp_path / "new" / "mine").write_text("mine")
    (tmp_path / "new" / "gone").touch()
    write_together(tmp_path / "new", content("new"), [tmp_path / "new" / "gone"])
    assert files(tmp_path / "new") == content("new") | {"mine": b"mine"}


WAITING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]  # nothing can hold back SIGKILL between two files


@pytest.mark.parametrize(
    ("order", "place"),
    [(signal.SIGKILL, "fsync"), *((order, place) for order in WAITING for place in ("fsync", "replace"))],
)
def test_a_signal_leaves_the_old_files_or_the_new_ones(order: signal.Signals, place: str, tmp_path: Path) -> None:
    """Sent while the fourth file is written, and, if the process can wait for it, while the fourth is replaced."""
    write_together(tmp_path, content("old"))
    child = os.fork()
    if child == 0:
        signal.signal(order, signal.SIG_DFL) if order != signal.SIGKILL else None
        # as a library's: it takes what the main thread alone blocks
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        calls, real = [], getattr(os, place)

        def interrupted(*arguments: object) -> None:
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), order)
            real(*arguments)

        setattr(writing.os, place, interrupted)
        write_together(tmp_path, content("new"))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == order
    left = {name: data for name, data in files(tmp_path).items() if not name.startswith(".")}
    assert left == content("old" if place == "fsync" else "new")
    write_together(tmp_path, content("again"))  # removes what the killed one left
    assert files(tmp_path) == content("again")
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES[:-1], "below"}


def test_what_another_process_writes_is_not_removed(tmp_path: Path) -> None:
    with writing._staging(tmp_path) as staged:
        write_together(tmp_path, content("new"))
        assert staged.is_dir()
    assert files(tmp_path) == content("new")


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may take it for one of a process that was killed: before it is opened, or before it is locked."""
    mkdtemp, lock = writing.tempfile.mkdtemp, writing.lock
    calls: list[str] = []

    def removed_at_once(**where: Any) -> str:
        calls.append("made")
        made = mkdtemp(**where)
        if len(calls) == 1:
            os.rmdir(made)
        return made

    def removed_before(descriptor: int, **options: Any) -> bool:
        calls.append("locked")
        if calls.count("locked") == 1:
            os.rmdir(next(tmp_path.glob(".new-files-*")))
        return lock(descriptor, **options)

    monkeypatch.setattr(writing.tempfile, "mkdtemp", removed_at_once)
    monkeypatch.setattr(writing, "lock", removed_before)
    write_together(tmp_path, content("new"))
    assert files(tmp_path) == content("new")
    assert calls == ["made", "made", "locked", "made", "locked"]


@pytest.mark.parametrize("write", [write_text, lambda path, text: write_together(path.parent, {path.name: b"text"})])
def test_a_full_disk_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'"):
        write(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_named_with_the_table(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.csv'"):
        RunDirectory(tmp_path).append_csv("metrics.csv", [{"epoch": 0}])


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EBADF])
def test_without_locks_nothing_of_another_process_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """EBADF: network file systems lock no folders."""

    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".new-files-other").mkdir()
    write_together(tmp_path, {"a.txt": b"text"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-files-other", "a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """In other containers, too, where their processes may have one number."""
    with atomically(tmp_path / "a") as first:
        first.write(b"first")
        write_text(tmp_path / "a", "second")
        assert files(tmp_path)["a"] == b"second"
    assert files(tmp_path) == {"a": b"first"}


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    """Which has no others: jq, JavaScript and R refuse NaN."""
    text = json_text(
        {"loss": math.nan, "by": [1.5, (math.inf, {"x": -math.inf})], "path": Path("a"), "n": np.float64(2)}
    )
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": None,
        "by": [1.5, [None, {"x": None}]],
        "path": "a",
        "n": 2,
    }
