"""A training run as a process: begun or resumed, its output in a log beside its results, ended gently."""

from __future__ import annotations

import enum
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpareto import runs
from mmpareto.config import FAST, differing
from mmpareto.experiments.grid import Run
from mmpareto.runs import RunDirectory, RunError
from mmpareto.writing import lock

LOG = "train.log"
TAIL = 6  # lines of the log that are shown of a failure
STOPPED = 128 + signal.SIGTERM  # exit status of train.py after SIGTERM: it has written a checkpoint


class State(enum.Enum):
    """The state of a run's folder; the value holds the flags for train.py."""

    NEW = ()
    BROKEN_OFF = ("--overwrite",)  # ended before its first checkpoint: what is there is of no use
    UNFINISHED = ("--resume",)
    FINISHED = None


class Busy(RunError):  # noqa: N818  # no error of the program
    """Another process trains in the folder of the run."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    failure        None, or the reason and the last lines of the log.
    diverged       whether a loss or gradient was not finite.
    stopped        whether train.py stopped because it was asked to, by SIGTERM; then it left a checkpoint.
    out_of_memory  whether train.py says so.
    """

    failure: str | None = None
    stopped: bool = False
    out_of_memory: bool = False
    diverged: bool = False


def state(run: Run) -> State:
    """The state of the folder of `run`.

    Raises RunError where it is finished, but was made with other settings.
    """
    directory = RunDirectory(run.folder)
    if directory.finished:
        other = [f"{key} {before} (asked for: {now})" for key, (before, now) in _changes(run).items()]
        if other:
            raise RunError(
                f"it is finished, but was made with other settings: {', '.join(other)}; it is left as it is. Name "
                "another --output, vary the flag with --vary, or remove the folder"
            )
        return State.FINISHED
    if (directory / runs.LAST).exists():
        return State.UNFINISHED
    return State.BROKEN_OFF if (directory / runs.CONFIG).exists() else State.NEW


def diverged(run: Run) -> str | None:
    """Where the losses or gradients of an unfinished run with these settings were not finite; None if they were.

    Raises RunError where its files are damaged.
    """
    directory = RunDirectory(run.folder)
    if directory.finished or not (directory / runs.DIVERGED).exists() or _changes(run):
        return None
    content = directory.read_json(runs.DIVERGED)
    return ("" if content.get("step") is None else f"step {content['step']}, ") + f"epoch {content.get('epoch')}"


def _changes(run: Run) -> dict[str, tuple[Any, Any]]:
    """{flag: (value, value asked for)} where the run in the folder has other settings."""
    saved, wanted = RunDirectory(run.folder).read_config(), run.config.flat()
    if run.config.engine.fast:  # it switched on what the device can do
        wanted |= {key: saved[key] for key in FAST if key in saved and not wanted[key]}
    return differing(saved, wanted)


def epochs_done(run: Run) -> int:
    """Whole epochs that a run has trained, at most as many as it has."""
    try:
        return min(len(RunDirectory(run.folder).read_csv(runs.METRICS)), run.config.optim.epochs)
    except (OSError, RunError):
        return 0


class TrainingProcess:
    """train.py at work on a run, in a process group of its own.

    The log is locked for as long as the process lives, whatever becomes of its parent, as the lock is passed on to it:
    two of them never train in one folder.

    run      what to train.
    script   train.py; None: `python -m mmpareto train`.
    threads  CPU threads, unless OMP_NUM_THREADS is set.
    gpu      for --gpu_ids; None: its default.

    Raises Busy where another process trains it, RunError where it is finished with other settings, OSError where it
    cannot be started.
    """

    def __init__(self, run: Run, script: Path | None, threads: int, gpu: str | None = None) -> None:
        self.run = run
        self._process: subprocess.Popen[bytes] | None = None
        self._outcome: Outcome | None = None
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(run.folder / LOG, "ab", opener=_no_link) as log:
            try:
                lock(log)
            except BlockingIOError as error:
                raise Busy(f"another process trains in {run.folder}") from error
            run_state = state(run)
            if run_state is State.FINISHED:
                self._outcome = Outcome()
                return
            (run.folder / runs.DIVERGED).unlink(missing_ok=True)  # an earlier process left it
            device = () if gpu is None else ("--gpu_ids", gpu)
            program = ["-P", "-m", "mmpareto", "train"] if script is None else [str(script)]
            command = [sys.executable, *program, *run.argv, *device, *run_state.value]
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self._begin = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads)},
                start_new_session=True,  # Ctrl-C reaches us alone, and a signal to the group its loader processes too
            )

    def poll(self) -> Outcome | None:
        """How the run ended; None while it is under way."""
        if self._outcome is None and self._process is not None:
            status = self._process.poll()
            if status is not None:
                self._tidy()
                self._outcome = self._outcome_of(status)
        return self._outcome

    def terminate(self) -> None:
        """Ask the process and its children to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and its children."""
        self._signal(signal.SIGKILL)

    def _outcome_of(self, status: int) -> Outcome:
        if status == 0 and RunDirectory(self.run.folder).finished:
            return Outcome()
        place = None
        if status < 0:
            name = signal.Signals(-status).name
            reason = f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        else:
            reason = f"exit status {status}" if status else "it ended without results"
            with suppress(RunError):
                place = diverged(self.run) if status else None
            if place is not None:
                reason = f"diverged ({place})"
        tail = self._tail()
        failure = "\n".join([f"{reason}; {self.run.folder / LOG} ends with", *tail])
        out_of_memory = any("out of memory" in line for line in tail)
        return Outcome(failure, status in (STOPPED, -signal.SIGTERM), out_of_memory, place is not None)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _tidy(self) -> None:
        """After the end: no child is left, and no file that was being written."""
        self.kill()
        if self._process is not None:
            for part in self.run.folder.glob(f".*.{self._process.pid}.part"):
                part.unlink(missing_ok=True)

    def _tail(self) -> list[str]:
        with open(self.run.folder / LOG, "rb") as log:
            log.seek(self._begin)
            lines = (line.decode(errors="replace").rstrip() for line in log)
            return list(deque((f"    {line}" for line in lines if line), maxlen=TAIL)) or ["    (nothing)"]


def _no_link(path: str, flags: int) -> int:
    """Open a file unless it is a link: a folder from somebody else could have us write anywhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
