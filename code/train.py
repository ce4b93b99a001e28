"""Trains a multimodal classifier on a joint and unimodal losses by the chosen method.

    python code/train.py                                            # MMPareto on the embedded digits
    python code/train.py --method uniform --random_seed 1
    python code/train.py --dataset cremad --data_root data/cremad --batch_size 64
    torchrun --nproc_per_node 4 code/train.py --dataset cremad      # a process per GPU; see script/distributed.sh
    python code/train.py --help                                     # every flag, its default and why

One run, top to bottom: flags, data, method, model, optimiser, epochs, selected checkpoint, test once, results.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.train import main

if __name__ == "__main__":
    startup.run(main)
