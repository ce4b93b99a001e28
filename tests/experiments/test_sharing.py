"""How many runs share a GPU: the decision on made-up figures, and real processes on a GPU that is made up."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpareto.cli import experiment, running
from mmpareto.errors import UsageError
from mmpareto.experiments import sharing
from mmpareto.experiments.grid import Run, expand
from mmpareto.experiments.launchers import Local
from mmpareto.experiments.schedule import run_all
from mmpareto.experiments.sharing import Reading, SharedGpu, read_gpu, runs_that_fit

STAND_IN = Path(__file__).with_name("stand_in.py")
GIB = 2.0**30


def make_runs(output: Path, seeds: Sequence[int]) -> list[Run]:
    return expand(["uniform"], ["digits"], seeds, [], ("--epochs", "3"), output, output).runs


def record(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "seen.json").read_text())


@pytest.mark.parametrize(
    ("free", "utilisation", "peak", "training", "cores", "number"),
    [
        (78, 0.20, 2, 1, 16, 2),  # at most twice as many as are measured
        (72, 0.40, 2, 4, 16, 8),
        (72, 0.60, 2, 4, 16, 6),  # 4 * 0.9 / 0.6
        (72, 0.88, 2, 4, 16, 5),  # one more below 90 %
        (72, 0.90, 2, 4, 16, 4),
        (72, 0.20, 2, 4, 6, 6),  # a core for each
        (78, 0.20, 2, 1, 1, 1),
        (30, 0.10, 10, 5, 16, 5),  # 30 - 20 is below 1.3 * 10
        (33, 0.10, 10, 5, 16, 6),  # 33 - 20 is not
        (10, 0.10, 70, 1, 16, 1),
        (78, None, 2, 1, 16, 2),  # utilisation unknown: memory and cores decide
        (78, 0.0, 2, 1, 16, 2),
    ],
)
def test_memory_utilisation_and_cores_limit_the_number(
    free: float, utilisation: float | None, peak: float, training: int, cores: int, number: int
) -> None:
    assert runs_that_fit(Reading(80, free, utilisation), peak, training, cores) == number


class Gpu:
    """A GPU of 80 GiB, on which each run takes so much and computes such a part of the time."""

    def __init__(self, gib: float, utilisation: float) -> None:
        self.gib, self.utilisation, self.runs = gib, utilisation, 0

    def __call__(self, number: str) -> Reading:
        return Reading(80 * GIB, (79 - self.gib * self.runs) * GIB, min(1.0, self.utilisation * self.runs))


def grown(gpu: Gpu, runs: list[Run], cores: int, monkeypatch: pytest.MonkeyPatch, epoch: bool = True) -> int:
    """How many of `runs` are started when a minute passes between looks."""
    clock = 0.0
    monkeypatch.setattr(sharing.time, "monotonic", lambda: clock)
    shared = SharedGpu("0", len(runs), cores, gpu)
    running: list[Run] = []
    for _ in range(40):
        if len(running) < len(runs) and shared.has_room(running):
            run = runs[len(running)]
            shared.begin(run)
            running.append(run)
            gpu.runs += 1
            if epoch:
                run.folder.mkdir(parents=True)
                (run.folder / "metrics.csv").write_text("epoch\n1\n")
        clock += 5.0
    return len(running)


def test_runs_are_added_until_the_gpu_is_busy_its_memory_or_the_cores_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def number(name: str, gpu: Gpu, cores: int) -> int:
        return grown(gpu, make_runs(tmp_path / name, range(20)), cores, monkeypatch)

    assert number("busy", Gpu(1, 0.23), 16) == 4  # 3 compute for 69 % of the time, 4 for 92 %
    out = capsys.readouterr().out
    assert out.splitlines()[0] == (
        "GPU 0: 2 runs at a time (1 run measured: 1.0 GiB each, 78.0 of 80.0 GiB free, utilisation 23 %)"
    )
    assert [line[:23] for line in out.splitlines()] == [f"GPU 0: {runs} runs at a time" for runs in (2, 3, 4)]
    assert number("large", Gpu(20, 0.1), 16) == 2  # with 2 there are 39 GiB: 20 + 1.3 * 20 are needed for a third
    assert number("cores", Gpu(1, 0.01), 3) == 3
    assert number("alone", Gpu(1, 0.95), 16) == 1
    assert "GPU 0: 1 run at a time (1 run measured" in capsys.readouterr().out


def test_runs_with_long_epochs_are_measured_after_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs(tmp_path, range(20))
    assert grown(Gpu(1, 0.1), runs, 16, monkeypatch, epoch=False) == 4  # 200 s: two minutes and three looks each
    # memory that the first run has not used yet says nothing
    assert grown(Gpu(0, 0.0), runs, 16, monkeypatch, epoch=False) == 1


def test_a_gpu_that_cannot_be_measured_has_one_run_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make_runs(tmp_path, [0, 10, 20])
    outcomes = run_all(runs, Local(STAND_IN, 3, 6, ["0"], lambda _: None))
    assert [outcomes[run].failure for run in runs] == [None] * 3
    was = sorted((record(run) for run in runs), key=lambda one: one["begin"])
    assert all(one["end"] <= two["begin"] for one, two in itertools.pairwise(was))
    assert capsys.readouterr().out.count("GPU 0: 1 run at a time (cannot be measured or shared") == 1


def test_a_second_run_starts_while_the_first_one_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "INTERVAL", 0.0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    readings = iter([Reading(80 * GIB, 79 * GIB, 0.0)])
    pair = make_runs(tmp_path, [5, 15])  # the first one ends only when the second has begun
    launcher = Local(STAND_IN, 4, 6, ["0"], lambda _: next(readings, Reading(80 * GIB, 78 * GIB, 0.3)))
    assert [outcome.failure for outcome in run_all(pair, launcher).values()] == [None] * 2
    assert [record(run)["threads"] for run in pair] == ["6", "3"]
    assert all((run.folder / "train.log").read_text().count("--gpu_ids 0") == 1 for run in pair)


def test_a_run_without_memory_is_started_again_when_there_are_fewer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make_runs(tmp_path, [7, 6, 17])
    outcomes = run_all(runs, Local(STAND_IN, 3, 3, ["0", "0", "0"]))
    assert [outcomes[run].failure for run in runs] == [None] * 3
    before, failed, beside = (record(run) for run in runs)
    assert failed["begin"] >= min(before["end"], beside["end"])
    out = capsys.readouterr().out
    assert "GPU 0: 2 runs at a time (out of memory with 3; the run that failed is started again later)" in out
    assert "FAILED" not in out


def test_a_run_without_memory_that_is_alone_has_failed(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [6])
    assert "out of memory" in str(run_all([run], Local(STAND_IN, 1, 1, ["0"]))[run].failure)


def test_the_number_of_runs_per_gpu_is_one_flag_or_a_gpu_that_is_named_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(running, "cores", lambda: 12)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(running, "read_gpu", lambda _: Reading(80, 79, 0.0))

    def launcher(*flags: str) -> tuple[int, list[str | None], str]:
        arguments, _ = experiment.parser().parse_known_args(["--methods", "uniform", *flags])
        local, text = running.make_launcher(arguments, 9, tmp_path)
        assert isinstance(local, Local)
        runs = make_runs(tmp_path, range(20))
        busy: dict[int, Any] = {}
        while (slot := local.free_slot(busy)) is not None:
            busy[slot] = runs[slot], None
            local._shared[str(local._devices[slot])].begin(runs[slot])
        return local.slots, [local._devices[slot] for slot in busy], text

    three = (3, ["0"] * 3, "3 at a time on GPU 0, OMP_NUM_THREADS=4 each")
    assert launcher("--gpu_ids", "0,0,0") == three
    assert launcher("--gpu_ids", "0", "--runs_per_gpu", "3") == three
    assert launcher("--gpu_ids", "0", "--runs_per_gpu", "5", "--jobs", "3") == three
    assert launcher("--runs_per_gpu", "2")[:2] == (4, ["0", "1", "0", "1"])
    slots, at_first, text = launcher()
    assert (slots, at_first) == (12, ["0", "1"])
    assert text.startswith("on GPU 0, 1, one at a time each at first")
    assert launcher("--gpu_ids", "1")[:2] == (8, ["1"])
    assert launcher("--gpu_ids", "1", "--jobs", "5")[:2] == (5, ["1"])
    with pytest.raises(UsageError, match="names each GPU once"):
        launcher("--gpu_ids", "0,0", "--runs_per_gpu", "2")


@pytest.mark.parametrize(
    ("printed", "reading"),
    [
        ("81559, 80000, 37, Default\n", Reading(81559 * 2**20, 80000 * 2**20, 0.37)),
        ("81559, 80000, [N/A], Default\n", Reading(81559 * 2**20, 80000 * 2**20, None)),
        ("81559, 80000, 37, Exclusive_Process\n", None),  # a second process could not use it
        ("[N/A], [N/A], 37, Default\n", Reading(10, 7, None)),  # memory from PyTorch
        ("No devices were found\n", Reading(10, 7, None)),
        (None, Reading(10, 7, None)),
    ],
)
def test_nvidia_smi_is_asked_then_pytorch(
    printed: str | None, reading: Reading | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        uuid = "0a1b"

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == ["nvidia-smi", "-i", "GPU-0a1b"]
        if printed is None:
            raise FileNotFoundError("nvidia-smi")
        return subprocess.CompletedProcess(command, 0, printed)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (7, 10))
    monkeypatch.setattr(sharing.subprocess, "run", run)
    assert read_gpu("0") == reading


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_no_gpu_cannot_be_read() -> None:
    assert read_gpu("0") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")
def test_a_real_gpu_is_read() -> None:
    before = read_gpu("0")
    assert before is not None
    assert before.total > 0
    held = torch.empty(2**28, dtype=torch.float32, device="cuda")  # 1 GiB
    after = read_gpu("0")
    assert after is not None
    assert before.free - after.free >= held.nbytes
