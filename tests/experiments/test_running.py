"""Processes, their order and their end, with a stand-in for train.py that takes no time."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alive import alive, gone
from settings import write_settings

from mmpareto.data_folders import dataset_title
from mmpareto.errors import UsageError
from mmpareto.experiments import schedule
from mmpareto.experiments.grid import Run, expand
from mmpareto.experiments.launchers import Local, Submitit, slurm_executor, stop
from mmpareto.experiments.process import State, TrainingProcess, state
from mmpareto.experiments.schedule import run_all
from mmpareto.runs import RunError
from mmpareto.training.signals import Interrupted

STAND_IN = Path(__file__).with_name("stand_in.py")
CODE = Path(__file__).resolve().parents[2] / "code"


def make_runs(output: Path, seeds: Sequence[int], *flags: str) -> list[Run]:
    return expand(["uniform"], ["digits"], seeds, [], flags, output, output).runs


def record(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "seen.json").read_text())


def test_runs_share_slots_gpus_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runs = make_runs(tmp_path, [0, 10, 20, 30, 40])
    outcomes = run_all(runs, Local(STAND_IN, 2, 6, ["4", "7"]))
    assert [outcomes[run].failure for run in runs] == [None] * 5
    was = [record(run) for run in runs]
    for one in was:
        same_time = [two for two in was if two["begin"] < one["end"] and one["begin"] < two["end"]]
        gpus = [two["argv"][two["argv"].index("--gpu_ids") + 1] for two in same_time]
        # at one's own time there may be two neighbours, one after the other
        assert len([two for two in same_time if two["begin"] <= one["begin"] < two["end"]]) <= 2
        assert set(gpus) <= {"4", "7"}
        assert one["threads"] == "3"
    assert {two["argv"][two["argv"].index("--gpu_ids") + 1] for two in was} == {"4", "7"}
    pair = make_runs(tmp_path / "pair", [5, 15])
    assert [outcome.failure for outcome in run_all(pair, Local(STAND_IN, 2, 6)).values()] == [None] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # as if it was not set
    (run,) = make_runs(tmp_path, [60])
    run_all([run], Local(STAND_IN, 1, 3))
    assert record(run)["threads"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    (run,) = make_runs(tmp_path, [50])
    run_all([run], Local(STAND_IN, 1, 3))
    assert record(run)["threads"] == "5"
    assert "--gpu_ids" not in record(run)["argv"]


def test_a_failure_has_its_reason_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make_runs(tmp_path, [1, 4, 0, 10])
    runs[3].folder.parent.mkdir(parents=True)
    runs[3].folder.write_text("no folder")
    outcomes = run_all(runs, Local(STAND_IN, 2, 1))
    failed, empty, fine, no_folder = (outcomes[run].failure for run in runs)
    assert failed is not None
    assert failed.splitlines()[0].startswith("exit status 3; ")
    assert failed.splitlines()[-2:] == ["    loading", "    stand_in.py: no such data"]
    assert "ended without results" in str(empty)
    assert fine is None
    assert "File exists" in str(no_folder)
    printed = capsys.readouterr().out
    assert "digits/uniform/seed1: FAILED: exit status 3" in printed
    assert "digits/uniform/seed0: joint accuracy val 12.50, test 12.50" in printed


def test_a_terminal_shows_the_epoch_of_each_running_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    runs = make_runs(tmp_path, range(10), "--epochs", "5")
    for run in runs:
        run.folder.mkdir(parents=True)
    (runs[0].folder / "metrics.csv").write_text("epoch\n1\n2\n")
    (runs[9].folder / "metrics.csv").write_bytes(b"epoch\n1\xff\n")  # damaged: its own process will say so
    monkeypatch.setattr(sys, "stderr", Terminal())
    with schedule._Progress(runs) as progress:
        progress.show(runs[:2])
        two = sys.stderr.getvalue()
        monkeypatch.setattr(progress, "_last", 0.0)
        progress.show(runs)
        all_ten = sys.stderr.getvalue().removeprefix(two)
    assert "digits/uniform/seed0: epoch 3/5" in two
    assert "digits/uniform/seed1: epoch 1/5" in two
    assert "seed2" not in two
    assert "digits/uniform/seed6: epoch 1/5" in all_ten
    assert "and 3 others" in all_ten
    assert "seed7" not in all_ten


def test_signals_end_everything_that_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "__defaults__", (1000.0, ()))  # a period of grace that only a second signal can end
    runs = make_runs(tmp_path, [2, 3, 0])  # one that will not end, one that will, one that is not begun

    def send() -> None:
        while not all((run.folder / "last.pt").exists() for run in runs[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        obeyed.append(gone(record(runs[1])["pids"]) and alive(record(runs[0])["pids"][0]))
        os.kill(os.getpid(), signal.SIGINT)

    obeyed: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Interrupted) as ended:
        run_all(runs, Local(STAND_IN, 2, 1))
    assert ended.value.number == signal.SIGTERM
    assert obeyed == [True]  # the gentle one had ended, the other not
    assert not (runs[0].folder / "results.json").exists()  # it was killed
    assert signal.getsignal(signal.SIGTERM) is before
    pids = [pid for run in runs[:2] for pid in record(run)["pids"]]
    assert len(pids) == 3
    assert gone(pids)
    assert not [part for run in runs[:2] for part in run.folder.glob(".*.part")]
    assert not runs[2].folder.exists()


def test_what_is_there_decides_what_is_done(tmp_path: Path) -> None:
    (run,), (other,) = make_runs(tmp_path, [0]), make_runs(tmp_path, [0], "--learning_rate", "0.5")
    assert state(run) is State.NEW
    run.folder.mkdir(parents=True)
    config = run.config.flat() | {"data_root": "elsewhere", "gpu_ids": "3", "encoders": {}}
    write_settings(run.folder, config)
    assert state(run) is State.BROKEN_OFF
    (run.folder / "last.pt").touch()
    assert state(run) is State.UNFINISHED
    (run.folder / "results.json").write_text("{}")
    assert state(run) is State.FINISHED
    with pytest.raises(RunError, match=r"other settings: learning_rate 0\.3 \(asked for: 0\.5\)"):
        state(other)
    older = {key: value for key, value in config.items() if key != "augment"}
    write_settings(run.folder, older)
    assert state(run) is State.FINISHED
    write_settings(run.folder, older | {"cutmix": 0.5})
    with pytest.raises(RunError, match=r"other settings: cutmix 0\.5 \(asked for: None\)"):
        state(run)
    write_settings(run.folder, config)
    assert TrainingProcess(run, STAND_IN, 1).poll() is not None  # nothing was started
    assert not (run.folder / "seen.json").exists()


def test_a_manifest_elsewhere_is_other_data_and_a_published_set_is_not(tmp_path: Path) -> None:
    def grid(dataset: str, root: str) -> Run:
        return expand(["uniform"], [dataset], [0], [], ["--data_root", str(tmp_path / root)], tmp_path, tmp_path).runs[
            0
        ]

    for dataset, other in (("manifest", True), ("cremad", False)):
        run = grid(dataset, "here/birds")
        run.folder.mkdir(parents=True)
        write_settings(run.folder, run.config.flat())
        (run.folder / "results.json").write_text("{}")
        assert state(grid(dataset, "moved/birds")) is State.FINISHED
        if other:
            with pytest.raises(RunError, match=r"other settings: data_root \S+birds \(asked for: \S+fishes\)"):
                state(grid(dataset, "here/fishes"))
        else:
            assert state(grid(dataset, "here/fishes")) is State.FINISHED


def test_what_data_are_known_by() -> None:
    assert dataset_title("manifest", "/somewhere/data/manifest") == "manifest"  # the default folder
    assert dataset_title("mine.sets:Birds", None) == "mine.sets:Birds"
    assert dataset_title("mine.sets:Birds", "/somewhere/finches") == "mine.sets:Birds finches"
    assert dataset_title("cremad", "/somewhere/finches") == "cremad"


def test_tuples_are_the_same_settings_when_read_again(tmp_path: Path) -> None:
    (run,) = expand(["uniform"], ["modelnet40"], [0], [], [], tmp_path, tmp_path).runs
    run.folder.mkdir(parents=True)
    write_settings(run.folder, run.config.flat())
    (run.folder / "results.json").write_text("{}")
    assert isinstance(run.config.data.dataset_options["views"], tuple)
    assert state(run) is State.FINISHED


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [3])
    first = TrainingProcess(run, STAND_IN, 1)
    try:
        with pytest.raises(RunError, match="another process trains in"):
            TrainingProcess(run, STAND_IN, 1)
    finally:
        first.kill()
        while (outcome := first.poll()) is None:
            time.sleep(0.02)
    assert "ended by SIGKILL (out of memory?)" in str(outcome.failure)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after a kill -9 of the first command, and beside a second one; meanwhile the other runs are done."""
    held, other = make_runs(tmp_path, [3, 0])
    first = TrainingProcess(held, STAND_IN, 1)

    def release() -> None:
        while not (other.folder / "results.json").exists():
            time.sleep(0.05)
        first.terminate()
        while first.poll() is None:
            time.sleep(0.05)

    threading.Thread(target=release, daemon=True).start()
    outcomes = run_all([held, other], Local(STAND_IN, 1, 1))
    assert [outcomes[run].failure for run in (held, other)] == [None, None]
    printed = capsys.readouterr().out
    assert printed.count(f"another process trains in {held.folder}; this command waits for it") == 1
    starts = [line for line in (held.folder / "train.log").read_text().splitlines() if line.startswith("$ ")]
    assert ["--resume" in line for line in starts] == [False, True]


