"""Where the runs of a grid are run: on this machine, or as jobs of a cluster through submitit."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from mmpareto.cores import cores
from mmpareto.errors import UsageError
from mmpareto.experiments.grid import Run
from mmpareto.experiments.process import Busy, Outcome, TrainingProcess
from mmpareto.experiments.sharing import Reading, SharedGpu
from mmpareto.runs import RunDirectory, RunError

POLL = 0.1  # seconds between two looks at a process
GRACE = 10.0  # seconds from SIGTERM to SIGKILL
WARNING = 90  # seconds before the time limit of a Slurm job at which it stops, to be queued again
# seconds in which a job waits for another one that holds its run: Slurm kills a job after KillWait
LOCK_PATIENCE = 60.0
RESULT_PATIENCE = 20.0  # seconds in which a shared disk may show the result of a job that has ended
# of submitit: how a job asks for GPUs
GPU_PARAMETERS = frozenset({"gpus_per_node", "gpus_per_task", "num_gpus", "gres"})
# for which a job waits and then starts
ORDINARY_REASONS = frozenset(
    {"None", "", "Resources", "Priority", "BeginTime", "Dependency", "Prolog", "Cleaning", "JobArrayTaskLimit"}
)


class Launched(Protocol):
    """A run that was started."""

    def poll(self) -> Outcome | None:
        """How it ended; None while it is under way."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


Running = Mapping[int, tuple[Run, Launched]]  # by slot


class Launcher(Protocol):
    """A way to start runs, at most `slots` at a time, each to be looked at every `interval` seconds."""

    slots: int
    interval: float

    def start(self, run: Run, slot: int) -> Launched:
        """Start `run` in the free `slot` (0, 1, ...)."""

    def free_slot(self, busy: Running) -> int | None:
        """A slot in which a run may start beside those under way."""
        return next((slot for slot in range(self.slots) if slot not in busy), None)

    def lower(self, slot: int, busy: Running) -> bool:
        """Allow fewer runs, because the one in `slot` ended for want of memory; False where it was alone."""
        return False


