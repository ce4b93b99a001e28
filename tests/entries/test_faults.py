"""Runs that are killed, stopped, starved of disk or data: nothing is lost, a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from entries.command import ROOT, inside, refused, run, train
from tables import without_times

from mmpareto.cli import train as entry
from mmpareto.methods import METHODS as REGISTERED
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.checkpoints import load_checkpoint, save_last
from mmpareto.training.state import KEYS

TRAIN = (sys.executable, ROOT / "code" / "train.py")
OFTEN = ("--checkpoint_minutes", "0.00001")  # after every batch
pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = [*REGISTERED.names(group=""), "gradvac", "pcgrad", "nash_mtl"]


def start(*flags: str | Path) -> subprocess.Popen[str]:
    """code/train.py in the background, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "code" / "train.py"), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        process_group=0,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same(first: Path, second: Path) -> None:
    """Metrics and results (times aside), gradients, layers and weights, bit for bit."""
    assert without_times(first / "metrics.csv") == without_times(second / "metrics.csv")
    for name in ("gradients.csv", "layers.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    results = [
        json.loads((folder / "results.json").read_text()) | {"seconds": 0, "peak_memory_mib": 0}
        for folder in (first, second)
    ]
    assert results[0] == results[1]
    for name in ("last.pt", "best.pt"):
        mine, theirs = (torch.load(folder / name, weights_only=True)["model"] for folder in (first, second))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def vectors(root: Path, clips: int = 60) -> None:
    """A manifest of arrays, one file a clip and modality."""
    generator = np.random.default_rng(0)
    lines = ["id,split,label,left,right"]
    for name in ("left", "right"):
        (root / name).mkdir(parents=True)
    for clip in range(clips):
        split = ("train", "train", "val", "test")[clip % 4]
        for name in ("left", "right"):
            np.save(root / name / f"{clip}.npy", generator.normal(clip % 2, 1, 6).astype(np.float32))
        lines.append(f"c{clip},{split},{'ab'[clip % 2]},left/{clip}.npy,right/{clip}.npy")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of a run of 6 epochs of 25 batches, which the training process loads itself."""
    data = tmp_path_factory.mktemp("data")
    vectors(data, 400)
    flags = ("--dataset", "manifest", "--data_root", str(data), "--batch_size", "8", "--gpu_ids", "cpu")
    return (*flags, "--num_workers", "0", "--epochs", "6")


@pytest.fixture(scope="module")
def whole(short: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    done = train(*short, "--ckpt_path", folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return folder


def trained(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    """A run that ends well, in this process; it keeps its folder locked."""
    done = inside(entry.main, *flags)
    assert done.returncode == 0, done.stderr
    return done


def batches_done(folder: Path) -> tuple[int, int]:
    saved = torch.load(folder / "last.pt", weights_only=True)
    return saved["epoch"], saved["record"]["batches"]


def test_a_killed_run_goes_on_at_the_very_batch(short: tuple[str, ...], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(*short, *OFTEN, "--ckpt_path", folder)
    wait_for((folder / "previous.pt").exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    epoch, batches = batches_done(folder)
    assert epoch <= 6
    assert epoch > 1 or batches > 0
    trained(*short, "--ckpt_path", folder, "--resume")
    assert_same(folder, whole)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM,),
        pytest.param((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), marks=pytest.mark.slow),
    ],
)
def test_signals_write_a_checkpoint_and_say_how_to_go_on(
    signals: tuple[signal.Signals, ...], short: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    """One after the other, to the processes that load data as well."""
    folder = tmp_path / "run"
    for stops, number in enumerate(signals):
        process = start(*short, "--num_workers", "1", "--ckpt_path", folder, "--resume", "auto")
        wait_for(lambda: (folder / "last.pt").exists() and batches_done(folder)[0] > stops + 1, process)  # noqa: B023
        os.killpg(process.pid, number)
        if number == signal.SIGINT:  # torchrun passes on what the terminal has already sent: one request
            os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 128 + number, said
        assert f"stopped by {number.name}" in said
        assert "--resume continues" in said
        assert "Traceback" not in said
    trained(*short, "--ckpt_path", folder, "--resume")
    assert_same(folder, whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.slow
def test_output_that_is_full_and_closed_loses_no_epoch(short: tuple[str, ...], whole: Path, tmp_path: Path) -> None:
    script = '"$@" >/dev/full 2>&-'
    done = run("sh", "-c", script, "sh", *TRAIN, *short, "--ckpt_path", tmp_path / "run", OMP_NUM_THREADS="1")
    assert done.returncode == 0
    assert_same(tmp_path / "run", whole)


def test_damaged_and_foreign_checkpoints_are_refused_and_the_one_before_is_offered(
    short: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    longer = (*short[:-1], "7")
    data = (whole / "last.pt").read_bytes()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    broken, parted, mixed = tmp_path / "broken", tmp_path / "parted", tmp_path / "mixed"
    for folder in (broken, parted, mixed):
        shutil.copytree(whole, folder)
    data = (whole / "last.pt").read_bytes()
    cases = {
        "flipped": data[:2000] + bytes(255 - b for b in data[2000:4000]) + data[4000:],
        "empty": b"",
        "foreign": pickle.dumps({"state_dict": {}}),
        "evil": pickle.dumps(Evil()),
        "truncated": data[: len(data) // 2],
    }
    said = f"{broken / 'last.pt'}.*; the one before it is whole .epoch 6.: --resume previous.pt continues from there"
    for content in cases.values():
        (broken / "last.pt").write_bytes(content)
        with pytest.raises(RunError, match=said):
            load_checkpoint(broken / "last.pt", torch.device("cpu"), KEYS)
    assert not (tmp_path / "pwned").exists()

    other = torch.load(whole / "last.pt", weights_only=True)
    other["model"].popitem()
    torch.save(other, mixed / "last.pt")
    message = refused(entry.main, *longer, "--ckpt_path", mixed, "--resume")
    assert f"the checkpoint {mixed / 'last.pt'} is of another run" in message
    assert re.search(said, refused(entry.main, *longer, "--ckpt_path", broken, "--resume"))
    assert (broken / "last.pt").read_bytes() == cases["truncated"]
    healed = shutil.copytree(broken, tmp_path / "healed")  # a run directory stays locked until its process ends
    for folder, checkpoint in ((healed, "previous.pt"), (parted, "last.pt")):
        trained(*longer, "--ckpt_path", folder, "--resume", checkpoint)
    assert_same(healed, parted)


def test_a_damaged_best_checkpoint_is_written_again_from_the_model_that_was_selected_or_refused(
    short: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    saved = torch.load(whole / "last.pt", weights_only=True)

    def damaged(epoch: int) -> Path:
        """A finished run that selected an epoch, its best.pt damaged."""
        folder = Path(shutil.copytree(whole, tmp_path / str(epoch)))
        for _ in range(2):
            save_last(RunDirectory(folder), saved | {"best": saved["best"] | {"epoch": epoch}})
        (folder / "best.pt").write_bytes(b"damaged")
        return folder

    flags = (*short, "--resume", "--ckpt_path")
    folder = damaged(6)  # the epoch of last.pt
    trained(*flags, folder)
    renewed = torch.load(folder / "best.pt", weights_only=True)
    assert renewed["epoch"] == 6
    assert all(torch.equal(renewed["model"][key], saved["model"][key]) for key in saved["model"])
    folder = damaged(3)
    said = refused(entry.main, *flags, folder)
    assert f"the checkpoint {folder / 'best.pt'} is damaged or foreign" in said
    assert "no other file holds the selected model: train again with --overwrite" in said


def test_previous_becomes_last_when_a_run_goes_on_from_it(whole: Path, short: tuple[str, ...], tmp_path: Path) -> None:
    """A kill in the first epoch after it must not leave a damaged last.pt alone, or move it to previous.pt.

    Before it, no other process trains there.
    """
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "last.pt").write_bytes(b"damaged")
    (folder / "results.json").unlink()
    flags = (*short[:-1], "100000", "--ckpt_path", folder)
    process = start(*flags, "--resume", "previous.pt")
    wait_for(lambda: list(folder.glob("events.*")) and (folder / "last.pt").read_bytes() != b"damaged", process)
    said = refused(entry.main, *short, "--ckpt_path", folder, "--overwrite")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert f"another process is training in {folder}" in said
    assert b"damaged" not in ((folder / "last.pt").read_bytes(), (folder / "previous.pt").read_bytes())


def test_going_on_with_other_threads_or_another_machine_is_said(
    short: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    saved = torch.load(whole / "last.pt", weights_only=True)
    threads = torch.get_num_threads()
    assert saved["arithmetic"]["threads"] == 1  # of the run's own process
    same = {"threads": threads, "device": "cpu", "torch": str(torch.__version__)}
    other = {"threads": threads + 3, "device": "NVIDIA H200", "torch": "2.6.0\n", "CPU capability": "none"}
    flags = (*short, "--resume", "--ckpt_path")
    for arithmetic, expected in ((saved["arithmetic"] | same, []), (other, list(other))):
        folder = Path(shutil.copytree(whole, tmp_path / str(len(list(tmp_path.iterdir())))))
        save_last(RunDirectory(folder), saved | {"arithmetic": arithmetic})
        (folder / "results.json").unlink()
        done = trained(*flags, folder)
        lines = [line for line in done.stderr.splitlines() if line.startswith("warning: this run continues with ")]
        assert len(lines) == bool(expected)
        assert all(f"{name} " in lines[0] for name in expected)
        assert not expected or f"threads {threads} instead of {threads + 3}, device cpu instead of NVIDIA" in lines[0]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("arithmetic", [1], "is of another run"),
        ("epoch", "6", "its epoch is '6', expected int"),
        ("history", [{"epoch": 1}], "its history has not a whole row for each epoch before 7"),
        ("best", {"accuracy": None, "epoch": 1}, "its selected epoch is"),
        ("processes", 3, "is of another run"),
        ("record", {"batches": "x"}, "is of another run"),
        ("optimizer", {"state": {}, "param_groups": []}, "is of another run"),
    ],
)
def test_values_that_no_run_saves_are_refused(
    key: str, value: Any, reason: str, short: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    saved = torch.load(folder / "last.pt", weights_only=True)
    save_last(RunDirectory(folder), saved | {key: value})
    flags = (*short[:-1], "7", "--ckpt_path", folder)
    said = refused(entry.main, *flags, "--resume")
    assert reason in said
    assert len(said.splitlines()) <= 2


def test_a_run_killed_between_last_and_best_heals_and_auto_goes_on(
    short: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    trained(*short[:-1], "1", "--ckpt_path", tmp_path / "run", "--resume", "auto")
    folder = shutil.copytree(tmp_path / "run", tmp_path / "copy")  # a run directory stays locked until its process ends
    best = torch.load(folder / "best.pt", weights_only=True)
    (folder / "best.pt").unlink()  # epoch 1 is the best so far, and last.pt was written before
    second = trained(*short, "--ckpt_path", folder, "--resume", "auto")
    assert "1/6 |" not in second.stdout
    assert_same(folder, whole)
    selected = json.loads((whole / "results.json").read_text())["selected_epoch"]
    renewed = torch.load(folder / "best.pt", weights_only=True)
    assert renewed["epoch"] == selected
    if selected == 1:
        assert all(torch.equal(best["model"][key], renewed["model"][key]) for key in best["model"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_data_that_vanish_end_the_run_with_a_message_and_it_goes_on_when_they_are_back(
    workers: str, tmp_path: Path
) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    vectors(data)
    flags = ("--dataset", "manifest", "--data_root", data, "--batch_size", "4", "--num_workers")
    process = start(*flags, workers, "--epochs", "100000", "--ckpt_path", folder)
    wait_for((folder / "previous.pt").exists, process)
    (data / "left").rename(tmp_path / "away")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert str(data / "left") in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 3, said
    (tmp_path / "away").rename(data / "left")
    longer = (*flags, "0", "--epochs", str(batches_done(folder)[0] + 1), "--ckpt_path")
    trained(*longer, folder, "--resume")
    trained(*longer, tmp_path / "straight")
    assert_same(folder, tmp_path / "straight")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc which processes there are")
@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_a_message(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    vectors(data)
    flags = ("--dataset", "manifest", "--data_root", data, "--batch_size", "4", "--num_workers", "1")
    process = start(*flags, "--epochs", "100000", "--ckpt_path", folder)
    wait_for((folder / "previous.pt").exists, process)
    (server,) = [pid for pid in children(process.pid) if "forkserver" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(children(server)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "a process that loads data died" in said
    assert "Traceback" not in said
    assert batches_done(folder)[0] >= 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 50 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(place)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("cannot mount a small file system here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_message_and_it_goes_on_when_there_is_room(
    small_disk: Path, short: tuple[str, ...], whole: Path
) -> None:
    folder = small_disk / "run"
    needed = (whole / "last.pt").stat().st_size  # a run needs three of them and best.pt while it writes
    (small_disk / "ballast").write_bytes(bytes(50 * 2**20 - int(2.8 * needed)))
    done = train(*short, "--ckpt_path", folder, OMP_NUM_THREADS="1")
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert batches_done(folder)[0] >= 1
    assert not list(folder.glob(".*.part"))
    (small_disk / "ballast").unlink()
    trained(*short, "--ckpt_path", folder, "--resume")
    assert_same(folder, whole)


@pytest.mark.faults
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_every_method_and_optimizer_goes_on_exactly(method: str, optimizer: str, tmp_path: Path) -> None:
    flags = (
        "--epochs",
        "2",
        "--batch_size",
        "128",
        "--gpu_ids",
        "cpu",
        *OFTEN,
        "--method",
        method,
        "--optimizer",
        optimizer,
        "--learning_rate",
        "0.001",
    )
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    done = train(*flags, "--ckpt_path", straight, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    process = start(*flags, "--ckpt_path", parted)
    wait_for(lambda: (parted / "last.pt").exists() and batches_done(parted) > (1, 4), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = train(*flags, "--ckpt_path", parted, "--resume", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert_same(parted, straight)


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_kill_at_any_write_of_a_file_changes_nothing(tmp_path: Path) -> None:
    """Before each fsync, rename and link of a run: last.pt, previous.pt, best.pt, results.json and all others."""
    vectors(tmp_path / "data")
    flags = ("--dataset", "manifest", "--data_root", tmp_path / "data", "--batch_size", "16", "--num_workers", "0")
    flags += ("--epochs", "2", "--gpu_ids", "cpu")
    done = train(*flags, "--ckpt_path", tmp_path / "whole", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    script = ROOT / "tests" / "entries" / "killed_writes.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *map(str, flags)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "code")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    writes = int(done.stdout.rpartition("writes: ")[2])
    assert writes > 20
    for k in range(1, writes + 1):
        assert_same(tmp_path / str(k), tmp_path / "whole")
        assert not list((tmp_path / str(k)).glob(".*"))


@pytest.mark.faults
@pytest.mark.timeout(3000)
def test_twenty_kills_at_random_moments_change_nothing(short: tuple[str, ...], tmp_path: Path) -> None:
    """Wherever they fall: while it starts, in a step, in the middle of a checkpoint, while it scores.

    The moments are batches, not seconds, so that a slow machine sees the same run.
    """
    flags = (*short[:-1], "12", *OFTEN)  # 300 batches
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    done = train(*flags, "--ckpt_path", straight, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    chance = random.Random(0)
    in_checkpoint = 0

    def steps_done() -> int:
        epoch, batches = batches_done(parted) if (parted / "last.pt").exists() else (1, 0)
        return 25 * (epoch - 1) + batches

    for kill, moment in enumerate(sorted(chance.sample(range(1, 270), 20))):
        process = start(*flags, "--ckpt_path", parted, "--resume", "auto")
        if kill % 5 == 0:
            until = time.monotonic() + chance.uniform(0, 5)  # while it starts, on most machines
            wait_for(lambda: time.monotonic() >= until or steps_done() >= moment, process)  # noqa: B023
        else:
            reached = max(moment, steps_done() + 1)  # by this process
            wait_for(lambda: steps_done() >= reached, process)  # noqa: B023
            if kill % 3 == 0:
                wait_for(lambda: list(parted.glob(".last.pt.*")), process)
            else:
                time.sleep(chance.uniform(0, 0.1))
        assert process.poll() is None, "the run ended before twenty kills: give it more epochs"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        in_checkpoint += bool(list(parted.glob(".*.part")))
    done = train(*flags, "--ckpt_path", parted, "--resume", "auto", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert in_checkpoint > 0
    assert_same(parted, straight)


@pytest.mark.faults
@pytest.mark.timeout(3000)
def test_memory_does_not_grow_over_200_epochs(tmp_path: Path) -> None:
    flags = ("--epochs", "200", "--batch_size", "256", "--gpu_ids", "cpu", "--ckpt_path", tmp_path / "run")
    process = start(*flags)
    sizes: list[tuple[int, int]] = []
    metrics = tmp_path / "run" / "metrics.csv"
    while process.poll() is None:
        if metrics.exists():
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            sizes.append((len(metrics.read_text().splitlines()) - 1, pages * os.sysconf("SC_PAGE_SIZE")))
        time.sleep(0.5)
    assert process.returncode == 0, process.communicate()
    early = np.median([size for epoch, size in sizes if 20 <= epoch < 60])
    late = np.median([size for epoch, size in sizes if 160 <= epoch < 200])
    assert late - early < 30e6, (early, late)