@pytest.mark.slow
def test_jobs_of_submitit_fail_and_resume_after_a_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's own local executor; the signal is the one that its Slurm jobs get before their time is over."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    cut_short, failing = runs = make_runs(tmp_path, [3, 1])

    def send() -> None:
        while not (cut_short.folder / "last.pt").exists():
            time.sleep(0.05)
        os.kill(record(cut_short)["parent"], signal.SIGUSR2)

    threading.Thread(target=send, daemon=True).start()
    launcher = Submitit(submitit.LocalExecutor(tmp_path / "jobs" / "%j"), STAND_IN, 2)
    launcher.interval = 0.1
    outcomes = run_all(runs, launcher)
    assert outcomes[cut_short].failure is None
    assert "stand_in.py: no such data" in str(outcomes[failing].failure)
    begun = [line for line in (cut_short.folder / "train.log").read_text().splitlines() if line.startswith("$ ")]
    assert ["--resume" in line for line in begun] == [False, True]


def test_jobs_are_cancelled_with_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    (run,) = make_runs(tmp_path, [3])

    def send() -> None:
        while not (run.folder / "last.pt").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Interrupted):
        run_all([run], Submitit(submitit.LocalExecutor(tmp_path / "jobs" / "%j"), STAND_IN, 1))
    (pid,) = record(run)["pids"]
    assert gone([pid])


