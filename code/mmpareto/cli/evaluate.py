"""Score a trained run on any split: metrics of each head, linear probes, missing modalities, contributions.

    python code/evaluate.py runs/twoview/mmpareto/seed0
    python code/evaluate.py runs/twoview/mmpareto/seed0 --split val --missing mean --no-probe

Prints tables, and leaves evaluation_<split>.json and figures in the run directory. docs/evaluation.md says what each
figure means.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from mmpareto import runs
from mmpareto.arguments import saved_config
from mmpareto.cli.common import run_command
from mmpareto.command_line import Parser, add_allow
from mmpareto.data_folders import require_data
from mmpareto.escape import counted
from mmpareto.flag_values import count, file_path, fraction, path_text, workers
from mmpareto.reporting.evaluation_tables import evaluation_json, evaluation_text
from mmpareto.runs import RunDirectory, RunError
from mmpareto.selection import RATES, SELECTED_ON_TEST, SPLITS
from mmpareto.startup import program
from mmpareto.writing import write_together


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = Parser(prog=program("evaluate"), description=__doc__)
    add = flags.add_argument
    add("run", type=file_path, metavar="RUN", help="a run directory of train.py")
    add("--split", choices=SPLITS, default="test", help="(default: test)")
    add("--data_root", type=path_text, metavar="FOLDER", help="folder of the prepared data (default: the run's)")
    add("--gpu_ids", metavar="ID", help="GPU to use, or cpu, or mps (default: the first one, where there is one)")
    add("--batch_size", type=count, metavar="N", help="(default: the run's)")
    add("--num_workers", type=workers, metavar="N", help="processes that load data (default: the run's)")
    add("--probe", action=argparse.BooleanOptionalAction, default=True, help="fit linear probes (default: --probe)")
    add(
        "--missing",
        choices=("zero", "mean"),
        default="zero",
        help="what stands in the place of a missing modality: zero: what the model was built with (zero features, for "
        "most fusions); mean: its mean features over the training split (default: zero)",
    )
    add(
        "--missing_rates",
        type=fraction,
        nargs="*",
        default=list(RATES),
        metavar="RATE",
        help="also drop each modality in these fractions of the samples (default: 0.25 0.5 0.75; the flag without a "
        "number: in none)",
    )
    add_allow(flags)
    return flags


def evaluate(arguments: argparse.Namespace) -> None:
    """Score a run from its flags to its figures."""
    # the run
    run, split = RunDirectory(arguments.run), arguments.split
    changed = {key: getattr(arguments, key) for key in ("data_root", "batch_size", "num_workers")}
    config = saved_config(run, arguments.allow, **changed)
    if not os.access(run.path, os.W_OK | os.X_OK):
        raise RunError(f"cannot write to {run.path}, where the evaluation goes: copy the run, and give the copy's path")
    require_data(config.data.dataset, config.data.data_root)
    from mmpareto.api.evaluation import evaluation_of  # PyTorch takes seconds to import
    from mmpareto.training.setup import choose_device

    evaluation, classes = evaluation_of(
        run,
        config,
        split,
        choose_device(arguments.gpu_ids),
        probe=arguments.probe,
        missing=arguments.missing,
        rates=arguments.missing_rates,
    )

    # what is left behind
    write(run, evaluation, classes)
    print("{dataset}, {method}, seed {seed}: epoch {selected_epoch}, ".format(**evaluation), end="")
    samples = counted(evaluation["samples"], "sample")
    print(f"selected on {evaluation['selected_on']}; {samples} of {evaluation['split']}\n")
    print(evaluation_text(evaluation))
    for note in evaluation["notes"]:
        print(f"\nNote: {note}")
    print(f"\nwritten: {run / runs.EVALUATION.format(split)} and figures beside it")


def write(run: RunDirectory, evaluation: dict[str, Any], classes: list[str]) -> None:
    """evaluation_<split>.json and the figures."""
    from mmpareto.reporting import evaluation_figures as made  # matplotlib takes a second to load
    from mmpareto.reporting.rendering import png

    split, joint = evaluation["split"], evaluation["joint"]
    mark = f", {SELECTED_ON_TEST}" if evaluation["selected_on"] == "test" else ""
    title = f"joint head, {split}: {joint['accuracy']:.1f} %{mark}"
    heads = {"joint": joint} | {f"{name} alone": value for name, value in evaluation["unimodal"].items()}
    figures = {
        "confusion": made.confusion_figure(joint["confusion"], classes, title),
        "subsets": made.subset_figure(
            evaluation["subsets"],
            evaluation["shapley"]["contributions"],
            f"joint head, {split}; missing: {evaluation['missing']}{mark}",
        ),
        "reliability": made.reliability_figure(heads),
        "missing": made.missing_figure(evaluation, f"joint head, {split}{mark}"),
    }
    content = {runs.EVALUATION.format(split): evaluation_json(evaluation)}
    content |= {f"evaluation_{split}_{name}.png": png(figure) for name, figure in figures.items()}
    write_together(run.path, content)


def main(argv: Sequence[str]) -> int:
    """Run a command line; the result is the exit status."""
    return run_command(
        program("evaluate"),
        lambda: evaluate(parser().parse_args(argv)),
        memory=lambda: "a smaller --batch_size, or --no-probe",
    )
