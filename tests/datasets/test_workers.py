"""Work in several processes: every job once, deaths told, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alive import alive, gone

from mmpareto.datasets.workers import Died, run_in_processes

ROOT = Path(__file__).resolve().parents[2]


def work(job: int) -> tuple[int, int]:
    if job == -1:
        os._exit(7)
    if job == -2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == -3:
        raise ValueError("against the rules")
    return job * job, os.getpid()


def wait_at(mark: Path) -> None:
    (mark / str(os.getpid())).touch()
    time.sleep(120)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("jobs", [0, 2, 20])
def test_every_job_is_done_once_by_so_many_processes(processes: int, jobs: int) -> None:
    results = list(run_in_processes(work, range(jobs), processes))
    assert sorted(job for job, _ in results) == list(range(jobs))
    assert all(result[0] == job * job for job, result in results)
    pids = {result[1] for _, result in results}
    assert len(pids) <= min(processes, jobs)
    assert os.getpid() not in pids
    assert gone(list(pids))


@pytest.mark.parametrize("processes", [1, 2])
def test_deaths_are_told_and_the_rest_is_done(processes: int) -> None:
    results = dict(run_in_processes(work, [1, -1, 2, -2, 3, -3, 4], processes))
    assert {job: value for job, value in results.items() if job < 0} == {
        -1: Died("exit status 7"),
        -2: Died("signal SIGSEGV"),
        -3: Died("exit status 1"),
    }
    assert [results[job][0] for job in (1, 2, 3, 4)] == [1, 4, 9, 16]


def mixed(job: Path | int) -> None:
    if isinstance(job, Path):
        wait_at(job)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes there are")
def test_who_stops_listening_leaves_no_process(tmp_path: Path) -> None:
    results = run_in_processes(mixed, [0, tmp_path, tmp_path, tmp_path], 2)
    assert next(results) == (0, None)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    results.close()  # type: ignore[attr-defined]
    assert gone(pids, 5)


KILLED = """
import sys, time
from pathlib import Path
from datasets import test_workers
from mmpareto.datasets.workers import run_in_processes
for _ in run_in_processes(test_workers.short, [Path(sys.argv[1])] * 4, 2):
    pass
"""


def short(mark: Path) -> None:
    (mark / str(os.getpid())).touch()
    time.sleep(1.0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes there are")
@pytest.mark.slow
def test_workers_end_quietly_after_their_parent_was_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'code'}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    os.kill(process.pid, signal.SIGKILL)
    assert len(pids) == 2
    assert all(map(alive, pids))  # in the middle of a job
    assert gone(pids)
    _, said = process.communicate(timeout=30)
    assert "Traceback" not in said
