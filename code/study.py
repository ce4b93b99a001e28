"""Studies finished runs: noise of their gradients, the loss around their weights, its sharpness; side by side.

    python code/study.py runs/digits/uniform/seed0 runs/digits/mmpareto/seed0
    python code/study.py RUN RUN --split test --directions 10 --output runs/study_test

With the selected weights of each run, in evaluation mode and float32: length and covariance of the joint and the
unimodal gradients over batches, per encoder (Wei & Hu, ICML 2024, Figure 1d); the joint loss along random
filter-normalised directions; the largest eigenvalue of its Hessian. Prints tables, and writes study.json and figures.
docs/gradient_study.md says what each figure means.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment

# isort: split
from mmpareto.cli.study import main

if __name__ == "__main__":
    startup.run(main)
