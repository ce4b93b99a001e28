"""Score a trained run: `python code/evaluate.py --help`; see mmpareto.cli.evaluate."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.evaluate import main

if __name__ == "__main__":
    startup.run(main)
