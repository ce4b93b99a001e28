"""What a grid and a search have in common: where runs are run, doing what is missing of them, telling what failed."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmpareto.cores import cores
from mmpareto.errors import UsageError
from mmpareto.escape import counted
from mmpareto.experiments.grid import Run
from mmpareto.experiments.launchers import Launcher, Local, Submitit, slurm_executor
from mmpareto.experiments.process import State, diverged, state
from mmpareto.experiments.schedule import run_all
from mmpareto.experiments.sharing import read_gpu
from mmpareto.runs import CODE, RunDirectory, RunError
from mmpareto.startup import is_command, program

# None: `python -m mmpareto train`, which looks for data/ where the command `mmpareto` does
TRAIN = None if is_command() or not (CODE / "train.py").exists() else CODE / "train.py"
MOST_JOBS = 8  # on CPU, or on a GPU, unless a flag asks for more: each of them holds libraries and data in memory


def make_launcher(arguments: argparse.Namespace, runs: int, output: Path) -> tuple[Launcher, str]:
    """Where the runs are run, and that in words."""
    gpus = gpus_for(arguments.gpu_ids, arguments.launcher)
    on_cpu, repeated = gpus == ["cpu"], len(set(gpus)) < len(gpus)
    if arguments.runs_per_gpu is not None and (on_cpu or repeated or arguments.launcher == "slurm"):
        raise UsageError("--runs_per_gpu needs GPUs of this machine, and --gpu_ids that names each GPU once")
    if arguments.launcher == "slurm":
        jobs = arguments.jobs or runs
        parameters = dict(arguments.slurm)
        executor = slurm_executor(output / ".submitit", CODE, arguments.partition, parameters, cpu=on_cpu)
        return Submitit(executor, TRAIN, jobs, *gpus), f"at most {jobs} Slurm jobs at a time"
    if arguments.partition is not None or arguments.slurm:
        raise UsageError("--partition and --slurm are for --launcher slurm")
    threads = os.environ.get("OMP_NUM_THREADS")
    where = "on CPU" if on_cpu else f"on GPU {', '.join(dict.fromkeys(gpus))}"
    if not on_cpu and not repeated and arguments.runs_per_gpu is None:
        jobs = arguments.jobs or max(len(gpus), min(cores(), MOST_JOBS * len(gpus)))
        return Local(TRAIN, jobs, cores(), gpus, read_gpu), (
            f"{where}, one at a time each at first, then as many as memory, utilisation and cores allow "
            f"(--runs_per_gpu sets a number), OMP_NUM_THREADS={threads or 'cores // runs'} each"
        )
    most = min(cores(), MOST_JOBS) if on_cpu else len(gpus) * (arguments.runs_per_gpu or 1)
    jobs = arguments.jobs or most
    if not on_cpu:
        jobs = min(jobs, most)
    threads = threads or str(max(1, cores() // jobs))
    return Local(TRAIN, jobs, cores(), gpus), f"{jobs} at a time {where}, OMP_NUM_THREADS={threads} each"


def gpus_for(gpu_ids: str | None, launcher: str) -> list[str]:
    """The devices for --gpu_ids of the runs: GPU numbers, or ["cpu"]; none in a Slurm job, which sees its own GPU.

    Raises UsageError where a GPU that was asked for is not there.
    """
    if gpu_ids is not None and gpu_ids.lower() == "cpu":
        return ["cpu"]
    if launcher == "slurm":
        if gpu_ids is not None:
            raise UsageError("--gpu_ids: a Slurm job sees the GPUs that it was given; use --slurm gpus_per_node=1")
        return []
    import torch  # takes seconds to import

    device_count = torch.cuda.device_count()
    if gpu_ids is None:
        return [str(number) for number in range(device_count)] or ["cpu"]
    numbers = gpu_ids.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise UsageError(f"--gpu_ids: expected numbers of GPUs separated by commas, or cpu; found {gpu_ids!r}")
    if any(int(number) >= device_count for number in numbers):
        raise UsageError(f"--gpu_ids {gpu_ids}: PyTorch sees {counted(device_count, 'GPU')}, numbered from 0")
    return numbers


class NotStarted(str):
    """Why a run was not started: what its folder holds is in the way."""


def perform(
    planned: Sequence[Run], launcher: Launcher, where: str, output: Path, *, trials: bool = False
) -> dict[Run, str]:
    """Do what is missing of some runs, and say so; the result are those not done, with the reason.

    A run of a trial that diverged has not failed: it is a result, and is not tried again.
    """
    failures: dict[Run, str] = {}
    states: dict[Run, State] = {}
    diverged_runs: set[Run] = set()
    for run in planned:
        try:
            progress, lost = state(run), trials and diverged(run) is not None
        except RunError as error:
            failures[run] = NotStarted(error)
            continue
        states[run] = progress
        if lost:
            diverged_runs.add(run)
    todo = [run for run, progress in states.items() if progress is not State.FINISHED and run not in diverged_runs]
    unfinished = sum(states[run] is State.UNFINISHED for run in todo)
    print(
        f"{counted(len(planned), 'run')} in {output}: {len(states) - len(todo) - len(diverged_runs)} finished, "
        + (f"{len(diverged_runs)} diverged, " if diverged_runs else "")
        + f"{unfinished} to resume, {len(todo) - unfinished} to begin"
        + (f", {len(failures)} in the way" if failures else "")
        + (f"; {where}" if todo else ""),
        flush=True,
    )
    without_probes = sum(lacks_probes(run) for run, progress in states.items() if progress is State.FINISHED)
    if without_probes:
        print(
            f"{counted(without_probes, 'finished run')} without probes, which are fitted when a run ends: name another "
            f"--output, or remove the folders; {program('evaluate')} RUN fits them to one run",
            flush=True,
        )
    for run, outcome in run_all(todo, launcher).items():
        if outcome.failure is not None and not (trials and diverged(run) is not None):
            failures[run] = outcome.failure
    return failures


def lacks_probes(run: Run) -> bool:
    """Whether a finished run was made without the --probe that is asked for now."""
    if not run.config.run.probe:
        return False
    try:
        return "probe" not in RunDirectory(run.folder).read_results()
    except RunError:  # the table says so
        return False


def tell(failures: Mapping[Run, str], number: int) -> int:
    """Say which of so many runs failed, and which were not started; the result is the exit status."""
    for what, kept_out in (("failed", False), ("not run", True)):
        reasons = {run: text for run, text in failures.items() if isinstance(text, NotStarted) == kept_out}
        if reasons:
            print(f"\n{len(reasons)} of {counted(number, 'run')} {what}:", file=sys.stderr)
        for run, reason in reasons.items():
            print(f"{run.name}: {reason}", file=sys.stderr)
    return 1 if failures else 0
