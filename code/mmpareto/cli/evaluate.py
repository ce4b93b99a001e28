"""Scores a trained run on any split: metrics of each head, linear probes, missing modalities, contributions.

    python code/evaluate.py runs/twoview/mmpareto/seed0
    python code/evaluate.py runs/twoview/mmpareto/seed0 --split val --missing mean --no-probe

Prints tables, and leaves evaluation_<split>.json and figures in the run directory. docs/evaluation.md says what each
figure means.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from mmpareto import runs
from mmpareto.arguments import Parser, add_allow
from mmpareto.cli.common import run_command
from mmpareto.datasets import SPLITS, Batch, MultimodalDataset, Split
from mmpareto.errors import UsageError
from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.all_heads import all_heads
from mmpareto.evaluation.collected import Collected, collect
from mmpareto.evaluation.metrics import head_metrics
from mmpareto.evaluation.missing import Case, accuracies_by_passes, accuracies_from_features, rate_cases, subset_cases
from mmpareto.evaluation.probe import probes
from mmpareto.evaluation.shapley import imbalance, shapley
from mmpareto.flag_values import count, file_path, fraction, path_text, workers
from mmpareto.reporting.evaluation_tables import evaluation_text
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.restore import same_data, saved_config, trained_model
from mmpareto.training.setup import autocast_type, choose_device, make_loader

T = TypeVar("T")
SEED = 0  # of the samples that --missing_rates drops: the same for all runs


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = Parser(prog="evaluate.py", description=__doc__)
    add = flags.add_argument
    add("run", type=file_path, metavar="RUN", help="a run directory of train.py")
    add("--split", choices=SPLITS, default="test", help="(default: test)")
    add("--data_root", type=path_text, metavar="FOLDER", help="folder of the prepared data (default: the run's)")
    add("--gpu_ids", metavar="ID", help="GPU to use, or cpu (default: the first one, where there is one)")
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
        default=[0.25, 0.5, 0.75],
        metavar="RATE",
        help="also drop each modality in these fractions of the samples (default: 0.25 0.5 0.75; none: no number)",
    )
    add_allow(flags)
    return flags


def evaluate(arguments: argparse.Namespace) -> None:
    """Scores a run from its flags to its figures."""
    # the run
    run, split = RunDirectory(arguments.run), arguments.split
    changed = {key: getattr(arguments, key) for key in ("data_root", "batch_size", "num_workers")}
    config = saved_config(run, arguments.allow, **changed)
    if not os.access(run.path, os.W_OK | os.X_OK):
        raise RunError(f"cannot write to {run.path}, where the evaluation goes: copy the run, and give the copy's path")
    device = choose_device(arguments.gpu_ids)
    amp = autocast_type(config.engine)
    data = same_data(run, config, split)
    if arguments.data_root is not None and not data.reads_folder(config.data.dataset_options):
        raise UsageError(f"--data_root: the dataset {config.data.dataset} is embedded and reads no folder")
    model, epoch = trained_model(run, config, data, device)
    if arguments.missing == "mean" and not model.late:
        raise UsageError(
            f"--missing mean replaces features, and the joint head of {config.model.architecture} sees more than "
            "features; leave it out: the architecture has its own stand-in"
        )
    modalities = list(data.modalities)

    # encoders, once per split
    def over(dataset: MultimodalDataset, work: Callable[[Iterable[Batch]], T]) -> T:
        dataset.augmenting = False
        loader = make_loader(dataset, config.data, config.run.random_seed, device)
        try:
            return work(loader.epoch(0))
        finally:
            loader.close()

    def collected(name: Split, dataset: MultimodalDataset) -> Collected:
        try:
            return over(dataset, lambda batches: collect(model, batches, dataset.modalities, device, amp))
        except EvaluationError as error:
            raise EvaluationError(f"{run.path}, {name}: {error}") from error

    passes = {split: collected(split, data)}
    needed: dict[Split, bool] = {"train": arguments.probe or arguments.missing == "mean", "val": arguments.probe}
    for other, wanted in needed.items():
        if wanted and other not in passes:
            passes[other] = collected(other, same_data(run, config, other))
    scored = passes[split]

    # scores
    heads = {}
    for name, logits in scored.logits().items():
        having = scored.having([name])
        if not having.any():
            raise EvaluationError(f"{run.path}: no sample of {split} has the modality {name}")
        heads[name] = head_metrics(logits[having], scored.label[having], data.classes)
    by_subset, by_rate = subset_cases(scored.present), rate_cases(scored.present, arguments.missing_rates, SEED)
    cases: dict[Any, Case] = {**by_subset, **by_rate}
    if model.late:
        accuracies = accuracies_from_features(
            cases,
            model.fusion,
            scored.features,
            scored.label,
            device,
            batch_size=config.data.batch_size,
            instead=means(passes["train"]) if arguments.missing == "mean" else None,
            amp=amp,
        )
    else:
        accuracies = over(
            data, lambda batches: accuracies_by_passes(cases, model, batches, data.modalities, device, amp)
        )
    contributions = shapley(modalities, {present: accuracies[present] for present in by_subset})
    absent = [row["class"] for row in heads["joint"]["per_class"] if not row["samples"]]
    evaluation = {
        "dataset": config.data.dataset,
        "method": config.method.method,
        "seed": config.run.random_seed,
        "split": split,
        "samples": len(scored.label),
        "selected_on": config.optim.selected_on,
        "selected_epoch": epoch,
        "finished": run.finished,
        "missing": arguments.missing,
        "notes": notes(split, config.optim.selected_on, run.finished, epoch, absent, arguments.probe),
        "joint": heads["joint"],
        "unimodal": {name: heads[name] for name in modalities},
        "all_heads": {
            rule: head_metrics(logs, scored.label, data.classes)
            for rule, logs in all_heads(scored.joint, scored.unimodal, scored.present).items()
        },
        "probe": probes(passes["train"], passes["val"], scored) if arguments.probe else None,
        "subsets": [
            {"present": [name for name in modalities if name in present], "accuracy": accuracies[present]}
            for present in by_subset
        ],
        "missing_rates": [
            {"modality": modality, "rate": rate, "accuracy": accuracies[modality, rate]} for modality, rate in by_rate
        ],
        "shapley": {
            "contributions": contributions,
            "sum": sum(contributions.values()),
            "imbalance": imbalance(contributions),
        },
    }

    # what is left behind
    write(run, evaluation, data.classes)
    print(f"{config.data.dataset}, {config.method.method}, seed {config.run.random_seed}: epoch {epoch}, ", end="")
    print(f"selected on {config.optim.selected_on}; {len(scored.label)} samples of {split}\n")
    print(evaluation_text(evaluation))
    for note in evaluation["notes"]:
        print(f"\nNote: {note}")
    print(f"\nwritten: {run / runs.EVALUATION.format(split)} and figures beside it")


def means(train: Collected) -> dict[str, torch.Tensor]:
    """{modality: mean of its features [D]} over the training samples that have it."""
    return {name: value[train.present[name]].mean(0) for name, value in train.features.items()}


def notes(split: str, selected_on: str, finished: bool, epoch: int, absent: list[str], probed: bool) -> list[str]:
    """What a reader of the figures must know."""
    said = []
    if selected_on == "test":
        said.append("SELECTED ON TEST, the published protocol: this run's test accuracies flatter the method")
    elif split == selected_on:
        said.append(f"the checkpoint was selected on this split, {split}: the figures flatter the method")
    if split == "train":
        said.append("the model was trained on this split" + (", and so were the probes" if probed else ""))
    if split == "val" and probed:
        said.append("the probes' C was chosen on this split")
    if not finished:
        said.append(f"the run is not finished; its best epoch so far, {epoch}, was scored")
    if absent:
        shown = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        said.append(f"{split} has no samples of {len(absent)} class(es), left out of means over classes: {shown}")
    return said


def evaluation_json(evaluation: dict[str, Any]) -> bytes:
    """The content of evaluation_<split>.json.

    On one line: with a line for each cell, confusion matrices of 1,000 classes are larger than `json_files` reads.
    """
    return (json.dumps(evaluation, separators=(",", ":"), default=str) + "\n").encode()


def write(run: RunDirectory, evaluation: dict[str, Any], classes: list[str]) -> None:
    """evaluation_<split>.json and the figures."""
    from mmpareto.reporting import evaluation_figures as made  # matplotlib takes a second to load
    from mmpareto.reporting.rendering import png, write_together

    split, joint = evaluation["split"], evaluation["joint"]
    mark = ", SELECTED ON TEST" if evaluation["selected_on"] == "test" else ""
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
        "evaluate.py",
        lambda: evaluate(parser().parse_args(argv)),
        interrupted="interrupted; nothing half-written is left behind",
        memory=lambda: "a smaller --batch_size, or --no-probe",
    )
