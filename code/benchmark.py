"""What a training step costs: each method over the plain sum of the losses, and the published procedure over ours.

    python code/benchmark.py --quick                    # within a minute on a CPU
    python code/benchmark.py --output benchmark.json    # within five
    python code/benchmark.py --methods ogm pmr agm      # methods of train.py against the plain sum
    python code/benchmark.py --loader                   # samples a second of the loader instead, within one
    python code/benchmark.py --engine                   # what an epoch costs beyond loading and steps, within one

Times are medians over repetitions that take turns, so that a machine that slows down slows all of them; a ratio is
formed within each repetition, and its quartiles are given. Each table is measured in a process of its own. Losses,
forward pass, backward passes and optimiser are in; loading is not. On a GPU the shapes are those of CREMA-D at a batch
of 64, on a CPU they are scaled down.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.benchmark import main

if __name__ == "__main__":
    startup.run(main)
