"""Compare finished runs: a table per dataset, mean and standard deviation over seeds.

    python code/report.py runs
    python code/report.py runs/twoview --output report
    python code/report.py runs/twoview --output report --baseline one_joint --tune learning_rate
    python code/report.py --leaderboard ours/leaderboard.json theirs/leaderboard.json

Test accuracy in percent: a terminal shows the main columns, a file or pipe gets all of them, as Markdown. Runs that
differ in any setting but the seed are never averaged; runs selected on the test split are marked; unfinished runs are
listed and left out. Trials of a search choose and are not reported: they are left out unless their folder is named.
With --output a folder is written: index.html, which holds all the rest, table.md, table.csv, table.tex and figures/.
Exit status: 0 done; 2 cannot be done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpareto import startup
from mmpareto.cli.common import run_command
from mmpareto.command_line import Parser
from mmpareto.errors import UsageError
from mmpareto.escape import counted, on_one_line
from mmpareto.flag_values import file_path
from mmpareto.startup import program


def parser() -> Parser:
    """The flags."""
    flags = Parser(prog=program("report"), description=__doc__)
    add = flags.add_argument
    add("runs", nargs="*", type=file_path, help="run directories, or folders that hold some")
    add(
        "--leaderboard",
        nargs="+",
        type=file_path,
        metavar="FILE",
        help="merge leaderboard.json files of one protocol, and print their tables; with --output write both there",
    )
    add("--output", type=file_path, metavar="FOLDER", help="write tables, figures and a page there")
    add(
        "--baseline",
        metavar="METHOD",
        help="with --output: test the others against it (default: uniform, uniform_gamma or one_joint)",
    )
    add(
        "--tune",
        metavar="FLAG",
        nargs="+",
        default=[],
        help="with --output: of runs that differ in these flags of train.py, or options of methods, alone, each method "
        "keeps those with the best mean validation accuracy",
    )
    add(
        "--tune_seeds",
        metavar="SEED",
        type=int,
        nargs="+",
        default=[],
        help="with --tune: the seeds that choose (default: all); the chosen runs are reported over all of their seeds",
    )
    return flags


def report(arguments: argparse.Namespace) -> int:
    """Compare runs; the result is the exit status."""
    output = arguments.output
    if bool(arguments.leaderboard) == bool(arguments.runs):
        raise UsageError("give run directories, or --leaderboard with files")
    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; name a folder with --output")
    if arguments.leaderboard:
        for name in ("baseline", "tune", "tune_seeds"):
            if getattr(arguments, name):
                raise UsageError(
                    f"--{name} is for run directories: a leaderboard's values are chosen, its baseline set"
                )
        return show_leaderboard(arguments.leaderboard, output)
    if output is None and (arguments.baseline is not None or arguments.tune):
        raise UsageError("--baseline and --tune are for a written report; name its folder with --output")
    if arguments.tune_seeds and not arguments.tune:
        raise UsageError("--tune_seeds says which seeds choose values; name the flags with --tune")
    from mmpareto.reporting.comparison import printed  # PyTorch and pandas take seconds to import
    from mmpareto.reporting.finished import find
    from mmpareto.reporting.tables import comparison_text

    finished, unfinished = find(arguments.runs)
    if not finished:
        raise UsageError(
            f"found no finished run and {counted(len(unfinished), 'unfinished one')}; finish one with train.py --resume"
        )
    summaries = []
    on_terminal = sys.stdout.isatty()
    if output is not None or on_terminal:
        from mmpareto.reporting import summary  # scipy takes a second to import

        summaries = summary.summaries(finished, arguments.baseline, arguments.tune, arguments.tune_seeds)
        finished = [run for part in summaries for run in part.runs]  # of tuned flags the chosen values alone
    print("\n\n".join(map(comparison_text, summaries)) if on_terminal else printed(finished, arguments.tune))
    for choice in (choice for part in summaries for choice in part.choices):
        print(f"\n{on_one_line(choice)}")
    if unfinished:
        names = ", ".join(on_one_line(str(path)) for path in unfinished)
        print(f"\nnot finished, left out: {names}", file=sys.stderr)
    if output is not None:
        from mmpareto.reporting import page  # matplotlib takes a second to import

        page.write(output, summaries, unfinished)
        print(f"\nreport: {output / page.PAGE}")
    return 2 if output is None and startup.lost_output() else 0  # the table is all that was asked for


def show_leaderboard(files: Sequence[Path], output: Path | None) -> int:
    """Merge leaderboards and print their tables; the result is the exit status."""
    from mmpareto.reporting import leaderboard  # scipy takes a second to import

    content = leaderboard.merged(files)
    text = leaderboard.tables(content)
    print(text)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        leaderboard.write(output, content)
        print(f"written: {output / leaderboard.FILE}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    return run_command(program("report"), lambda: report(parser().parse_args(argv)), interrupted="interrupted")