class Local(Launcher):
    """Processes on this machine.

    script  train.py; None: `python -m mmpareto train`.
    slots   processes at a time.
    cores   CPU cores, which the processes share: OMP_NUM_THREADS of each is cores // processes at a time.
    gpus    devices for --gpu_ids, one per process in turns; none: train.py's default.
    read    reads a GPU, to begin with one process on each and to find out how many can share it; None: all slots are
            used from the start.
    """

    interval = POLL

    def __init__(
        self,
        script: Path | None,
        slots: int,
        cores: int,
        gpus: Sequence[str] = (),
        read: Callable[[str], Reading | None] | None = None,
    ) -> None:
        self.slots = slots
        self._script, self._cores, self._measures = script, cores, read is not None
        self._devices = [gpus[slot % len(gpus)] if gpus else None for slot in range(slots)]
        self._shared: dict[str | None, SharedGpu] = {
            gpu: SharedGpu(gpu, self._devices.count(gpu), max(1, cores // len(set(gpus))), read)
            for gpu in self._devices
            if gpu not in (None, "cpu")
        }

    def start(self, run: Run, slot: int) -> Launched:
        """Start `run` on the GPU of the slot."""
        device = self._devices[slot]
        at_a_time = sum(gpu.allowed for gpu in self._shared.values()) if self._measures else self.slots
        if device in self._shared:
            self._shared[device].begin(run)
        return TrainingProcess(run, self._script, max(1, self._cores // at_a_time), device)

    def free_slot(self, busy: Running) -> int | None:
        """A slot whose GPU has room for one more."""
        for slot in range(self.slots):
            gpu = self._shared.get(self._devices[slot])
            if slot not in busy and (gpu is None or gpu.has_room(self._on(slot, busy))):
                return slot
        return None

    def lower(self, slot: int, busy: Running) -> bool:
        """Allow fewer runs on the GPU of the slot."""
        gpu = self._shared.get(self._devices[slot])
        return gpu is not None and gpu.lost(len(self._on(slot, busy)))

    def _on(self, slot: int, busy: Running) -> list[Run]:
        """The runs on the device of a slot."""
        return [run for place, (run, _) in busy.items() if self._devices[place] == self._devices[slot]]


class TrainingJob:
    """A run as submitit calls it in a cluster's job.

    Before the time limit Slurm sends submitit's signal (SIGUSR2) to all processes of the job; when the job is
    preempted, requeued or cancelled it sends SIGTERM. Then train.py writes a checkpoint, the job leaves no result, and
    it is queued again unless it was cancelled.

    grace  seconds that train.py has after the warning; then it is killed, so that the job is queued again in time.
    """

    def __init__(self, run: Run, script: Path | None, gpu: str | None, grace: float = 2 * WARNING / 3) -> None:
        self._run, self._script, self._gpu, self._grace = run, script, gpu, grace

    def __call__(self) -> Outcome:
        """Trains, inside the job; ends the process (SystemExit) where the job was cut short."""
        from submitit import JobEnvironment

        warning = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        queue_again = signal.getsignal(warning)  # submitit's handler
        received: list[int] = []
        for number in (signal.SIGTERM, warning):  # not put back: a job whose run has ended must not be queued again
            signal.signal(number, lambda number, _: received.append(number))
        process = self._process(warning, received)
        if isinstance(process, Outcome):
            return process
        try:
            kill_at = None
            while (outcome := process.poll()) is None:
                if kill_at is None and received[:1] == [warning]:  # SIGTERM reaches train.py itself; a second one kills
                    process.terminate()
                    kill_at = time.monotonic() + self._grace
                if kill_at is not None and time.monotonic() > kill_at:
                    process.kill()
                time.sleep(POLL)
        finally:
            stop([process])
        if outcome.failure is None or not (received or outcome.stopped):
            return outcome
        number = received[0] if received else signal.SIGTERM
        slurm_job = os.environ.get("SLURM_JOB_ID")
        running = number == warning if slurm_job is None else slurm_state(slurm_job) == "RUNNING"
        if running and callable(queue_again):  # else Slurm has queued it again itself, or it was cancelled
            queue_again(warning, None)
        sys.exit(128 + number)

    def _process(self, warning: int, received: Sequence[int]) -> TrainingProcess | Outcome:
        """Start train.py, or give the reason why it cannot be started; wait for a job that still holds the run."""
        until = time.monotonic() + LOCK_PATIENCE
        while True:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {warning})  # train.py inherits it: the warning is for us
            try:
                return TrainingProcess(self._run, self._script, cores(), self._gpu)
            except Busy as error:
                if received or time.monotonic() > until:
                    return Outcome(str(error))
            except (RunError, OSError) as error:
                return Outcome(str(error))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            time.sleep(1)

    def checkpoint(self) -> Any:
        """What is queued when the job is cut short: the same again, which resumes the run."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def slurm_state(job: str) -> str:
    """The state of a Slurm job as the controller has it, such as RUNNING; empty where it does not answer."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    state = re.search(r"\bJobState=(\w+)", shown.stdout)
    return state[1] if state else ""


class Submitit(Launcher):
    """Jobs of a submitit executor.

    executor  any of submitit's, its parameters set.
    script    train.py; None: `python -m mmpareto train`.
    slots     jobs in the queue at a time.
    gpu       for --gpu_ids in a job.
    """

    interval = 5.0  # a look at a job reads the disk that the cluster shares

    def __init__(self, executor: Any, script: Path | None, slots: int, gpu: str | None = None) -> None:
        self.slots = slots
        self._executor, self._script, self._gpu = executor, script, gpu

    def start(self, run: Run, slot: int) -> Launched:
        """Submit `run` as a job."""
        grace = 2 * self._executor.parameters.get("signal_delay_s", WARNING) / 3
        try:
            return _SubmittedJob(run, self._executor.submit(TrainingJob(run, self._script, self._gpu, grace)))
        except RuntimeError as error:  # what submitit's errors are
            raise RunError(f"it cannot be submitted: {error}{_hint(str(error))}") from error


def _hint(error: str) -> str:
    """What to change where sbatch refuses a job."""
    if re.search(r"gres|gpu|generic resource", error, re.IGNORECASE):
        return (
            " (every job asks for one GPU: --slurm gpus_per_node=N asks for another number, --slurm gres=gpu:KIND:1 "
            "for a kind, --gpu_ids cpu for none)"
        )
    if re.search(r"node configuration|CPU count|too many", error, re.IGNORECASE):
        return " (every job asks for 8 CPUs and one GPU: see --slurm cpus_per_task=N gpus_per_node=N, --gpu_ids cpu)"
    return ""


class _SubmittedJob:
    def __init__(self, run: Run, job: Any) -> None:
        self._run, self._job = run, job
        self._cancelled = False
        self._ended_at: float | None = None
        self._reason = ""

    def poll(self) -> Outcome | None:
        if self._cancelled:  # the cluster sees to the end: it asks, waits and kills
            return Outcome("cancelled")
        if not self._job.done():
            self._say_why_it_waits()
            self._ended_at = None
            return None
        if self._job.paths.result_pickle.exists():
            error = self._job.exception()
            return self._job.result() if error is None else Outcome(f"job {self._job.job_id}: {error}")
        self._ended_at = self._ended_at or time.monotonic()
        if time.monotonic() < self._ended_at + RESULT_PATIENCE:
            return None
        if RunDirectory(self._run.folder).finished:
            return Outcome()
        return Outcome(
            f"job {self._job.job_id} ended without a result (Slurm's state: {self._job.state}); its output is in "
            f"{self._job.paths.stdout}"
        )

    def terminate(self) -> None:
        self._job.cancel(check=False)
        self._cancelled = True

    def kill(self) -> None:
        self.terminate()

    def _say_why_it_waits(self) -> None:
        """Say once which reason Slurm gives for a job that cannot start as it is."""
        reason = self._job.get_info("cache").get("Reason", "None")
        if reason not in ORDINARY_REASONS | {self._reason}:
            self._reason = reason
            tqdm.write(f"{self._run.name}: job {self._job.job_id} waits in Slurm's queue, reason {reason}")


def slurm_executor(
    folder: Path, code: Path, partition: str | None, parameters: Mapping[str, Any], cpu: bool = False
) -> Any:
    """submitit's executor for a Slurm cluster.

    folder      for job scripts and their logs, on a disk that the cluster's machines share.
    code        folder of the package, for the jobs' Python.
    parameters  of submitit.SlurmExecutor, such as time (minutes), gpus_per_node, mem; they go before our defaults.
    cpu         whether the runs train on the CPU: then a job asks for no GPU.

    Raises UsageError where submitit or Slurm is not there, or a parameter is unknown or cannot be used.
    """
    try:
        import submitit  # noqa: F401

        from mmpareto.experiments.slurm import Executor
    except ImportError as error:
        raise UsageError("--launcher slurm needs the library submitit: pip install submitit") from error
    minutes = parameters.get("time", 720)
    if not isinstance(minutes, int) or minutes < 1:
        raise UsageError(f"--slurm time={minutes}: expected the number of minutes, such as time=600")
    several = [key for key in ("nodes", "ntasks_per_node") if parameters.get(key, 1) != 1]
    if several:
        raise UsageError(f"--slurm {several[0]}: a job trains one run in one process; leave it out")
    chosen = {
        "job_name": "mmpareto",
        "time": minutes,
        "cpus_per_task": 8,
        "signal_delay_s": min(WARNING, 60 * minutes // 4),
        "stderr_to_stdout": True,
        "setup": [
            f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            # Slurm 22.05 and later: srun does not take it from the job
            '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        ],
        **({} if cpu or not GPU_PARAMETERS.isdisjoint(parameters) else {"gpus_per_node": 1}),
        **({} if partition is None else {"partition": partition}),
        **parameters,
    }
    chosen["additional_parameters"] = {"requeue": True, **(chosen.get("additional_parameters") or {})}
    if not 0 < chosen["signal_delay_s"] < 60 * minutes:
        raise UsageError(
            f"--slurm signal_delay_s={chosen['signal_delay_s']}: expected a number of seconds below the time limit "
            f"({60 * minutes} s)"
        )
    try:
        executor = Executor(folder / "%j", max_num_timeout=20)
        executor.update_parameters(**chosen)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"--launcher slurm: {error}") from error
    return executor


def stop(launched: Sequence[Launched], grace: float = GRACE, hurry: Sequence[Any] = ()) -> None:
    """End what is under way: ask, wait at most `grace` seconds, or until `hurry` has two entries, then kill."""
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
