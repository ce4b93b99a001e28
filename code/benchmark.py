"""Measure what a training step costs: `python code/benchmark.py --help`; see mmpareto.cli.benchmark."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.benchmark import main

if __name__ == "__main__":
    startup.run(main)
