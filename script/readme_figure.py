"""Draws the figure of README.md: test accuracy of each head under each method, from finished runs.

PYTHONPATH=code python script/readme_figure.py runs/twoview docs/figures/twoview_methods.svg
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

import mmpareto

# in the order of README's table
METHODS = ["one_joint", "pareto", "uniform", "uniform_gamma", "mmpareto", "unimodal", "ensemble"]
HEADS = {  # name, marker and colour
    "rotated": ("rotated alone", "s", "#0072b2"),
    "noisy": ("noisy alone", "D", "#999999"),
    "joint": ("joint", "o", "#d55e00"),
}


def main(runs: str, file: str) -> None:
    """Draw the runs below a folder into a file."""
    accuracies = mmpareto.compare(runs).runs
    seeds = accuracies["seed"].nunique()
    plt.rcParams["svg.hashsalt"] = "readme"  # the same runs give the same bytes
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    places = np.arange(len(METHODS))
    for head, (label, marker, colour) in HEADS.items():
        scores = accuracies.groupby("method")[head].agg(["mean", "std"]).loc[METHODS]
        axes.errorbar(scores["mean"], places, xerr=scores["std"], fmt=marker, color=colour, label=label)
    axes.set_yticks(places, METHODS)
    axes.invert_yaxis()
    axes.set(xlabel=f"test accuracy in percent, mean and standard deviation of {seeds} seeds", ylabel="")
    axes.grid(alpha=0.3)
    axes.legend(title="", loc="lower left")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
