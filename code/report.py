"""Compare finished runs: `python code/report.py --help`; see mmpareto.cli.report."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.report import main

if __name__ == "__main__":
    startup.run(main)
