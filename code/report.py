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

# isort: split
from mmpareto.cli.report import main

if __name__ == "__main__":
    startup.run(main)
