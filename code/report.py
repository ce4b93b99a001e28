"""Compares finished runs: a table per dataset, mean and standard deviation over seeds.

    python code/report.py runs
    python code/report.py runs/digits --output report
    python code/report.py runs/digits --output report --baseline one_joint --tune learning_rate

Test accuracy in percent. Runs that differ in any setting but the seed are never averaged; runs selected on the test
split are marked; unfinished runs are listed and left out. With --output a folder is written: index.html, which holds
all the rest, table.md, table.csv, table.tex and figures/. Exit status: 0 done; 2 cannot be done.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment
from mmpareto.flag_values import file_path

# isort: split
import argparse
import sys
from collections.abc import Sequence

from mmpareto.escape import on_one_line
from mmpareto.reporting.comparison import printed
from mmpareto.reporting.finished import find
from mmpareto.runs import RunError


def entry(argv: Sequence[str]) -> int:
    """Runs a command line; the result is the exit status."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=file_path, help="run directories, or folders that hold some")
    parser.add_argument("--output", type=file_path, metavar="FOLDER", help="write tables, figures and a page there")
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="with --output: test the others against it\n(default: uniform, uniform_gamma or one_joint)",
    )
    parser.add_argument(
        "--tune",
        metavar="FLAG",
        nargs="+",
        default=[],
        help="with --output: of runs that differ in these flags of train.py, or options of\n"
        "methods, alone, each method keeps those with the best mean validation accuracy",
    )
    parser.add_argument(
        "--tune_seeds",
        metavar="SEED",
        type=int,
        nargs="+",
        default=[],
        help="with --tune: the seeds that choose (default: all); the chosen runs are\nreported over all of their seeds",
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.output is None and (arguments.baseline is not None or arguments.tune):
            raise RunError("--baseline and --tune are for a written report; name its folder with --output")
        if arguments.tune_seeds and not arguments.tune:
            raise RunError("--tune_seeds says which seeds choose values; name the flags with --tune")
        if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
            raise RunError(f"{arguments.output} is a file; name a folder with --output")
        found, unfinished = find(arguments.runs)
        if not found:
            raise RunError(f"none of the {len(unfinished)} runs is finished; finish one with train.py --resume")
        summaries = []
        if arguments.output is not None:
            from mmpareto.reporting import summary  # scipy takes a second to load

            summaries = summary.summaries(found, arguments.baseline, arguments.tune, arguments.tune_seeds)
            found = [run for part in summaries for run in part.runs]  # of tuned flags the chosen values alone
        print(printed(found))
        for choice in (choice for part in summaries for choice in part.choices):
            print(f"\n{on_one_line(choice)}")
        if unfinished:
            names = ", ".join(on_one_line(str(path)) for path in unfinished)
            print(f"\nnot finished, left out: {names}", file=sys.stderr)
        if arguments.output is not None:
            from mmpareto.reporting import page  # matplotlib takes a second to load

            page.write(arguments.output, summaries, unfinished)
            print(f"\nreport: {arguments.output / page.PAGE}")
    except (RunError, OSError) as error:
        print(f"report.py: {on_one_line(str(error))}", file=sys.stderr)
        return 2
    return 2 if arguments.output is None and startup.lost_output() else 0  # the table is all that was asked for


if __name__ == "__main__":
    startup.run(entry)
