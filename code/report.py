"""Compares finished runs: a table per dataset, mean and standard deviation over seeds.

    python code/report.py runs
    python code/report.py runs/digits --output comparison.md

Test accuracy in percent. Runs that differ in any setting but the seed are never averaged; runs selected on the test
split are marked; unfinished runs are listed and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpareto.reporting.comparison import comparison, find, markdown
from mmpareto.runs import RunError, atomically


def entry(argv: Sequence[str]) -> int:
    """Runs a command line; the result is the exit status."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders that hold some")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table there, as Markdown")
    arguments = parser.parse_args(argv)
    try:
        found, unfinished = find(arguments.runs)
        if not found:
            raise RunError(f"none of the {len(unfinished)} runs is finished; finish one with train.py --resume")
        table = markdown(comparison(found))
        print(table)
        if unfinished:
            print(f"\nnot finished, left out: {', '.join(map(str, unfinished))}", file=sys.stderr)
        if arguments.output is not None:
            with atomically(arguments.output) as file:
                file.write(f"{table}\n".encode())
    except (RunError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(entry(sys.argv[1:]))
