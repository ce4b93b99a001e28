"""Flags and recipes of a training run: every flag with its default and its reason."""

from __future__ import annotations

import argparse
import difflib
import inspect
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from mmpareto import datasets
from mmpareto.datasets import DatasetError
from mmpareto.flag_values import (
    assignment,
    assignment_text,
    converter,
    count,
    count_or_zero,
    described_arguments,
    fraction,
    not_negative,
    positive,
    shown,
)
from mmpareto.integration import METHODS, method_options
from mmpareto.models import ENCODERS

OPTIMIZERS = ("SGD", "Adam", "AdamW")

# Defaults where the dataset has no recipe of its own: what the published CREMA-D runs did. Their step schedule was
# built but never stepped, so that their learning rate was constant.
PUBLISHED: dict[str, Any] = {
    "batch_size": 64,
    "epochs": 50,
    "optimizer": "SGD",
    "learning_rate": 0.002,
    "momentum": 0.9,
    "weight_decay": 1e-4,
}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 32, "learning_rate": 0.01},
    "cgmnist": {"epochs": 20, "learning_rate": 0.01, "model": "pmr"},
}


class UsageError(Exception):
    """A command line that cannot be run; the message says what was found, what was expected and what to do."""


@dataclass(frozen=True)
class Options:
    """All settings of a training run, resolved. The fields are the flags, see `--help`."""

    dataset: str
    data_root: str
    dataset_options: dict[str, Any]
    n_classes: int | None
    batch_size: int
    num_workers: int | None
    method: str
    method_options: dict[str, Any]
    diagnose_interval: int
    model: str | None
    encoder: dict[str, str]
    epochs: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    lr_decay_step: int | None
    lr_decay_ratio: float
    clip_grad: float | None
    selected_on: str
    random_seed: int
    gpu_ids: str | None
    ckpt_path: str
    resume: bool
    overwrite: bool
    train: bool

    def resolved(self) -> dict[str, Any]:
        """For config.json: every setting that makes the run what it is."""
        return {key: value for key, value in asdict(self).items() if key not in ("resume", "overwrite", "train")}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(argv: Sequence[str], root: Path) -> Options:
    """The settings that a command line asks for, with the dataset's recipe for what it leaves open.

    root  folder under which data/ and runs/ are looked for where the command line names no other.

    Raises UsageError for an unknown flag or value (naming the known ones), SystemExit after --help.
    """
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataset", default="digits")
    first.add_argument("--method", default="mmpareto")
    early, _ = first.parse_known_args(argv)
    try:
        dataset = datasets.canonical(early.dataset)
        own = datasets.options(dataset)
        method_defaults = method_options(early.method)
    except (DatasetError, ValueError, ImportError) as error:
        raise UsageError(str(error)) from error

    parser, dataset_flags = _parser(dataset, own, method_defaults)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_unknown(unknown, parser, dataset)
    values = vars(given)
    dataset_options = {key: values.pop(key) for key in dataset_flags}
    chosen = dict(values.pop("method_options") or [])
    for key in ("gamma", "rescale"):
        value = values.pop(key)
        if value is not None:
            if key not in method_defaults:
                raise UsageError(f"--{key} means nothing to the method {early.method}; " + _takes(method_defaults))
            chosen[key] = value
    for key in chosen:
        if key not in method_defaults:
            raise UsageError(f"the method {early.method} has no option {key!r}; " + _takes(method_defaults))
    values["method_options"] = {
        **{key: value for key, value in method_defaults.items() if value is not inspect.Parameter.empty},
        **chosen,
    }
    values["encoder"] = dict(values["encoder"] or [])
    if values["lr_decay_ratio"] is not None and values["lr_decay_step"] is None:
        raise UsageError("--lr_decay_ratio needs --lr_decay_step: without it the learning rate is constant")
    values["lr_decay_ratio"] = 0.1 if values["lr_decay_ratio"] is None else values["lr_decay_ratio"]
    if values["momentum"] is not None and values["optimizer"] != "SGD":
        raise UsageError(f"--momentum is SGD's; {values['optimizer']} has none")
    if values["momentum"] is None:
        values["momentum"] = PUBLISHED["momentum"]
    if values["resume"] and values["overwrite"]:
        raise UsageError("--resume goes on with a run, --overwrite throws it away: give one of the two")
    values["dataset"] = dataset
    if values["data_root"] is not None and datasets.dataset_class(dataset).embedded:
        raise UsageError(f"--data_root: the dataset {dataset} is embedded and reads no folder; leave the flag out")
    if values["data_root"] is None:
        values["data_root"] = str(root / "data" / dataset)
    if values["ckpt_path"] is None:
        folder = Path(dataset.replace(":", "."), early.method.replace(":", "."), f"seed{values['random_seed']}")
        values["ckpt_path"] = str(root / "runs" / folder)
    return Options(dataset_options=dataset_options, **values)


def _takes(options: dict[str, Any]) -> str:
    return f"it takes {', '.join(options) or 'none'}"