@pytest.fixture
def slurm_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What submitit looks for before it accepts parameters."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_the_job_script_for_slurm(tmp_path: Path, slurm_installed: None) -> None:
    executor = slurm_executor(tmp_path / "jobs", Path("/the code"), "gpu", {"time": 60, "qos": "high"})
    script = executor._make_submission_file_text("command", "id")
    for line in ("--partition=gpu", "--time=60", "--qos=high", "--gpus-per-node=1", "--cpus-per-task=8"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --signal=USR2@90\n" in script
    assert "#SBATCH --requeue\n" in script
    assert "\nexport PYTHONPATH='/the code'" in script
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK\n" in script


@pytest.mark.parametrize(
    ("parameters", "cpu", "present", "absent"),
    [
        ({}, False, "--gpus-per-node=1", "--gres"),
        ({}, True, "--cpus-per-task=8", "gpu"),
        ({"gpus_per_node": 2}, True, "--gpus-per-node=2", "--gpus-per-node=1"),
        ({"gres": "gpu:a100:1"}, False, "--gres=gpu:a100:1", "--gpus-per-node"),
        ({"time": 1}, False, "--signal=USR2@15", "USR2@90"),
        ({"time": 5}, False, "--signal=USR2@75", "USR2@90"),
        ({"time": 10, "signal_delay_s": 300}, False, "--signal=USR2@300", "USR2@90"),
        ({"additional_parameters": {"reservation": "mine"}}, False, "--reservation=mine", "--reservation=true"),
        ({"additional_parameters": {"reservation": "mine"}}, False, "--requeue", "--reservation=true"),
    ],
)
def test_what_a_job_asks_for(
    parameters: dict[str, Any], cpu: bool, present: str, absent: str, tmp_path: Path, slurm_installed: None
) -> None:
    executor = slurm_executor(tmp_path, CODE, None, parameters, cpu=cpu)
    directives = executor._make_submission_file_text("command", "id").partition("# setup")[0]
    assert f"#SBATCH {present}\n" in directives
    assert absent not in directives


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"time": "01:00:00"}, "time=01:00:00: expected the number of minutes"),
        ({"time": 0}, "expected the number of minutes"),
        ({"time": 2, "signal_delay_s": 120}, "below the time limit"),
        ({"nodes": 2}, "--slurm nodes: a job trains one run in one process"),
        ({"ntasks_per_node": 4}, "--slurm ntasks_per_node"),
    ],
)
def test_parameters_that_no_job_can_use(
    parameters: dict[str, Any], message: str, tmp_path: Path, slurm_installed: None
) -> None:
    with pytest.raises(UsageError, match=message):
        slurm_executor(tmp_path, CODE, None, parameters)


def test_slurm_needs_submitit_and_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "submitit", None)
        with pytest.raises(UsageError, match="pip install submitit"):
            slurm_executor(tmp_path, CODE, None, {})
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="srun"):
        slurm_executor(tmp_path, CODE, None, {})


def test_an_earlier_divergence_is_no_reason_of_another_failure(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [1])  # which ends with status 3
    run.folder.mkdir(parents=True)
    write_settings(run.folder, run.config.flat())
    (run.folder / "diverged.json").write_text('{"epoch": 1, "step": 12}')
    (outcome,) = run_all([run], Local(STAND_IN, 1, 1)).values()
    assert outcome.failure is not None
    assert outcome.failure.startswith("exit status")
    assert not outcome.diverged
