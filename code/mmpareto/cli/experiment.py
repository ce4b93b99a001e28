"""Run a grid of training runs: methods x datasets x seeds x varied flags, several at a time, and compare them.

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
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpareto.cli.common import run_command
from mmpareto.cli.running import MOST_JOBS, TRAIN, make_launcher, perform, tell
from mmpareto.cli.search import OF_SEARCH, add_search_arguments, search
from mmpareto.command_line import Parser
from mmpareto.config import DEFAULT_DATASET
from mmpareto.errors import UsageError
from mmpareto.experiments.grid import Grid, Run, check_runs, expand, variation
from mmpareto.flag_values import assignment, count, file_path, seed
from mmpareto.reporting.finished import find
from mmpareto.reporting.tables import comparison_text
from mmpareto.runs import CODE, RunError
from mmpareto.startup import program, root


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
    add_search_arguments(flags)
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


def experiment(argv: Sequence[str]) -> int:
    """Run a grid or a search from its flags to its tables; the result is the exit status."""
    flags = parser()
    arguments, passed = flags.parse_known_args(argv)
    try:
        if arguments.search is not None:
            return search(arguments, passed)
        for name in OF_SEARCH:
            if getattr(arguments, name) != flags.get_default(name):
                raise UsageError(f"--{name} is for --search; leave it out, or add --search random")
        return run_grid(arguments, passed)
    except UsageError as error:
        hint = _meant(passed) if "unknown flag" in str(error) else ""
        raise UsageError(f"{error}{hint}") from error


def run_grid(arguments: argparse.Namespace, passed: Sequence[str]) -> int:
    """Run a grid and compare its runs; the result is the exit status."""
    output = arguments.output.absolute()
    grid = expand(arguments.methods, arguments.datasets, arguments.seeds, arguments.vary, passed, output, Path(root()))
    check_runs(grid.runs)
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


def compare(grid: Grid, failures: dict[Run, str]) -> None:
    """Print the table of the grid's finished runs, and the command that makes such tables."""
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
    return run_command(program("experiment"), lambda: experiment(argv), interrupted=ended)
