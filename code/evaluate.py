"""Scores a trained run on any split: metrics of each head, linear probes, missing modalities, contributions.

    python code/evaluate.py runs/digits/mmpareto/seed0
    python code/evaluate.py runs/digits/mmpareto/seed0 --split val --missing mean --no-probe

Prints tables, and leaves evaluation_<split>.json and figures in the run directory. docs/evaluation.md says what each
figure means.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.evaluate import main

if __name__ == "__main__":
    startup.run(main)
