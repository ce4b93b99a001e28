"""Train a multimodal classifier: `python code/train.py --help`; see mmpareto.cli.train."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.train import main

if __name__ == "__main__":
    startup.run(main)
