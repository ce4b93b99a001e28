"""Runs a grid of training runs: methods x datasets x seeds x varied flags, several at a time, and compares them.

    python code/experiment.py --methods mmpareto uniform one_joint --seeds 0 1 2
    python code/experiment.py --methods mmpareto uniform --vary gamma=1,1.5,2 --epochs 10
    python code/experiment.py --methods mmpareto --datasets cremad --launcher slurm --partition gpu
    python code/experiment.py --methods mmpareto uniform --search random --trials 10 --seeds 10 11 12 13 14

With --search each method gets as many trials, which draw its learning rate, weight decay and options; validation
chooses, and the chosen values are run with --seeds. OUTPUT/leaderboard.json holds the results, OUTPUT/leaderboard.md
the tables, OUTPUT/trials.csv every trial, OUTPUT/report the page.

Flags that are not listed below are train.py's and go to every run. Every command line is checked before the first one
is run. Runs are in OUTPUT/<dataset>/<method>[/<flag>=<value>...]/seed<k>, each with its output in train.log. The same
command again does only what is missing: finished runs are passed over, unfinished ones resumed. Exit status: 0 done;
1 some runs failed; 2 cannot be done; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmpareto.cli.common import run_command
from mmpareto.cli.evaluate import evaluation_json
from mmpareto.command_line import Parser
from mmpareto.config import DEFAULT_DATASET, FAST
from mmpareto.cores import cores
from mmpareto.errors import UsageError, UserError
from mmpareto.escape import counted
from mmpareto.experiments.grid import Grid, Run, check_runs, expand, variation
from mmpareto.experiments.launchers import Launcher, Local, Submitit, slurm_executor
from mmpareto.experiments.process import State, diverged, state
from mmpareto.experiments.schedule import Interrupted, run_all
from mmpareto.experiments.search import TUNED, Search, Trial
from mmpareto.experiments.search_results import write_leaderboard
from mmpareto.experiments.sharing import read_gpu
from mmpareto.flag_values import assignment, count, file_path, seed
from mmpareto.reporting.finished import find
from mmpareto.reporting.tables import comparison_text
from mmpareto.runs import CODE, EVALUATION, RunDirectory, RunError
from mmpareto.selection import RULES
from mmpareto.startup import is_command, program, root
from mmpareto.writing import atomically

# flags of a search, by their names
OF_SEARCH = ("trials", "trial_seeds", "budget", "select", "recipe")
# None: `python -m mmpareto train`, which looks for data/ where the command `mmpareto` does
TRAIN = None if is_command() or not (CODE / "train.py").exists() else CODE / "train.py"
MOST_JOBS = 8  # on CPU, or on a GPU, unless a flag asks for more: each of them holds libraries and data in memory


def parser() -> argparse.ArgumentParser:
    """The flags that are not train.py's."""
    flags = Parser(
        prog=program("experiment"),
        usage="%(prog)s --methods NAME [NAME ...] [flags below] [flags of train.py]",
        description=__doc__,
    )
    add = flags.add_argument
    add("--methods", nargs="+", required=True, metavar="NAME", help="as for train.py --method")
    add(
        "--datasets",
        nargs="+",
        default=[DEFAULT_DATASET],
        metavar="NAME",
        help=f"as for train.py --dataset (default: {DEFAULT_DATASET})",
    )
    add("--seeds", nargs="+", type=seed, default=[0], metavar="N", help="(default: 0)")
    add(
        "--vary",
        action="append",
        type=variation,
        default=[],
        metavar="FLAG=VALUE,...",
        help="a flag of train.py, or an option of a method, and its values, such as gamma=1,1.5,2; repeated, every "
        "combination is run; values are separated by semicolons where they hold commas; a method to which the flag "
        "means nothing is run once without it",
    )
    add("--search", choices=("random", "tpe"), help="draw trials at random, or let Optuna propose them")
    add("--trials", type=count, default=10, metavar="N", help="with --search, of each method (default: 10)")
    add("--trial_seeds", nargs="+", type=seed, default=[0], metavar="N", help="whose mean chooses (default: 0)")
    add("--budget", type=count, metavar="EPOCHS", help="of a trial (default: as many as of a run)")
    add(
        "--select",
        choices=tuple(RULES),
        default="joint",
        help="what chooses: " + "; ".join(f"{name}: {text}" for name, text in RULES.items()) + " (default: joint)",
    )
    add("--recipe", action="store_true", help="with --search: run the recipe's values too, for the effect of tuning")
    add("--output", type=file_path, default=Path(root(), "runs"), metavar="FOLDER", help="(default: %(default)s)")
    add(
        "--jobs",
        type=count,
        metavar="N",
        help=f"runs at a time, at most (default: one per core, at most {MOST_JOBS} on CPU or on a GPU; with Slurm "
        "all). They share the cores: OMP_NUM_THREADS is cores // runs, unless it is set",
    )
    add(
        "--runs_per_gpu",
        type=count,
        metavar="N",
        help="runs that share a GPU (default: one at first, then as many as its memory, its utilisation and the cores "
        "allow, measured while they train)",
    )
    add(
        "--gpu_ids",
        metavar="IDS",
        help="GPUs to share among the runs, such as 0,1, or cpu (default: every GPU, or cpu where there is none); "
        "0,0,0 is the same as --gpu_ids 0 --runs_per_gpu 3",
    )
    add("--launcher", choices=("local", "slurm"), default="local", help="slurm needs submitit (default: local)")
    add("--partition", metavar="NAME", help="of the Slurm cluster")
    add(
        "--slurm",
        type=assignment,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="parameters of submitit's SlurmExecutor, such as time=600 (minutes) gpus_per_node=1 cpus_per_task=8 "
        "mem=32GB qos=high account=NAME (default: time=720 gpus_per_node=1 cpus_per_task=8; with --gpu_ids cpu no GPU)",
    )
    return flags


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


