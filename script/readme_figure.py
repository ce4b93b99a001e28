"""Draws the figure of README.md: test accuracy of each head under each method, from finished runs.

PYTHONPATH=code python script/readme_figure.py runs/twoview docs/figures/twoview_methods.svg
"""

import sys

import matplotlib.pyplot as plt
import seaborn as sns

import mmpareto

# in the order of README's table
METHODS = ["one_joint", "pareto", "uniform", "uniform_gamma", "mmpareto", "unimodal", "ensemble"]
HEADS = {"rotated": "rotated alone", "noisy": "noisy alone", "joint": "joint"}


def main(runs: str, file: str) -> None:
    """Draw the runs below a folder into a file."""
    accuracies = mmpareto.compare(runs).runs.melt(["method", "seed"], list(HEADS), "head", "accuracy")
    accuracies["head"] = accuracies["head"].map(HEADS)
    seeds = accuracies["seed"].nunique()
    plt.rcParams["svg.hashsalt"] = "readme"  # the same runs give the same bytes
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    sns.pointplot(
        accuracies,
        x="accuracy",
        y="method",
        hue="head",
        order=METHODS,
        errorbar="sd",
        linestyle="none",
        markers=["s", "D", "o"],
        palette=["#0072b2", "#999999", "#d55e00"],
        ax=axes,
    )
    axes.set(xlabel=f"test accuracy in percent, mean and standard deviation of {seeds} seeds", ylabel="")
    axes.grid(alpha=0.3)
    axes.legend(title="", loc="lower left")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
