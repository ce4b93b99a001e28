"""Prepare a dataset: `python code/prepare.py --help`; see mmpareto.cli.prepare."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.prepare import main

if __name__ == "__main__":
    startup.run(main)
