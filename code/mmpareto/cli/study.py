"""Studies finished runs: noise of their gradients, the loss around their weights, its sharpness; side by side.

    python code/study.py runs/twoview/uniform/seed0 runs/twoview/mmpareto/seed0
    python code/study.py RUN RUN --split test --directions 10 --output runs/study_test

With the selected weights of each run, in evaluation mode and float32: length and covariance of the joint and the
unimodal gradients over batches, per encoder (Wei & Hu, ICML 2024, Figure 1d); the joint loss along random
filter-normalised directions; the largest eigenvalue of its Hessian. Prints tables, and writes study.json and figures.
docs/gradient_study.md says what each figure means.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmpareto.arguments import saved_config
from mmpareto.cli.common import run_command
from mmpareto.command_line import Parser, add_allow
from mmpareto.data_folders import require_data
from mmpareto.errors import UsageError
from mmpareto.flag_values import count, count_or_zero, file_path, path_text, positive, workers
from mmpareto.runs import RunDirectory
from mmpareto.selection import SPLITS
from mmpareto.startup import program, root


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = Parser(prog=program("study"), description=__doc__)
    add = flags.add_argument
    add("runs", nargs="+", type=file_path, metavar="RUN", help="finished run directories of train.py, of one dataset")
    output = Path(root(), "runs", "study")
    add("--output", type=file_path, default=output, metavar="FOLDER", help="(default: %(default)s)")
    add("--split", choices=SPLITS, default="train", help="samples to measure on (default: train, as the paper does)")
    add("--batches", type=count, default=50, metavar="N", help="batches of the noise, two or more (default: 50)")
    add("--batch_size", type=count, metavar="N", help="(default: the first run's; the noise depends on it)")
    add("--samples", type=count, default=1024, metavar="N", help="of the loss and its curvature (default: 1024)")
    add("--directions", type=count, default=3, metavar="N", help="random directions (default: 3)")
    add("--points", type=count, default=21, metavar="N", help="points along each, an odd number (default: 21)")
    add("--distance", type=positive, default=1.0, metavar="X", help="how far, 1: as long as the weights (default: 1)")
    add(
        *("--hessian_products", "--power_iterations"),  # the second: as it was called until 2026-11
        type=count,
        default=100,
        metavar="N",
        help="products with the Hessian at most, two or more (default: 100)",
    )
    add("--seed", type=count_or_zero, default=0, metavar="N", help="of samples and directions (default: 0)")
    add("--data_root", type=path_text, metavar="FOLDER", help="folder of the prepared data (default: the runs')")
    add("--gpu_ids", metavar="ID", help="GPU to use, or cpu (default: the first one, where there is one)")
    add("--num_workers", type=workers, metavar="N", help="processes that load data (default: the runs')")
    add_allow(flags)
    return flags


def study(arguments: argparse.Namespace) -> None:
    """Study runs from the flags to the figures."""
    for refused, reason in (
        (arguments.batches < 2, f"--batches {arguments.batches}: a covariance needs two or more"),
        (arguments.points % 2 == 0 or arguments.points < 3, f"--points {arguments.points}: give 3, 5, 7, ..., so that "
         "the model itself is in the middle"),
        (arguments.hessian_products < 2, f"--hessian_products {arguments.hessian_products}: an estimate needs two"),
        (not can_hold(arguments.output), f"--output {arguments.output}: no folder that can be made or written to"),
    ):  # fmt: skip
        if refused:
            raise UsageError(reason)
    root = arguments.data_root
    configs = [saved_config(RunDirectory(path), arguments.allow, data_root=root) for path in arguments.runs]
    require_data(configs[0].data.dataset, configs[0].data.data_root)  # that of the others must be the same
    from mmpareto.api.study import study_runs  # PyTorch takes seconds to import

    study_runs(arguments)


def can_hold(folder: Path) -> bool:
    """Whether files can be written into a folder, made where it is not there; said before hours of measuring."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    return run_command(
        program("study"), lambda: study(parser().parse_args(argv)), memory=lambda: "a smaller --batch_size"
    )
