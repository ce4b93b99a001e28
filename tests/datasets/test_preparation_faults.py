"""Preparation where the machine gets in the way: orphaned workers, full disks, damaged files, network locks."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets.test_preparation import KINDS, ROOT, clips_in, contents, run

from mmpareto.datasets import DatasetError
from mmpareto.datasets.prepared import read_description
from mmpareto.preparation import common as preparation
from mmpareto.preparation.common import Clip, Outcome
from mmpareto.preparation.folder import exclusive

TEXTS = ["a", "b", "c", "d"]

ORPHANED = """
import sys
from pathlib import Path
from datasets.test_preparation import clips_in, run
run(Path(sys.argv[1]), clips_in(Path(sys.argv[2]), list("abcd")), seconds=1.5)
"""


@pytest.mark.slow
def test_workers_that_outlive_their_killed_parent_do_no_harm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, raw = tmp_path / "out", tmp_path / "raw"
    clips = clips_in(raw, TEXTS)
    run(tmp_path / "whole", clips)  # the workers' server runs now: the second preparation below begins at once
    (raw / "made.log").unlink()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'code'}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-c", ORPHANED, str(out), str(raw)], env=environment)
    deadline = time.monotonic() + 60
    while len(list((out / ".unfinished").rglob("pages"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # as the kernel does for want of memory: the workers are not killed
    process.wait()
    outcome = run(out, clips, seconds=1.5)
    assert (outcome.prepared, outcome.left_out) == (4, [])
    assert contents(out) == contents(tmp_path / "whole")
    said = capfd.readouterr().err
    assert "waiting for the clips that a killed preparation still makes" in said
    assert "Traceback" not in said
    assert sorted((raw / "made.log").read_text().split()) == ["c0", "c1", "c2", "c3"]  # none twice


def test_side_cars_of_macos_are_in_nobodys_way(tmp_path: Path) -> None:
    clips = clips_in(tmp_path / "raw", TEXTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"of the Finder")
    assert run(tmp_path / "out", clips).prepared == 4
    (tmp_path / "out" / ".unfinished").mkdir()
    for folder in (tmp_path / "out", tmp_path / "out" / ".unfinished"):
        for name in (".DS_Store", "._lock"):
            (folder / name).write_bytes(b"of the Finder")
    assert run(tmp_path / "out", clips).prepared == 4


@pytest.mark.parametrize("name", [".sources.txt", "dataset.json", "splits/val.csv"])
def test_a_kill_in_a_later_write(tmp_path: Path, name: str) -> None:
    place = tmp_path / "out" / name
    part = place.with_name(f".{place.name}.12345.part")
    part.parent.mkdir(parents=True)
    part.write_text("half")
    (tmp_path / "out" / ".preparation.json").write_text('{"fps": 1}')
    with exclusive(tmp_path / "out", {"fps": 1}):
        assert not part.exists()


def test_a_kill_in_the_very_first_write(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "..preparation.json.12345.part").write_text('{"na')
    clips = clips_in(tmp_path / "raw", TEXTS)
    assert run(tmp_path / "out", clips).prepared == 4
    run(tmp_path / "whole", clips)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def make_on_a_full_disk(clip: Clip, folder: Path, *, way: str) -> None:
    (folder / "pages").mkdir()
    if clip.id == "c2" and way == "text":
        Path("/dev/full").write_text("x")
    if clip.id == "c2" and way == "array":  # NumPy's own message, without an error number
        with open("/dev/full", "wb") as file:
            np.save(file, np.zeros(100_000))
    (folder / "text.txt").write_text(clip.source["text"].read_text().upper())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("way", ["text", "array"])
def test_a_full_disk_stops_the_preparation_and_blames_no_clip(tmp_path: Path, way: str) -> None:
    clips = clips_in(tmp_path / "raw", TEXTS)

    def attempt(how: str) -> Outcome:
        return preparation.prepare(
            tmp_path / "out",
            name="made",
            clips=clips,
            classes=["x", "y"],
            modalities=KINDS,
            make=functools.partial(make_on_a_full_disk, way=how),
            parameters={},
            workers=1,
        )

    with pytest.raises(DatasetError, match=r"out: .*make room, then run the same command again"):
        attempt(way)
    assert not (tmp_path / "out" / "dataset.json").exists()
    first = (tmp_path / "out" / "text" / "c0.txt").stat().st_mtime_ns
    assert attempt("there is room").prepared == 4
    assert (tmp_path / "out" / "text" / "c0.txt").stat().st_mtime_ns == first


@pytest.mark.parametrize("name", ["dataset.json", ".preparation.json"])
@pytest.mark.parametrize("content", [b"[1]", b'{"name": ', b"\xff\xfe"])
def test_damaged_descriptions_are_refused_with_what_to_do(tmp_path: Path, name: str, content: bytes) -> None:
    clips = clips_in(tmp_path / "raw", TEXTS)
    run(tmp_path / "out", clips)
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(DatasetError, match="delete the folder and prepare the dataset again") as caught:
        run(tmp_path / "out", clips)
    assert name in str(caught.value)


def test_a_folder_whose_splits_are_half_renewed_is_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = clips_in(tmp_path / "raw", TEXTS)
    run(tmp_path / "out", clips)
    other = [Clip(clip.id, "test" if clip.split == "val" else clip.split, clip.label, clip.source) for clip in clips]
    write = preparation.write_text

    def interrupted(path: Path, text: str) -> None:
        if path.name == "test.csv":
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", other)
    with pytest.raises(DatasetError, match="its preparation has not ended; run it again"):
        read_description(tmp_path / "out", "made")
    run(tmp_path / "out", other)
    assert (tmp_path / "out" / "splits" / "test.csv").read_text() == "id,label\nc2,x\nc3,y\n"
    assert read_description(tmp_path / "out", "made")["clips"].keys() == {"train", "test"}


def test_locks_are_taken_as_network_file_systems_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS refuses exclusive locks on files opened to read and shared ones on files opened to write (flock(2))."""
    flock = fcntl.flock
    taken = []

    def strict(file: Any, operation: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        taken.append(operation)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", strict)
    clip = clips_in(tmp_path / "raw", ["a"])[0]
    assert run(tmp_path / "out", [clip]).prepared == 1
    # the workers are other processes: the shared lock is tried here
    beside = preparation._fresh_beside(tmp_path / "beside")
    make = functools.partial(make_on_a_full_disk, way="there is room")
    assert preparation._make_one(clip, beside, tmp_path / "out", KINDS, make) is None
    assert fcntl.LOCK_SH in taken
