"""Run a grid of training runs: `python code/experiment.py --help`; see mmpareto.cli.experiment."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.experiment import main

if __name__ == "__main__":
    startup.run(main)
