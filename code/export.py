"""Export the model of a trained run: `python code/export.py --help`; see mmpareto.cli.export."""

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.export import main

if __name__ == "__main__":
    startup.run(main)