def experiment(argv: Sequence[str]) -> int:
    """Runs a grid from its flags to its table; the result is the exit status."""
    flags = parser()
    arguments, passed = flags.parse_known_args(argv)
    if arguments.search is not None:
        return search(arguments, passed)
    for name in OF_SEARCH:
        if getattr(arguments, name) != flags.get_default(name):
            raise UsageError(f"--{name} is for --search; leave it out, or add --search random")
    output = arguments.output.absolute()
    try:
        grid = expand(
            arguments.methods, arguments.datasets, arguments.seeds, arguments.vary, passed, output, Path(root())
        )
        check_runs(grid.runs)
    except UsageError as error:
        hint = _meant(passed) if "unknown flag" in str(error) else ""
        raise UsageError(f"{error}{hint}") from error
    launcher, where = make_launcher(arguments, len(grid.runs), output)
    for note in grid.notes:
        print(note)
    failures = perform(grid.runs, launcher, where, arguments.output)
    try:
        compare(grid, failures)
    except RunError as error:  # of a finished run whose files are damaged; what failed is still to be told
        print(f"\nno table: {error}", file=sys.stderr)
        status = 1
    else:
        status = 0
    return max(status, tell(failures, len(grid.runs)))


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
            states[run] = state(run)
            if trials and diverged(run) is not None:
                diverged_runs.add(run)
        except RunError as error:
            failures[run] = NotStarted(error)
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


def search(arguments: argparse.Namespace, passed: Sequence[str]) -> int:
    """Search each method's values, run those that validation chose, write the leaderboard."""
    if arguments.vary:
        raise UsageError("--vary and --search both say which values are tried: give one of them")
    output = arguments.output.absolute()
    plan = Search(
        sampler=arguments.search,
        trials=arguments.trials,
        trial_seeds=list(dict.fromkeys(arguments.trial_seeds)),
        seeds=list(dict.fromkeys(arguments.seeds)),
        rule=arguments.select,
        budget=arguments.budget,
        passed=passed,
        output=output,
        root=Path(root()),
    )
    candidates = plan.candidates(arguments.datasets, arguments.methods)
    for candidate in candidates:
        plan.trial(candidate, 0)  # refuses missing data; counting GPUs would import PyTorch first
    launcher, where = make_launcher(arguments, len(candidates) * arguments.trials, output)
    failures: dict[Run, str] = {}
    trials: list[Trial] = []
    for numbers in plan.rounds():  # those of one round do not depend on one another
        of_round = [plan.trial(candidate, number) for number in numbers for candidate in candidates]
        runs = [run for trial in of_round for run in trial.runs]
        failures |= perform(runs, launcher, where, arguments.output, trials=True)
        for trial in of_round:
            plan.score(trial)
        trials += of_round
    for what, ended in (("diverged", "diverged"), ("idle", "ended before the method acted")):
        names = (f"{trial.candidate.method} on {trial.candidate.dataset}" for trial in trials if getattr(trial, what))
        by_name = Counter(names)
        if by_name:
            listed = ", ".join(f"{name} {number}" for name, number in by_name.items())
            print(f"{by_name.total()} of {counted(len(trials), 'trial')} {ended}, of which none is chosen: {listed}")
    chosen_trials = []
    for candidate in candidates:
        its_trials = [trial for trial in trials if trial.candidate == candidate]
        best = plan.best(its_trials)
        if best is not None:
            chosen_trials.append(best)
        else:
            print(f"{candidate.method} on {candidate.dataset}: {_why_none(plan, its_trials)}", file=sys.stderr)
    finals = plan.finals(chosen_trials, recipe=False) + (
        plan.finals(chosen_trials, recipe=True) if arguments.recipe else []
    )
    failures |= perform(finals, launcher, where, arguments.output)
    for run in finals:
        if run not in failures and run.name.startswith(TUNED):
            try:
                measure_balance(run, arguments.gpu_ids)
            except UserError as error:  # the scores are worth keeping
                print(f"warning: {run.name}: no measures of balance: {error}", file=sys.stderr)
    status = tell(failures, len(finals) + sum(len(trial.runs) for trial in trials))
    if not write_leaderboard(plan, trials, chosen_trials, [run for run in finals if run not in failures]):
        print("no leaderboard: no run with chosen values is finished", file=sys.stderr)
        return 1
    flags = dict.fromkeys(name for trial in chosen_trials for name in trial.values)
    from mmpareto.api import comparison  # pandas takes a second to import

    tuned = [run.folder for run in finals if run not in failures and run.name.startswith(TUNED)]
    page = comparison.compare(tuned, tune=list(flags)).report(output / "report")
    print(f"\nreport: {page}")
    return status


