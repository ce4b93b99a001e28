"""Prepare a dataset: a raw download -> the folder that train.py reads.

    python code/prepare.py cremad --source CREMA-D --output data/cremad --split speaker
    python code/prepare.py modelnet40 --source ModelNet40 --output data/modelnet40
    python code/prepare.py --help                 # the datasets
    python code/prepare.py cremad --help          # a dataset's flags

The same command continues where it was cut short. Exit status: 0 done; 1 done, but more clips than --max_unusable
percent are unusable; 2 cannot be done; 130 interrupted.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.prepare import main

if __name__ == "__main__":
    startup.run(main)
