"""Classify new samples: `python code/predict.py --help`; see mmpareto.cli.predict."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.predict import main

if __name__ == "__main__":
    startup.run(main)