def _parser(dataset: str, own: dict[str, Any], method_defaults: dict[str, Any]) -> tuple[_Parser, list[str]]:
    recipe = PUBLISHED | RECIPES.get(dataset, {})
    parser = _Parser(
        prog="train.py",
        description="Trains a multimodal classifier with a joint loss and one unimodal loss per modality; --method "
        "says how their gradients are integrated inside the encoders. Defaults below are those of the dataset "
        f"{dataset}; name another with --dataset to see its own.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
        allow_abbrev=False,
    )

    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default="digits",
        metavar="NAME",
        help=f"{', '.join(datasets.DATASETS)}, or package.module:Class (default: digits, which needs no download)",
    )
    group.add_argument("--data_root", metavar="FOLDER", help="folder of the prepared data (default: data/<dataset>)")
    group.add_argument(
        "--n_classes", type=count, metavar="N", help="refuse to run on data with another number of classes"
    )
    group.add_argument(
        "--batch_size",
        type=count,
        default=recipe["batch_size"],
        metavar="N",
        help="samples per step (default: %(default)s; published for CREMA-D: 64)",
    )
    group.add_argument(
        "--num_workers",
        type=count_or_zero,
        metavar="N",
        help="processes that load data (default: 0 for data in memory, else the cores minus one, at most 8)",
    )

    group = parser.add_argument_group(f"the dataset {dataset}")
    described = described_arguments(datasets.dataset_class(dataset))
    hints = typing.get_type_hints(datasets.dataset_class(dataset).__init__)
    for key, default in own.items():
        group.add_argument(
            f"--{key}",
            default=default,
            metavar=key.upper(),
            type=converter(hints.get(key, str), default),
            help=f"{described.get(key, '')} (default: {shown(default)})".replace("%", "%%").strip(),
        )

    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        default="mmpareto",
        metavar="NAME",
        help="; ".join(f"{name}: {about}" for name, (_, about) in METHODS.items() if "TorchJD" not in about)
        + "; TorchJD's weightings: "
        + ", ".join(name for name, (_, about) in METHODS.items() if "TorchJD" in about)
        + "; or package.module:Class (default: mmpareto)",
    )
    group.add_argument(
        "--gamma",
        type=positive,
        metavar="X",
        help="factor of the encoders' gradients, for mmpareto and uniform_gamma (default: 1.5, as published)",
    )
    group.add_argument(
        "--rescale",
        choices=("tensor", "encoder"),
        help="mmpareto: restore the magnitude of every parameter tensor, as the published code does, or of the "
        "encoder as a whole, as the paper's algorithm reads (default: tensor)",
    )
    group.add_argument(
        "--method_options",
        type=assignment,
        nargs="+",
        metavar="KEY=VALUE",
        help="options of other methods, such as c=0.5 for cagrad; this method " + _takes(method_defaults),
    )
    group.add_argument(
        "--diagnose_interval",
        type=count_or_zero,
        default=10,
        metavar="N",
        help="one_joint, uniform and uniform_gamma need one backward pass and see no conflict; every N-th step they "
        "take a second one to measure it; 0: never (default: %(default)s; the other methods measure every step)",
    )

    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="ENCODER",
        default=recipe.get("model"),
        help=f"encoder of all modalities: {', '.join(ENCODERS)}, or package.module:Class (default: "
        + (recipe.get("model") or "by the kind of the modality; resnet18, as published, for media")
        + ")",
    )
    group.add_argument(
        "--encoder",
        type=assignment_text,
        nargs="+",
        metavar="MODALITY=ENCODER",
        help="encoder of one modality; goes before --model",
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--epochs",
        type=count,
        default=recipe["epochs"],
        metavar="N",
        help="passes over the training data (default: %(default)s)",
    )
    group.add_argument(
        "--optimizer",
        type=_optimizer,
        default=recipe["optimizer"],
        metavar="NAME",
        help=f"{', '.join(OPTIMIZERS)} (default: %(default)s, as published)",
    )
    group.add_argument(
        "--learning_rate",
        type=positive,
        default=recipe["learning_rate"],
        metavar="X",
        help="(default: %(default)s; published for CREMA-D: 0.002)",
    )
    group.add_argument(
        "--momentum",
        type=fraction,
        metavar="X",
        help=f"of SGD (default: {PUBLISHED['momentum']}, as published)",
    )
    group.add_argument(
        "--weight_decay",
        type=not_negative,
        default=recipe["weight_decay"],
        metavar="X",
        help="(default: %(default)s, as published)",
    )
    group.add_argument(
        "--lr_decay_step",
        type=count,
        metavar="N",
        help="multiply the learning rate by --lr_decay_ratio every N epochs (default: never, which is what the "
        "published runs really did)",
    )
    group.add_argument("--lr_decay_ratio", type=positive, metavar="X", help="(default: 0.1)")
    group.add_argument(
        "--clip_grad",
        type=positive,
        nargs="?",
        const=1.0,
        metavar="NORM",
        help="clip the integrated gradient to this norm; 1 where no number follows (default: no clipping)",
    )
    group.add_argument(
        "--selected_on",
        choices=("val", "test"),
        default="val",
        help="split whose best joint accuracy selects the checkpoint; test is the published protocol, it flatters and "
        "is marked in the results (default: val)",
    )

    group = parser.add_argument_group("run")
    group.add_argument("--random_seed", type=count_or_zero, default=0, metavar="N", help="(default: 0, as published)")
    group.add_argument("--gpu_ids", metavar="ID", help="GPU to use, or cpu (default: the first GPU where there is one)")
    group.add_argument(
        "--ckpt_path", metavar="FOLDER", help="the run directory (default: runs/<dataset>/<method>/seed<random_seed>)"
    )
    group.add_argument("--resume", action="store_true", help="go on with the run that the run directory holds")
    group.add_argument("--overwrite", action="store_true", help="throw away the run that the run directory holds")
    group.add_argument(
        "--train",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="--no-train scores the selected checkpoint of a finished run once more (default: --train)",
    )
    return parser, list(own)


def _refuse_unknown(unknown: Sequence[str], parser: argparse.ArgumentParser, dataset: str) -> NoReturn:
    flag = unknown[0].partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"unknown flag {flag} for the dataset {dataset}; {hint}known: {', '.join(sorted(known))}")


def _optimizer(text: str) -> str:
    for name in OPTIMIZERS:
        if text.lower() == name.lower():
            return name
    raise argparse.ArgumentTypeError(f"unknown optimizer {text!r}; known: {', '.join(OPTIMIZERS)}")
