"""Training in two processes as a person starts them: the same run as in one, killed ranks, signals."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alive import gone
from entries.command import ROOT, inside, run
from entries.test_faults import OFTEN, assert_same, batches_done, vectors, wait_for
from tables import without_times

from mmpareto.cli import train as entry
from mmpareto.reporting.tables import result_table

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
TRAIN = str(ROOT / "code" / "train.py")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    data = tmp_path_factory.mktemp("data")
    vectors(data, 401)  # 201 to train on: the last of 26 batches holds one sample, the other process has none
    flags = ("--dataset", "manifest", "--data_root", str(data), "--batch_size", "8", "--gpu_ids", "cpu")
    return (*flags, "--num_workers", "0", "--no-figures", "--epochs", "4")


@pytest.fixture(scope="module")
def in_two(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done = run(
        "sh",
        ROOT / "script" / "distributed.sh",
        *flags,
        *("--ckpt_path", folder),
        PROCESSES="2",
        RESTARTS="0",
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" 4/4 |") == 1  # one of them speaks
    assert "on cpu x 2 processes" in done.stdout
    return folder


def test_two_processes_make_the_run_of_one(flags: tuple[str, ...], in_two: Path, tmp_path: Path) -> None:
    done = inside(entry.main, *flags, "--ckpt_path", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    mine, theirs = without_times(in_two / "metrics.csv"), without_times(tmp_path / "one" / "metrics.csv")
    assert len(mine) == len(theirs) == 4
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if "accuracy" in name:  # a sample on the border may fall to the other side
                assert float(value) == pytest.approx(float(other[name]), abs=1.01)
            elif value:
                assert float(value) == pytest.approx(float(other[name]), rel=2e-3, abs=0.02), name
    assert json.loads((in_two / "environment.json").read_text())["processes"] == 2
    with open(in_two / "gradients.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * 26 * 2


@pytest.mark.slow
def test_two_processes_score_whole_splits_again(flags: tuple[str, ...], in_two: Path) -> None:
    done = run(*TORCHRUN, TRAIN, *flags, "--ckpt_path", in_two, "--no-train", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert result_table(json.loads((in_two / "results.json").read_text())) in done.stdout


def started(*command: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        process_group=0,
    )


def ranks(process: subprocess.Popen[str], script: str = TRAIN) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if script in Path(f"/proc/{pid}/cmdline").read_text()]


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc which processes there are")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_dead_rank_ends_the_job_soon_and_a_restart_goes_on(
    restarts: int, flags: tuple[str, ...], in_two: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    workers = ("--num_workers", str(1 - restarts))  # in the slower of the two
    command = (TRAIN, *flags, *OFTEN, *workers, "--ckpt_path", folder, "--resume", "auto")
    process = started(*TORCHRUN, "--max_restarts", str(restarts), *command)
    wait_for((folder / "previous.pt").exists, process)
    killed, victims = time.monotonic(), ranks(process)
    os.kill(victims[1], signal.SIGKILL)
    assert gone(victims, 60)
    _, said = process.communicate(timeout=120)
    assert "failed (exitcode: -9) local_rank: 1" in said
    if restarts:
        assert process.returncode == 0, said
    else:
        assert process.returncode != 0
        assert time.monotonic() - killed < 60
        resumed = run(*TORCHRUN, *command, OMP_NUM_THREADS="1")
        assert resumed.returncode == 0, resumed.stderr
    assert_same(folder, in_two)


@needs_proc
@pytest.mark.slow  # signals to one process, and the end of a job of two, are tested faster
@pytest.mark.parametrize("whom", ["all", "one rank"])
def test_a_signal_to_torchrun_or_to_one_rank_writes_a_checkpoint(
    whom: str, flags: tuple[str, ...], in_two: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = started(*TORCHRUN, "--max_restarts", "0", TRAIN, *flags, "--ckpt_path", folder)
    wait_for((folder / "last.pt").exists, process)
    os.kill(process.pid if whom == "all" else ranks(process)[1], signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped by SIGTERM" in said, said
    resumed = run(*TORCHRUN, TRAIN, *flags, "--ckpt_path", folder, "--resume", OMP_NUM_THREADS="1")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(folder, in_two)


@pytest.mark.slow
def test_bad_input_of_several_processes(flags: tuple[str, ...], in_two: Path) -> None:
    again = run(*TORCHRUN, TRAIN, *flags, "--ckpt_path", in_two)
    assert again.returncode != 0
    assert "holds a finished run" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--epochs", "--data_root"])
def test_a_rank_with_other_flags_or_other_data_is_refused_by_name(
    flag: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    vectors(tmp_path / "data", 100)
    value, message = {
        "--epochs": ("5", "rank 1 has --epochs 5, rank 0 has 4;"),
        "--data_root": (tmp_path / "data", "rank 1 has samples of train 50, rank 0 has 201;"),
    }[flag]
    script = f'if [ "$RANK" = 1 ]; then set -- "$@" {flag} "{value}"; fi; exec "$@"'
    command = ("sh", "-c", script, "sh", sys.executable, TRAIN, *flags, "--ckpt_path", tmp_path / "run")
    done = run(*TORCHRUN, "--no-python", *command, OMP_NUM_THREADS="1")
    assert done.returncode != 0
    assert message in done.stderr
    assert "all processes of a run need the same flags and the same data" in done.stderr
    assert not (tmp_path / "run").exists()


IMPATIENT = """
from datetime import timedelta
from mmpareto.cli import train
from mmpareto import startup
from mmpareto.training import processes
processes.TIMEOUT = timedelta(seconds=15)  # instead of 10 minutes
if __name__ == "__main__":  # loader processes import this
    startup.run(train.main)
"""


@needs_proc
@pytest.mark.faults
def test_a_rank_that_is_stopped_for_ever_ends_the_run_after_the_timeout(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "code"))
    folder, script = tmp_path / "run", tmp_path / "impatient.py"
    script.write_text(IMPATIENT)
    process = started(*TORCHRUN, script, *flags[:-1], "100000", "--ckpt_path", folder)
    wait_for((folder / "previous.pt").exists, process)
    victims = ranks(process, str(script))
    os.kill(victims[1], signal.SIGSTOP)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "train.py: another process of the job is gone" in said
    assert "Timed out" in said
    assert "--resume continues from it" in said
    assert "(exitcode: 2) local_rank: 0" in said
    assert gone(victims)
    assert batches_done(folder)[0] >= 1
