"""Where the runs of a grid are run: on this machine, or as jobs of a cluster through submitit."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmpareto.datasets.workers import cores
from mmpareto.experiments.grid import Run
from mmpareto.experiments.process import Outcome, TrainingProcess
from mmpareto.options import UsageError
from mmpareto.runs import RunError

POLL = 0.1  # seconds between two looks at a process
GRACE = 10.0  # seconds from SIGTERM to SIGKILL


class Launched(Protocol):
    """A run that was started."""

    def poll(self) -> Outcome | None:
        """How it ended; None while it is under way."""

    def terminate(self) -> None:
        """Asks it to end."""

    def kill(self) -> None:
        """Ends it."""


class Launcher(Protocol):
    """Starts runs, at most `slots` at a time, each to be looked at every `interval` seconds."""

    slots: int
    interval: float

    def start(self, run: Run, slot: int) -> Launched:
        """Starts `run` in the free `slot` (0, 1, ...)."""


class Local:
    """Processes on this machine.

    script   train.py.
    slots    processes at a time.
    threads  CPU threads of each.
    gpus     devices for --gpu_ids, one per process in turns; none: train.py's default.
    """

    interval = POLL

    def __init__(self, script: Path, slots: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.slots = slots
        self._script, self._threads, self._gpus = script, threads, gpus

    def start(self, run: Run, slot: int) -> Launched:
        """Starts `run` on the GPU of the slot."""
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        return TrainingProcess(run, self._script, self._threads, gpu)


class TrainingJob:
    """A run as submitit calls it in a cluster's job; a job that runs out of time is queued again and resumes."""

    def __init__(self, run: Run, script: Path, gpu: str | None) -> None:
        self._run, self._script, self._gpu = run, script, gpu

    def __call__(self) -> Outcome:
        """Trains, inside the job."""
        try:
            process = TrainingProcess(self._run, self._script, cores(), self._gpu)
        except (RunError, OSError) as error:
            return Outcome(str(error))
        try:
            while (outcome := process.poll()) is None:
                time.sleep(POLL)
        finally:  # also when submitit's signal handler leaves the job
            stop([process])
        if outcome.failure is not None:
            time.sleep(2)  # a signal to the whole job ends train.py first; here submitit's handler gets its turn
        return outcome

    def checkpoint(self) -> Any:
        """What is queued when the job is cut short: the same again, which goes on where it stopped."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class Submitit:
    """Jobs of a submitit executor.

    executor  any of submitit's, its parameters set.
    script    train.py.
    slots     jobs in the queue at a time.
    gpu       for --gpu_ids in a job.
    """

    interval = 5.0  # a look at a job reads the disk that the cluster shares

    def __init__(self, executor: Any, script: Path, slots: int, gpu: str | None = None) -> None:
        self.slots = slots
        self._executor, self._script, self._gpu = executor, script, gpu

    def start(self, run: Run, slot: int) -> Launched:
        """Submits `run` as a job."""
        try:
            return _SubmittedJob(self._executor.submit(TrainingJob(run, self._script, self._gpu)))
        except RuntimeError as error:  # what submitit's errors are
            raise RunError(f"it cannot be submitted: {error}") from error


class _SubmittedJob:
    def __init__(self, job: Any) -> None:
        self._job = job
        self._cancelled = False

    def poll(self) -> Outcome | None:
        if self._cancelled:  # the cluster sees to the end: it asks, waits and kills
            return Outcome("cancelled")
        if not self._job.done():
            return None
        error = self._job.exception()
        return self._job.result() if error is None else Outcome(f"job {self._job.job_id}: {error}")

    def terminate(self) -> None:
        self._job.cancel(check=False)
        self._cancelled = True

    def kill(self) -> None:
        self.terminate()


def slurm_executor(folder: Path, code: Path, partition: str | None, parameters: Mapping[str, Any]) -> Any:
    """submitit's executor for a Slurm cluster.

    folder      for job scripts and their logs, on a disk that the cluster's machines share.
    code        folder of the package, for the jobs' Python.
    parameters  of submitit.SlurmExecutor, such as time (minutes), gpus_per_node, mem; they go before our defaults.

    Raises UsageError where submitit or Slurm is not there, or a parameter is unknown.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--launcher slurm needs the library submitit: pip install submitit") from error
    chosen = {
        "job_name": "mmpareto",
        "time": 720,
        "gpus_per_node": 1,
        "cpus_per_task": 8,
        "stderr_to_stdout": True,
        "setup": [f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
        **({} if partition is None else {"partition": partition}),
        **parameters,
    }
    try:
        executor = submitit.SlurmExecutor(folder / "%j", max_num_timeout=20)
        executor.update_parameters(**chosen)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"--launcher slurm: {error}") from error
    return executor


def stop(launched: Sequence[Launched], grace: float = GRACE, hurry: Sequence[Any] = ()) -> None:
    """Ends what is under way: asks, waits at most `grace` seconds, or until `hurry` has two entries, then kills."""
    left = [one for one in launched if one.poll() is None]
    for one in left:
        one.terminate()
    until = time.monotonic() + grace
    while left and time.monotonic() < until and len(hurry) < 2:
        time.sleep(POLL / 2)
        left = [one for one in left if one.poll() is None]
    for one in left:
        one.kill()
    for one in left:
        while one.poll() is None and time.monotonic() < until + grace:
            time.sleep(POLL / 2)
