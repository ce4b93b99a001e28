"""Flags and recipes of a training run: every flag with its default and its reason."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from mmpareto import datasets
from mmpareto.datasets import DatasetError
from mmpareto.flag_values import (
    assignment_text,
    converter,
    count,
    count_or_zero,
    described_arguments,
    fraction,
    like,
    not_negative,
    path_text,
    positive,
    seed,
    shown,
    workers,
)
from mmpareto.methods import METHODS, described_options, method_options
from mmpareto.models import ENCODERS
from mmpareto.runs import LAST, PREVIOUS

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
# what a run may differ in and still be the same run: its results so far do not depend on it; see `differing`
RUN_ONLY = ("ckpt_path", "data_root", "num_workers", "gpu_ids", "checkpoint_minutes", "log_interval", "wandb")
# what --fast may switch on, as the device and the method allow
FAST = ("amp", "channels_last", "tf32", "cuda_graph")
# options of methods that have flags of their own
SHORT = ("gamma", "rescale")
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 32, "learning_rate": 0.01},
    "cgmnist": {"epochs": 20, "learning_rate": 0.01, "model": "pmr"},
}


# fields of Options that are about one start of train.py, not about the run
NOT_SAVED: dict[str, Any] = {"resume": None, "overwrite": False, "train": False, "fast": False}


class UsageError(Exception):
    """A command line that cannot be run; the message says what was found, what was expected and what to do."""


@dataclass(frozen=True)
class Options:
    """All settings of a training run, resolved. The fields are the flags, see `--help`."""

    dataset: str
    data_root: str | None
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
    lr_schedule: str
    lr_decay_step: int | None
    lr_decay_ratio: float
    warmup_epochs: int
    clip_grad: float | None
    early_stopping: int | None
    selected_on: str
    fast: bool
    amp: str | None
    channels_last: bool
    tf32: bool
    compile: bool
    cuda_graph: bool
    accumulate: int
    sync_batchnorm: bool
    random_seed: int
    gpu_ids: str | None
    ckpt_path: str
    checkpoint_minutes: float | None
    log_interval: int
    wandb: str | None
    resume: str | None
    overwrite: bool
    train: bool

    def resolved(self) -> dict[str, Any]:
        """For config.json: every setting that makes the run what it is."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_SAVED}

    def filled(self, choice: Mapping[str, Any]) -> Options:
        """With `choice`, of FAST, in the place of switches that are off; what the command line switched on stays."""
        assert choice.keys() <= set(FAST), choice
        return replace(self, **{key: value for key, value in choice.items() if not getattr(self, key)})


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

    parser, dataset_flags = _parser(dataset, own, early.method, method_defaults)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_unknown(unknown, parser, dataset)
    values = vars(given)
    dataset_options = {key: values.pop(key) for key in dataset_flags}
    assigned = values.pop("method_options")
    chosen: dict[str, Any] = dict(assigned)
    if len(chosen) < len(assigned):
        twice, _ = Counter(key for key, _ in assigned).most_common(1)[0]
        raise UsageError(f"--method_options: {twice} is given twice")
    for key in SHORT:
        value = values.pop(key)
        if value is not None:
            if key not in method_defaults:
                raise UsageError(f"--{key} means nothing to the method {early.method}; " + _takes(method_defaults))
            if key in chosen:
                raise UsageError(f"--{key} and --method_options {key}=... say the same: give one of the two")
            chosen[key] = value
    for key in chosen:
        if key not in method_defaults:
            raise UsageError(f"the method {early.method} has no option {key!r}; " + _takes(method_defaults))
    for key, text in assigned:
        try:
            chosen[key] = like(method_defaults[key])(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--method_options {key}: {error}") from error
    values["method_options"] = {
        **{key: value for key, value in method_defaults.items() if value is not inspect.Parameter.empty},
        **chosen,
    }
    values["encoder"] = dict(values["encoder"] or [])
    for encoder in filter(None, (values["model"], *values["encoder"].values())):
        if ":" not in encoder and encoder.lower() not in ENCODERS:
            raise UsageError(f"unknown encoder {encoder!r:.100}; known: {', '.join(ENCODERS)}, or package.module:Class")
    _resolve_schedule(values)
    if values["momentum"] is not None and values["optimizer"] != "SGD":
        raise UsageError(f"--momentum is SGD's; {values['optimizer']} has none")
    if values["momentum"] is None:
        values["momentum"] = PUBLISHED["momentum"]
    if values["resume"] not in (None, "auto", LAST, PREVIOUS):
        raise UsageError(f"--resume {values['resume']}: expected {LAST}, {PREVIOUS}, auto or nothing")
    if values["resume"] and values["overwrite"]:
        raise UsageError("--resume goes on with a run, --overwrite throws it away: give one of the two")
    values["dataset"] = dataset
    embedded = datasets.dataset_class(dataset).embedded
    if values["data_root"] is not None and embedded:
        raise UsageError(f"--data_root: the dataset {dataset} is embedded and reads no folder; leave the flag out")
    if values["data_root"] == "":
        raise UsageError("--data_root is empty; name a folder, or leave the flag out")
    if not embedded:
        values["data_root"] = os.path.abspath(values["data_root"] or root / "data" / dataset)
    if values["ckpt_path"] == "":
        raise UsageError("--ckpt_path is empty; name a folder, or leave the flag out")
    if values["ckpt_path"] is None:
        folder = Path(dataset.replace(":", "."), early.method.replace(":", "."), f"seed{values['random_seed']}")
        values["ckpt_path"] = str(root / "runs" / folder)
    return Options(dataset_options=dataset_options, **values)


def from_saved(values: Mapping[str, Any]) -> Options:
    """The settings of a run's config.json, each checked as its flag is; its dataset and method are imported.

    Raises UsageError that names a value which no command line gives.
    """
    expected = {field.name for field in fields(Options)} - NOT_SAVED.keys()
    try:
        method_defaults = method_options(values["method"])
        parser, dataset_flags = _parser(
            values["dataset"], datasets.options(values["dataset"]), values["method"], method_defaults
        )
    except (DatasetError, ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    actions = {action.dest: action for action in parser._actions}
    grouped: dict[str, dict[str, tuple[Any, Any]]] = {
        "dataset_options": {key: (actions[key].type, actions[key].default) for key in dataset_flags},
        "method_options": {key: (like(default), default) for key, default in method_defaults.items()},
    }
    checked: dict[str, Any] = {"encoder": values["encoder"]}
    for name, known in grouped.items():
        unknown = [key for key in values[name] if key not in known]
        if unknown:
            raise UsageError(f"{name}: unknown option {unknown[0]!r:.100}; known: {', '.join(known) or 'none'}")
        checked[name] = {key: _saved(f"{name} {key}", value, *known[key]) for key, value in values[name].items()}
    for name in expected - checked.keys():
        action = actions[name]
        value = _saved(name, values[name], bool if action.nargs == 0 else action.type or str, action.default)
        if action.choices is not None and value is not None and value not in action.choices:
            raise UsageError(f"{name} is {value!r:.100}, expected one of {', '.join(action.choices)}")
        checked[name] = value
    if checked["data_root"] is None and not datasets.dataset_class(checked["dataset"]).embedded:
        raise UsageError(f"data_root is missing; the dataset {checked['dataset']} is read from a folder")
    return Options(**checked, **NOT_SAVED)


def _saved(name: str, value: Any, kind: Any, default: Any) -> Any:
    """A value of config.json, equal to what the flag makes of it as text; None where the flag may be left out."""
    if value is None and default is None:
        return None
    if kind is bool or kind is str:
        if type(value) is not kind:
            raise UsageError(f"{name} is {value!r:.100}, expected {'true or false' if kind is bool else 'text'}")
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"{name} is {value!r:.100}, which holds a zero character")
        return value
    value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
    try:
        converted = kind(str(value).lower() if isinstance(value, bool) else shown(value))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{name}: {error!s:.300}") from error
    if converted != value or isinstance(converted, str) != isinstance(value, str):
        raise UsageError(f"{name} is {value!r:.100}, expected {type(converted).__name__}")
    return converted


def _resolve_schedule(values: dict[str, Any]) -> None:
    """--lr_decay_step alone asks for the step schedule, as in the published code; contradictions are refused."""
    if values["lr_schedule"] is None:
        values["lr_schedule"] = "constant" if values["lr_decay_step"] is None else "step"
    schedule = values["lr_schedule"]
    if schedule == "step" and values["lr_decay_step"] is None:
        raise UsageError("--lr_schedule step needs --lr_decay_step, the epochs between two decays")
    if schedule != "step" and values["lr_decay_step"] is not None:
        raise UsageError(f"--lr_decay_step belongs to --lr_schedule step; found {schedule}")
    if values["lr_decay_ratio"] is not None and schedule != "step":
        raise UsageError(f"--lr_decay_ratio needs --lr_decay_step: the schedule is {schedule}")
    values["lr_decay_ratio"] = 0.1 if values["lr_decay_ratio"] is None else values["lr_decay_ratio"]
    if values["warmup_epochs"] >= values["epochs"] > 0 and values["warmup_epochs"] > 0:
        raise UsageError(f"--warmup_epochs {values['warmup_epochs']} leaves nothing of {values['epochs']} epochs")


def differing(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The flags that are asked for with other values than a run of config.json's settings has, RUN_ONLY left out;
    data_root is among them where it names other data, see `datasets.title`.
    """
    titles = [datasets.title(str(each.get("dataset")), each.get("data_root")) for each in (saved, asked)]
    other = [key for key in asked if key not in RUN_ONLY and saved.get(key) != asked[key]]
    return other + ["data_root"] * (titles[0] != titles[1] and "dataset" not in other)


def flags_of(dataset: str) -> set[str]:
    """The names of train.py's flags, those that the dataset adds included."""
    return {field.name for field in fields(Options)} | set(SHORT) | set(datasets.options(dataset))


def _takes(options: dict[str, Any]) -> str:
    return f"it takes {', '.join(options) or 'none'}"


def _described(method: str, defaults: dict[str, Any]) -> str:
    """Help on a method's options."""
    about = described_options(method)
    options = []
    for key, value in defaults.items():
        default = "no default" if value is inspect.Parameter.empty else f"default: {shown(value)}"
        options.append(f"{key} ({default})" + (f": {about[key].rstrip('.')}" if key in about else ""))
    text = f"options of the method; of {method}: {'; '.join(options) or 'none'}; name another method to see its own"
    return text.replace("%", "%%")


def _parser(
    dataset: str, own: dict[str, Any], method: str, method_defaults: dict[str, Any]
) -> tuple[_Parser, list[str]]:
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
    group.add_argument(
        "--data_root", type=path_text, metavar="FOLDER", help="folder of the prepared data (default: data/<dataset>)"
    )
    group.add_argument(
        "--n_classes",
        type=count,
        metavar="N",
        help="refuse to run on data with another number of classes (default: whatever the data have)",
    )
    group.add_argument(
        "--batch_size",
        type=count,
        default=recipe["batch_size"],
        metavar="N",
        help="samples per step, over all processes and micro-batches (default: %(default)s; published for CREMA-D: 64)",
    )
    group.add_argument(
        "--num_workers",
        type=workers,
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
            help=(described.get(key, "") + ("" if default is None else f" (default: {shown(default)})"))
            .replace("%", "%%")
            .strip(),
        )

    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        default="mmpareto",
        metavar="NAME",
        help="; ".join(f"{name}: {about}" for name, about in METHODS.items() if "TorchJD" not in about)
        + "; TorchJD's weightings: "
        + ", ".join(name for name, about in METHODS.items() if "TorchJD" in about)
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
        type=assignment_text,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=_described(method, method_defaults),
    )
    group.add_argument(
        "--diagnose_interval",
        type=count_or_zero,
        default=10,
        metavar="N",
        help="methods with one backward pass see no conflict; every N-th step they take a second one to measure it; 0: "
        "never (default: %(default)s; methods with two, such as mmpareto, measure every step)",
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
        help="encoder of one modality; goes before --model (default: none has its own)",
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--epochs",
        type=count,
        default=recipe["epochs"],
        metavar="N",
        help="passes over the training data (default: %(default)s; published for CREMA-D: 50)",
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
        help="of the optimiser, for encoders and heads alike (default: %(default)s; published for CREMA-D: 0.002)",
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
        help="of all parameters (default: %(default)s, as published)",
    )
    group.add_argument(
        "--lr_schedule",
        choices=("constant", "step", "cosine"),
        help="of the learning rate, changed once an epoch (default: constant, which is what the published runs really "
        "did; step where --lr_decay_step is given)",
    )
    group.add_argument(
        "--lr_decay_step",
        type=count,
        metavar="N",
        help="multiply the learning rate by --lr_decay_ratio every N epochs (default: never, as in the published runs)",
    )
    group.add_argument(
        "--lr_decay_ratio", type=positive, metavar="X", help="of --lr_decay_step (default: 0.1, as published)"
    )
    group.add_argument(
        "--warmup_epochs",
        type=count_or_zero,
        default=0,
        metavar="N",
        help="epochs in which the learning rate rises linearly, before the schedule (default: 0, as published)",
    )
    group.add_argument(
        "--early_stopping",
        type=count,
        metavar="N",
        help="end after N epochs in a row without a better joint accuracy on the selecting split (default: never)",
    )
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

    group = parser.add_argument_group(
        "speed", "each agrees with the plain path to its type's precision; code/benchmark.py says what they bring"
    )
    group.add_argument(
        "--fast", action="store_true", help="switch on what is best and safe on this device, and say what"
    )
    group.add_argument(
        "--amp",
        choices=("bf16", "fp16"),
        help="automatic mixed precision; fp16 scales the losses and leaves out steps that overflow (default: float32)",
    )
    group.add_argument("--channels_last", action="store_true", help="memory format of convolutions (default: off)")
    group.add_argument(
        "--tf32",
        action="store_true",
        help="19-bit products in float32 matrix work on NVIDIA GPUs (default: off, for convolutions too)",
    )
    group.add_argument("--compile", action="store_true", help="torch.compile the model (default: off; a minute once)")
    group.add_argument(
        "--cuda_graph", action="store_true", help="capture the whole step in a CUDA graph (default: off)"
    )
    group.add_argument(
        "--accumulate",
        type=count,
        default=1,
        metavar="N",
        help="cut each batch into N micro-batches, for want of memory; gradients are summed first and integrated once, "
        "batch norm sees the micro-batches (default: 1)",
    )
    group.add_argument(
        "--sync_batchnorm",
        action="store_true",
        help="batch norm over the samples of all processes (default: off: each over its own)",
    )

    group = parser.add_argument_group("run")
    group.add_argument(
        "--random_seed",
        type=seed,
        default=0,
        metavar="N",
        help="of weights, order and augmentation (default: 0, as published)",
    )
    group.add_argument(
        "--gpu_ids",
        metavar="ID",
        help="GPU to use, or one for each process, such as 0,1, or cpu (default: the first ones, where there are some)",
    )
    group.add_argument(
        "--ckpt_path",
        type=path_text,
        metavar="FOLDER",
        help="the run directory (default: runs/<dataset>/<method>/seed<random_seed>)",
    )
    group.add_argument(
        "--checkpoint_minutes",
        type=positive,
        metavar="X",
        help="write last.pt that often within an epoch too (default: after each epoch)",
    )
    group.add_argument(
        "--log_interval",
        type=count,
        default=50,
        metavar="N",
        help="steps between two points of the TensorBoard curves; only then the device is waited for (default: 50)",
    )
    group.add_argument(
        "--wandb",
        nargs="?",
        const="mmpareto",
        metavar="PROJECT",
        help="log to Weights & Biases as well; WANDB_MODE=offline keeps it on this machine (default: off)",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const=LAST,
        metavar="CHECKPOINT",
        help=f"go on with the run that the run directory holds: from {LAST} (default), from {PREVIOUS} where that is "
        f"damaged, or auto: from {LAST} where it is there, else from the beginning",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="throw away the run that the run directory holds (default: refuse)"
    )
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
