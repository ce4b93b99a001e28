"""Runs a grid of training runs: methods x datasets x seeds x varied flags, several at a time, and compares them.

    python code/experiment.py --methods mmpareto uniform one_joint --seeds 0 1 2
    python code/experiment.py --methods mmpareto uniform --vary gamma=1,1.5,2 --epochs 10
    python code/experiment.py --methods mmpareto --datasets cremad --launcher slurm --partition gpu

Flags that are not listed below are train.py's and go to every run. Every command line is checked before the first one
is run. Runs are in OUTPUT/<dataset>/<method>[/<flag>=<value>...]/seed<k>, each with its output in train.log. The same
command again does only what is missing: finished runs are passed over, unfinished ones resumed. Exit status: 0 done;
1 some runs failed; 2 cannot be done; 130 interrupted.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.experiment import main

if __name__ == "__main__":
    startup.run(main)
