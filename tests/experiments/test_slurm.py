"""Jobs on a real Slurm of one node: cut short in every way that Slurm has, refused, held; skipped without Slurm.

train.py is a stand-in that waits for a signal at its first start and finishes at its second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from experiments import one_node_slurm
from experiments.one_node_slurm import CPUS, wait_until
from experiments.test_running import CODE, STAND_IN, make_runs, record

from mmpareto.experiments.grid import Run
from mmpareto.experiments.launchers import Submitit, slurm_executor
from mmpareto.experiments.process import Outcome
from mmpareto.experiments.schedule import run_all

pytest.importorskip("submitit")
reason = one_node_slurm.absent()
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(reason is not None, reason=f"no Slurm: {reason}"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with one_node_slurm.started(tmp_path_factory.mktemp("slurm")) as path:
        yield path


@pytest.fixture(autouse=True)
def slurm(configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    # the jobs' Python, and mmpareto where a job unpickles its run
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def run_on_slurm(runs: Sequence[Run], output: Path, action: Callable[[], None], **parameters: object) -> list[Outcome]:
    """The outcomes of the runs; `action` is carried out beside them."""
    executor = slurm_executor(output / ".submitit", CODE, None, {"cpus_per_task": 1, **parameters}, cpu=True)
    launcher = Submitit(executor, STAND_IN, len(runs), "cpu")
    launcher.interval = 0.5
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)
            command("scancel", f"--user={os.getuid()}")  # lets the grid end

    thread = threading.Thread(target=act)
    thread.start()
    outcomes = run_all(runs, launcher)
    thread.join()
    assert not raised, raised
    return [outcomes[run] for run in runs]


def waiting(run: Run) -> bool:
    """Whether the stand-in of the run waits for its end."""
    return (run.folder / "last.pt").exists()


def jobs(name: str = "mmpareto") -> list[str]:
    """The jobs in the queue, in the order in which they were submitted."""
    return sorted(command("squeue", "--noheader", f"--name={name}", "--format=%i").split(), key=int)


def starts(run: Run) -> list[str]:
    return [line for line in (run.folder / "train.log").read_text().splitlines() if line.startswith("$ ")]


def preempt() -> None:
    """Submits a job that needs the whole node, and waits until it has had it."""
    command("sbatch", "--wait", "--partition=high", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--wrap=true")


def assert_resumed(run: Run, outcome: Outcome) -> None:
    assert outcome.failure is None
    assert ["--resume" in start for start in starts(run)] == [False, True]
    assert (run.folder / "results.json").exists()


def test_jobs_that_are_preempted_are_queued_again_and_resume(tmp_path: Path) -> None:
    """The threads of a run are the CPUs of its job, whatever the machine has."""
    runs = make_runs(tmp_path, [3, 13])

    def action() -> None:
        wait_until(lambda: all(map(waiting, runs)))
        preempt()

    outcomes = run_on_slurm(runs, tmp_path, action)
    for run, outcome in zip(runs, outcomes, strict=True):
        assert_resumed(run, outcome)
        assert record(run)["threads"] == "1"
        assert record(run)["cpus_of_srun"] == "1"


def test_jobs_that_are_preempted_without_grace_resume(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [3])

    def action() -> None:
        wait_until(lambda: waiting(run))
        preempt()

    (outcome,) = run_on_slurm([run], tmp_path, action, partition="abrupt")
    assert_resumed(run, outcome)


def test_jobs_that_are_requeued_or_get_a_signal_resume_and_cancelled_ones_fail(tmp_path: Path) -> None:
    """The last is cancelled while it waits for a CPU."""
    runs = make_runs(tmp_path, [3, 13, 23, 33, 43])
    *started, pending = runs

    def action() -> None:
        wait_until(lambda: all(map(waiting, started)) and len(jobs()) == len(runs))
        requeued, terminated, warned, cancelled, held_up = jobs()
        assert not waiting(pending)
        command("scancel", held_up)
        command("scancel", cancelled)
        command("scontrol", "requeue", requeued)
        command("scancel", "--signal=TERM", terminated)
        command("scancel", "--signal=USR2", warned)

    outcomes = run_on_slurm(runs, tmp_path, action)
    for run, outcome in zip(runs[:3], outcomes, strict=False):
        assert_resumed(run, outcome)
    for outcome in outcomes[3:]:
        assert "ended without a result (Slurm's state: CANCELLED)" in str(outcome.failure)
    assert not (runs[3].folder / "results.json").exists()
    assert not pending.folder.exists()
    assert jobs() == []


def test_a_time_limit_of_a_minute_queues_the_job_again(tmp_path: Path) -> None:
    (run,) = make_runs(tmp_path, [3])
    (outcome,) = run_on_slurm([run], tmp_path, lambda: None, time=1)
    assert_resumed(run, outcome)


def test_a_job_without_gpus_or_cpus_enough_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = make_runs(tmp_path, [3])
    (outcome,) = run_on_slurm([run], tmp_path, lambda: None, gpus_per_node=1)
    assert "--gpu_ids cpu for none" in str(outcome.failure)

    def cancel() -> None:
        wait_until(lambda: jobs() and "PartitionConfig" in command("squeue", "--noheader", "--format=%r"))
        wait_until(lambda: "waits in Slurm's queue" in printed())
        command("scancel", *jobs())

    text = ""

    def printed() -> str:
        nonlocal text
        text += capsys.readouterr().out
        return text

    (outcome,) = run_on_slurm([run], tmp_path, cancel, cpus_per_task=2 * CPUS)
    assert "digits/uniform/seed3: job" in text
    assert "waits in Slurm's queue, reason PartitionConfig" in text


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder from which script/slurm.sbatch is submitted, with the stand-in as train.py."""
    root = tmp_path / "project"
    (root / "code").mkdir(parents=True)
    shutil.copytree(CODE.parent / "script", root / "script")
    shutil.copy(CODE.parent / "requirements.txt", root)
    (root / "code" / "mmpareto").symlink_to(CODE / "mmpareto")
    (root / "code" / "train.py").symlink_to(STAND_IN)
    return root


def submit(project: Path, *flags: str) -> str:
    words = ("sbatch", "--parsable", "--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--output=log", "--time=5")
    done = subprocess.run(
        [*words, "script/slurm.sbatch", "--epochs", "2", *flags],
        cwd=project,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def ended(job: str) -> str:
    """The state in which a job has ended, and how often it was started again."""
    wait_until(lambda: not command("squeue", "--noheader", f"--user={os.getuid()}"), 280)
    shown = dict(word.partition("=")[::2] for word in command("scontrol", "show", "job", "-o", job).split())
    return f"{shown['JobState']} {shown['Restarts']}"


@pytest.mark.parametrize("way", ["preempted", "cancelled", "warned", "wrong flag"])
def test_the_example_for_slurm(way: str, project: Path) -> None:
    run = project / "run"
    flags = ["--ckpt_path", str(run), "--random_seed", "3"]
    if way == "wrong flag":
        job = submit(project, *flags, "--learning_rat", "1")
        assert ended(job) == "FAILED 0"
        assert (project / "log").read_text().count("unknown flag --learning_rat") == 1
        return
    job = submit(project, *flags)
    wait_until((run / "last.pt").exists)
    if way == "preempted":
        preempt()
    elif way == "cancelled":
        command("scancel", job)
    else:  # as Slurm does before the time limit: B:TERM@120
        command("scancel", "--batch", "--signal=TERM", job)
    state = ended(job)
    assert state == ("CANCELLED 0" if way == "cancelled" else "COMPLETED 1"), (project / "log").read_text()
    assert (run / "results.json").exists() == (way != "cancelled")
