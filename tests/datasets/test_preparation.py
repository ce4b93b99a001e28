"""Preparation: whole or not at all, resumable after a kill, repeatable, and honest about what it left out."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmpareto.datasets import DatasetError
from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.prepared import read_description
from mmpareto.preparation.common import Clip, Outcome, prepare

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"text": ".txt", "pages": ""}


def make(clip: Clip, folder: Path, *, seconds: float = 0.0) -> None:
    """Copies the raw file; the raw text says what goes wrong."""
    text = clip.source["text"].read_text()
    (folder / "pages").mkdir()
    (folder / "pages" / "1.txt").write_text(text)
    time.sleep(seconds)
    if text == "unusable":
        raise UnusableError("bad text", str(clip.source["text"]))
    if text == "surprise":
        raise ValueError("a fault\nof two lines")
    if text == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "text.txt").write_text(text.upper())
    with open(clip.source["text"].parent / "made.log", "a") as log:
        log.write(clip.id + "\n")


def clips_in(source: Path, texts: Sequence[str | None]) -> list[Clip]:
    source.mkdir(exist_ok=True)
    clips = []
    for number, text in enumerate(texts):
        path = source / f"{number}.raw"
        if text is not None and not (path.exists() and path.read_text() == text):  # written again, it has changed
            path.write_text(text)
        split: Any = ("train", "train", "val", "test")[number % 4]
        clips.append(Clip(f"c{number}", split, "xy"[number % 2], {"text": path} if text is not None else {}))
    return clips


def run(output: Path, clips: Sequence[Clip], workers: int = 2, seconds: float = 0.0, **parameters: Any) -> Outcome:
    return prepare(
        output,
        name="made",
        clips=clips,
        classes=["x", "y"],
        modalities=KINDS,
        make=functools.partial(make, seconds=seconds),
        parameters=parameters,
        workers=workers,
        tools=("numpy",),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_was_left_out_is_counted_and_named(tmp_path: Path) -> None:
    texts = ["a", "unusable", None, "b", "killed", "surprise", "c", "d"]
    outcome = run(tmp_path / "out", clips_in(tmp_path / "raw", texts))
    assert (outcome.prepared, outcome.missing, outcome.unusable) == (4, 1, 3)
    assert outcome.unusable_percent == pytest.approx(100 * 3 / 7)
    description = read_description(tmp_path / "out", "made")
    reasons = {row["id"]: (row["state"], row["reason"], row["detail"]) for row in description["left_out"]}
    assert reasons == {
        "c1": ("unusable", "bad text", str(tmp_path / "raw" / "1.raw")),
        "c2": ("missing", "missing", "not found in the source"),
        "c4": ("unusable", "worker process died", "signal SIGKILL"),
        "c5": ("unusable", "ValueError", "a fault of two lines"),
    }
    assert description["clips"]["train"] == {
        "x": {"prepared": 1, "missing": 0, "unusable": 1},
        "y": {"prepared": 0, "missing": 0, "unusable": 2},
    }
    assert "numpy" in description["versions"]
    assert sorted(contents(tmp_path / "out")) == sorted(
        [f"text/c{i}.txt" for i in (0, 3, 6, 7)]
        + [f"pages/c{i}/1.txt" for i in (0, 3, 6, 7)]
        + ["dataset.json", ".sources.txt", "splits/train.csv", "splits/val.csv", "splits/test.csv"]
    )
    assert (tmp_path / "out" / "splits" / "train.csv").read_text() == "id,label\nc0,x\n"
    assert (tmp_path / "out" / "text" / "c3.txt").read_text() == "B"


def test_the_same_bytes_for_any_number_of_workers_and_when_run_again(tmp_path: Path) -> None:
    clips = clips_in(tmp_path / "raw", ["a", "b", None, "unusable", "e", "f", "g", "h"])
    run(tmp_path / "one", clips, workers=1)
    run(tmp_path / "two", clips, workers=3)
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two")
    log = (tmp_path / "raw" / "made.log").read_text()
    run(tmp_path / "one", clips)
    assert contents(tmp_path / "one") == first
    assert (tmp_path / "raw" / "made.log").read_text() == log  # nothing was made again


KILLED = """
import sys
from pathlib import Path
from datasets.test_preparation import clips_in, run
run(Path(sys.argv[1]), clips_in(Path(sys.argv[2]), [str(i) for i in range(12)]), seconds=0.15)
"""


@pytest.mark.parametrize(
    "progress", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(5, marks=pytest.mark.slow)]
)
def test_after_a_kill_the_same_command_goes_on(tmp_path: Path, progress: int) -> None:
    out, raw = tmp_path / "out", tmp_path / "raw"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'code'}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", KILLED, str(out), str(raw)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    log = raw / "made.log"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        done = log.read_text().splitlines() if log.exists() else []
        if len(done) >= progress and (out / ".preparation.json").exists():
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.2)
    assert not (out / "dataset.json").exists()
    with pytest.raises(DatasetError, match="its preparation has not ended; run it again"):
        read_description(out, "made")
    finished = {path: path.stat().st_mtime_ns for path in (out / "text").glob("*.txt")} if progress else {}
    assert len(finished) >= progress - 1
    for path in finished:
        assert path.read_text() == path.stem[1:].upper()  # whole
    clips = clips_in(raw, [str(i) for i in range(12)])
    outcome = run(out, clips)
    assert (outcome.prepared, outcome.missing, outcome.unusable) == (12, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    run(tmp_path / "whole", clips)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_preparation_of_the_folder_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    clips = clips_in(tmp_path / "raw", ["a", "b", "c", "d"])
    run(tmp_path / "out", clips, fps=1)
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetError, match=r'"fps": 1.*expected.*"fps": 2'):
        run(tmp_path / "out", clips, fps=2)
    with pytest.raises(DatasetError, match="was prepared with fps 1, the flags ask for fps 2"):
        read_description(tmp_path / "out", "made", {"fps": 2})
    with pytest.raises(DatasetError, match="holds the dataset made, not other"):
        read_description(tmp_path / "out", "other")
    assert contents(tmp_path / "out") == before


def test_folders_with_other_files_are_refused(tmp_path: Path) -> None:
    clips = clips_in(tmp_path / "raw", ["a", "b", "c", "d"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DatasetError, match="holds other files"):
        run(tmp_path / "mine", clips)
    with pytest.raises(DatasetError, match="is a file"):
        run(tmp_path / "mine" / "thesis.tex", clips)
    assert contents(tmp_path / "mine") == {"thesis.tex": b"x"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("how to get it")  # as the repository's data/<dataset> has
    assert run(tmp_path / "data", clips).prepared == 4


@pytest.mark.slow
def test_two_at_once_are_refused(tmp_path: Path) -> None:
    out, raw = tmp_path / "out", tmp_path / "raw"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'code'}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out), str(raw)], env=environment)
    try:
        deadline = time.monotonic() + 200
        while not (raw / "made.log").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(DatasetError, match="another process is preparing it"):
            run(out, clips_in(raw, [str(i) for i in range(12)]))
    finally:
        assert process.wait(60) == 0
    assert len(list((out / "text").glob("*.txt"))) == 12


def test_a_split_without_a_prepared_clip_is_said(tmp_path: Path) -> None:
    outcome = run(tmp_path / "out", clips_in(tmp_path / "raw", ["a", "b", None, "unusable"]))
    assert "no clip of the split val is prepared" in outcome.text
    assert "no clip of the split test is prepared" in outcome.text
    assert "no clip of the split train" not in outcome.text


def test_nothing_prepared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not one of 4 clips could be prepared"):
        run(tmp_path / "out", clips_in(tmp_path / "raw", ["unusable", None, "unusable", None]))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_bad_and_double_ids_are_refused_before_any_work(tmp_path: Path) -> None:
    clips = clips_in(tmp_path / "raw", ["a", "b"])
    for bad, message in (
        ([clips[0], clips[0]], "more than once"),
        ([Clip("../x", "train", "x")], "cannot be the name"),
    ):
        with pytest.raises(DatasetError, match=message):
            run(tmp_path / "out", bad)
    assert not (tmp_path / "out").exists()


def test_a_damaged_description_says_what_to_do(tmp_path: Path) -> None:
    run(tmp_path / "out", clips_in(tmp_path / "raw", ["a", "b", "c", "d"]))
    (tmp_path / "out" / "dataset.json").write_text(json.dumps([1]))
    with pytest.raises(DatasetError, match="delete the folder and prepare the dataset again"):
        read_description(tmp_path / "out", "made")


@pytest.mark.parametrize("name", [".unfinished", ".unfinished/lock", "splits", "text", "pages"])
def test_links_in_an_output_folder_are_refused(tmp_path: Path, name: str) -> None:
    clips, other, output = clips_in(tmp_path / "raw", ["a", "b", "c", "d"]), tmp_path / "other", tmp_path / "out"
    (other / "below").mkdir(parents=True)
    (other / "mine").write_text("mine")
    place = output / name
    place.parent.mkdir(parents=True)
    (output / ".preparation.json").write_text(json.dumps({"name": "made", "parameters": {}}))
    place.symlink_to(other)
    with pytest.raises(DatasetError, match="is a link, and a preparation writes there"):
        run(output, clips, workers=0)
    assert sorted(path.name for path in other.iterdir()) == ["below", "mine"]
    place.unlink()
    if name.endswith("lock"):
        os.mkfifo(place)
        with pytest.raises(DatasetError, match="is a named pipe"):
            run(output, clips, workers=0)


def test_why_a_file_of_many_clips_could_not_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"made: c0 could not be made \(no such file: gone\)"):
        prepare(
            tmp_path / "out",
            name="made",
            clips=[Clip("c0", "train", "x", {}, lost="gone")],
            classes=["x"],
            modalities=KINDS,
            make=make,
            parameters={},
            workers=1,
            members=samples_of_nothing,
        )


def samples_of_nothing(clip: Clip) -> list[Clip]:
    raise AssertionError(clip)