def _why_none(plan: Search, trials: Sequence[Trial]) -> str:
    """Why the rule chooses none of a method's trials."""
    failed = [str(trial.number) for trial in trials if plan.score(trial) is None and not trial.diverged]
    if failed:
        return f"no values are chosen, because trials failed: {', '.join(failed)}; the same command runs them again"
    idle = next((trial.idle for trial in trials if trial.idle), "")
    return f"no values are chosen; {idle}" if idle else "no values are chosen, because all trials diverged"


def measure_balance(run: Run, gpu_ids: str | None) -> None:
    """Leave evaluation_test.json in a finished run, where it has none of the selected model.

    Raises:
        UserError: where the run cannot be evaluated.
    """
    from mmpareto.reporting.histories import current_evaluation  # pandas takes a second to import

    (finished,), _ = find([run.folder])
    if current_evaluation(finished) is not None:
        return
    from mmpareto.api.evaluation import evaluation_of  # PyTorch takes seconds to import
    from mmpareto.training.setup import choose_device

    directory, device = RunDirectory(run.folder), choose_device(gpu_ids and gpu_ids.split(",")[0])
    config = run.config.changed(**{key: finished.config[key] for key in FAST})  # what --fast switched on
    content, _ = evaluation_of(directory, config, "test", device, probe=False, missing="zero", rates=())
    with atomically(run.folder / EVALUATION.format("test")) as stream:
        stream.write(evaluation_json(content))


def compare(grid: Grid, failures: dict[Run, str]) -> None:
    """Prints the table of the grid's finished runs, and the command that makes such tables."""
    finished, _ = find(run.folder for run in grid.runs if run not in failures)
    if not finished:
        return
    from mmpareto.reporting.summary import summaries  # scipy takes seconds to import

    for summary in summaries(finished):
        print(f"\n{comparison_text(summary)}")
    # <dataset>/<method>, whatever was varied below
    methods = dict.fromkeys(run.folder.parents[run.name.count("/") - 2] for run in grid.runs if run not in failures)
    launcher = CODE.parent / "script" / "report.sh"
    start = ["mmpareto", "report"] if TRAIN is None else ["sh", launcher]
    command: list[str | Path] = [*start, *methods]
    print(f"\nagain, with all runs of these folders: {shlex.join(_short(part) for part in command)}")


def _meant(passed: Sequence[str]) -> str:
    """A flag of ours that one of train.py's resembles."""
    ours = list(parser()._option_string_actions)
    flags = [token.partition("=")[0] for token in passed if token.startswith("--")]
    close = [match for flag in flags for match in difflib.get_close_matches(flag, ours, n=1, cutoff=0.8)]
    return f" ({program('experiment')} itself has {', '.join(close)})" if close else ""


def _short(part: str | Path) -> str:
    """A path as seen from the folder in which one stands, where it is below it."""
    return (
        str(part.relative_to(Path.cwd())) if isinstance(part, Path) and part.is_relative_to(Path.cwd()) else str(part)
    )


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    ended = "interrupted; finished runs and whole epochs are kept, the same command continues"
    try:
        return run_command(program("experiment"), lambda: experiment(argv), interrupted=ended)
    except Interrupted as order:
        print(f"\n{ended}", file=sys.stderr)
        return 128 + order.number
