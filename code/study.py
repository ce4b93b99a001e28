"""Study the gradients and the loss around trained runs: `python code/study.py --help`; see mmpareto.cli.study."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.study import main

if __name__ == "__main__":
    startup.run(main)
