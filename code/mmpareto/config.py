"""The settings of a training run: six small dataclasses. Each field is one flag of train.py, described here only.

A section is a heading of `train.py --help` and of config.yaml. A function takes the section that it needs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from mmpareto import config_files
from mmpareto.data_folders import dataset_title
from mmpareto.flag_values import (
    assigned_fraction,
    assignment_text,
    count,
    count_or_zero,
    fraction,
    not_negative,
    one_of,
    option_text,
    path_text,
    positive,
    seed,
    workers,
)
from mmpareto.registries import ARCHITECTURES, DATASETS, FUSIONS, METHODS
from mmpareto.registry import REQUIRED
from mmpareto.runs import LAST, PREVIOUS

DEFAULT_DATASET = "twoview"
OPTIMIZERS = ("SGD", "Adam", "AdamW")


def flag(default: Any, help: str, *, unset: str = "none", saved: bool = True, **argument: Any) -> Any:
    """A field that is a flag; a value of None that the field's type lacks is resolved when flags are parsed.

    Args:
        default: where neither the command line nor the dataset's recipe sets it.
        help: of the flag; `%(default)s` stands for the default that holds for the dataset.
        unset: the words for a default of None, or of no values.
        saved: whether it makes the run what it is: part of config.yaml.
        argument: further arguments of argparse's add_argument.
    """
    value = {"default_factory": dict} if default is dict else {"default": default}
    return field(**value, metadata={"help": help, "unset": unset, "saved": saved, "argument": argument})


def switch(default: bool, help: str, *, saved: bool = True) -> Any:
    """A field that is a flag --name or --no-name."""
    return flag(default, help, saved=saved, action=argparse.BooleanOptionalAction)


def augmentation(text: str) -> str:
    """A value of --augment, or what modelnet40's switch of that name was until 2026-11."""
    return {"true": "workers", "false": "none"}.get(text, text)


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    dataset: str = flag(
        DEFAULT_DATASET,
        "dataset by name (--list-datasets), or package.module:Class (default: twoview, which needs no download)",
        metavar="NAME",
    )
    data_root: str | None = flag(
        None,
        "folder of the prepared data (default: %(default)s)",
        unset="data/<dataset>",
        type=path_text,
        metavar="FOLDER",
    )
    dataset_options: dict[str, Any] = field(default_factory=dict)  # a flag for each option of the dataset
    n_classes: int | None = flag(
        None,
        "refuse to run on data with another number of classes (default: %(default)s)",
        unset="any number",
        type=count,
        metavar="N",
    )
    batch_size: int = flag(
        64,
        "samples per step, over all processes and micro-batches (default: %(default)s; published for CREMA-D: 64)",
        type=count,
        metavar="N",
    )
    missing: dict[str, float] = flag(
        dict,
        "drop a modality in this fraction of the samples, in training and scoring alike; the same samples in every "
        "epoch (default: %(default)s)",
        type=assigned_fraction,
        nargs="+",
        action="extend",
        metavar="MODALITY=RATE",
    )
    augment: str = flag(
        "workers",
        "where random crops of training images are resized and flipped: by the workers that load data, or by the "
        "device that trains, a batch at a time; none: training samples are read as for scoring (default: %(default)s)",
        type=augmentation,
        choices=("workers", "device", "none"),
    )
    data_on: str | None = flag(
        None,
        "where the samples are kept: device cuts batches out on the device that trains, for datasets that are held in "
        "memory (default: %(default)s)",
        unset="device on a GPU where they take a quarter of its free memory or less, else host",
        choices=("device", "host"),
    )
    num_workers: int | None = flag(
        None,
        "processes that load data (default: %(default)s)",
        unset="0 for data in memory, else the cores minus one, at most 8",
        type=workers,
        metavar="N",
    )


@dataclass(frozen=True)
class ModelConfig:
    """Model."""

    model: str | None = flag(
        None,
        "encoder of all modalities (--list-encoders), or package.module:Class (default: %(default)s)",
        unset="by the kind of the modality: resnet18, as published, for media",
        metavar="ENCODER",
    )
    encoder: dict[str, str] = flag(
        dict,
        "encoder of one modality; goes before --model (default: %(default)s)",
        type=assignment_text,
        nargs="+",
        action="extend",
        metavar="MODALITY=ENCODER",
    )
    encoder_options: dict[str, str] = flag(
        dict,
        "options of one modality's encoder: weights (none, a file, or pretrained for timm:, hf: and "
        "torchaudio:), frozen, lr_factor, pooling where it "
        "has tokens, and its own (--list-encoders) (default: %(default)s)",
        type=option_text,
        nargs="+",
        action="extend",
        metavar="MODALITY.KEY=VALUE",
    )
    fusion: str = flag(
        "concat",
        "joint head (--list-fusions), or package.module:Class; some methods bring their own (default: concat, as "
        "published)",
        metavar="NAME",
    )
    fusion_options: dict[str, Any] = flag(
        dict, "", type=assignment_text, nargs="+", action="extend", metavar="KEY=VALUE"
    )
    architecture: str = flag(
        "late_fusion",
        "how encoders, fusion and heads are joined (--list-architectures), or package.module:Class (default: "
        "late_fusion, as published, unless the method brings its own)",
        metavar="NAME",
    )
    architecture_options: dict[str, Any] = flag(
        dict, "", type=assignment_text, nargs="+", action="extend", metavar="KEY=VALUE"
    )


@dataclass(frozen=True)
class MethodConfig:
    """Method."""

    method: str = flag(
        "mmpareto",
        "training method by name (--list-methods), or package.module:Class (default: mmpareto)",
        metavar="NAME",
    )
    method_options: dict[str, Any] = flag(
        dict, "", type=assignment_text, nargs="+", action="extend", metavar="KEY=VALUE"
    )
    integrate: str = flag(
        "parameters",
        "parameters: exact, two backward passes through the encoders; features: at the encoders' outputs, one pass, an "
        "upper bound of the exact problem (default: %(default)s)",
        choices=("parameters", "features"),
    )
    diagnose_interval: int = flag(
        10,
        "methods with one backward pass see no conflict; every N-th step they take a second one to measure it; 0: "
        "never (default: %(default)s; methods with two, such as mmpareto, measure every step)",
        type=count_or_zero,
        metavar="N",
    )


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation."""

    epochs: int = flag(
        50,
        "passes over the training data (default: %(default)s; published for CREMA-D: 50)",
        type=count,
        metavar="N",
    )
    optimizer: str = flag(
        "SGD",
        f"{', '.join(OPTIMIZERS)} (default: %(default)s; published: SGD)",
        type=one_of(OPTIMIZERS),
        metavar="NAME",
    )
    learning_rate: float = flag(
        0.002,
        "of the optimiser, for encoders and heads alike (default: %(default)s; published for CREMA-D: 0.002)",
        type=positive,
        metavar="X",
    )
    momentum: float = flag(
        None, "of SGD (default: %(default)s; published: 0.9)", unset="0.9", type=fraction, metavar="X"
    )
    weight_decay: float = flag(
        1e-4, "of all parameters (default: %(default)s; published: 0.0001)", type=not_negative, metavar="X"
    )
    lr_schedule: str = flag(
        None,
        "of the learning rate, changed once an epoch (default: %(default)s)",
        unset="constant, as in the published runs, whose step schedule was built and never stepped; step where "
        "--lr_decay_step is given",
        choices=("constant", "step", "cosine"),
    )
    lr_decay_step: int | None = flag(
        None,
        "multiply the learning rate by --lr_decay_ratio every N epochs (default: %(default)s)",
        unset="never, as in the published runs",
        type=count,
        metavar="N",
    )
    lr_decay_ratio: float = flag(
        None, "of --lr_decay_step (default: %(default)s; published: 0.1)", unset="0.1", type=positive, metavar="X"
    )
    warmup_epochs: int = flag(
        0,
        "epochs in which the learning rate rises linearly, before the schedule (default: %(default)s; published: 0)",
        type=count_or_zero,
        metavar="N",
    )
    early_stopping: int | None = flag(
        None,
        "end after N epochs in a row without a better joint accuracy on the selecting split (default: %(default)s)",
        unset="never",
        type=count,
        metavar="N",
    )
    clip_grad: float | None = flag(
        None,
        "clip the integrated gradient to this norm; 1 where no number follows, 0: no clipping (default: %(default)s)",
        unset="no clipping",
        type=not_negative,
        nargs="?",
        const=1.0,
        metavar="NORM",
    )
    selected_on: str = flag(
        "val",
        "split whose best joint accuracy selects the checkpoint; test is the published protocol: it flatters, and the "
        "results are marked (default: %(default)s)",
        choices=("val", "test"),
    )


@dataclass(frozen=True)
class EngineConfig:
    """Speed: each switch agrees with the plain path to its type's precision; see benchmark.py."""

    fast: bool = switch(
        False, "switch on what is fastest and safe here, and print it (default: %(default)s)", saved=False
    )
    amp: str | None = flag(
        None,
        "automatic mixed precision; fp16 scales the losses and skips steps that overflow (default: %(default)s)",
        unset="float32",
        choices=("bf16", "fp16"),
    )
    channels_last: bool = switch(False, "memory format of convolutions (default: %(default)s)")
    tf32: bool = switch(
        False, "19-bit products in float32 matrix work on NVIDIA GPUs, convolutions included (default: %(default)s)"
    )
    compile: bool = switch(False, "torch.compile the model, which takes a minute once (default: %(default)s)")
    cuda_graph: bool = switch(False, "capture the whole step in a CUDA graph (default: %(default)s)")
    accumulate: int = flag(
        1,
        "cut each batch into N micro-batches to save memory; gradients are summed first and integrated once, batch "
        "norm sees the micro-batches (default: %(default)s)",
        type=count,
        metavar="N",
    )
    sync_batchnorm: bool = switch(
        False, "batch norm over all processes' samples, not each its own (default: %(default)s)"
    )

    def filled(self, choice: Mapping[str, Any]) -> EngineConfig:
        """With `choice`, of FAST, in the place of switches that are off; what is switched on stays."""
        return replace(self, **{key: value for key, value in choice.items() if not getattr(self, key)})


@dataclass(frozen=True)
class RunConfig:
    """Run."""

    random_seed: int = flag(
        0, "of weights, order and augmentation (default: %(default)s; published: 0)", type=seed, metavar="N"
    )
    gpu_ids: str | None = flag(
        None,
        "GPU to use, or one for each process, such as 0,1; or cpu, mps (default: %(default)s)",
        unset="the first ones, where there are some",
        metavar="ID",
    )
    ckpt_path: str = flag(
        None,
        "the run directory (default: %(default)s)",
        unset="runs/<dataset>/<method>/seed<random_seed>",
        saved=False,
        type=path_text,
        metavar="FOLDER",
    )
    checkpoint_minutes: float | None = flag(
        None,
        "write last.pt that often within an epoch too (default: %(default)s)",
        unset="after each epoch",
        type=positive,
        metavar="X",
    )
    log_interval: int = flag(
        50,
        "steps between two points of the TensorBoard curves; only then the device is waited for (default: %(default)s)",
        type=count,
        metavar="N",
    )
    wandb: str | None = flag(
        None,
        "log to Weights & Biases as well; WANDB_MODE=offline keeps it on this machine (default: %(default)s)",
        unset="off",
        nargs="?",
        const="mmpareto",
        metavar="PROJECT",
    )
    resume: str | None = flag(
        None,
        f"continue the run in the run directory: from {LAST} (default), from {PREVIOUS} where that is damaged, or "
        f"auto: from {LAST} where there is one, else from the beginning",
        saved=False,
        nargs="?",
        const=LAST,
        metavar="CHECKPOINT",
    )
    overwrite: bool = switch(False, "delete the run in the run directory (default: %(default)s, refuse)", saved=False)
    probe: bool = switch(
        False,
        "fit linear probes to the encoders of the selected checkpoint at the end, and compare them with those of "
        "encoders that were trained alone where there is such a run (default: %(default)s)",
        saved=False,
    )
    probe_alone: str | None = flag(
        None,
        "the run of --method unimodal that --probe compares with (default: %(default)s)",
        unset="runs/<dataset>/unimodal/seed<random_seed>",
        saved=False,
        type=path_text,
        metavar="RUN",
    )
    figures: bool = switch(
        True, "--no-figures draws none at the end, which takes a second or two (default: %(default)s)", saved=False
    )
    train: bool = switch(
        True, "--no-train scores the selected checkpoint of a finished run again (default: %(default)s)", saved=False
    )


@dataclass(frozen=True)
class Config:
    """All settings of a training run, resolved."""

    data: DataConfig
    method: MethodConfig
    model: ModelConfig
    optim: OptimConfig
    engine: EngineConfig
    run: RunConfig

    def saved(self) -> dict[str, dict[str, Any]]:
        """What config.yaml holds: every setting that makes the run what it is, by section, in types of JSON."""
        values = asdict(self)
        content = {
            section: {item.name: values[section][item.name] for item in fields(kind) if is_saved(item)}
            for section, kind in SECTIONS.items()
        }
        return json.loads(json.dumps(content))

    def flat(self) -> dict[str, Any]:
        """The saved settings without their sections."""
        return config_files.flattened(self.saved())

    def changed(self, **values: Any) -> Config:
        """With other values of some fields, by name."""
        sections = {}
        for section in fields(self):
            part = getattr(self, section.name)
            mine = {name: value for name, value in values.items() if name in {item.name for item in fields(part)}}
            sections[section.name] = replace(part, **mine)
        return Config(**sections)


SECTIONS: dict[str, type] = get_type_hints(Config)
assert set(SECTIONS) == set(config_files.SECTIONS)
# what a run may differ in and still be the same run: its results so far do not depend on it; see `differing`
RUN_ONLY = ("data_root", "data_on", "num_workers", "gpu_ids", "checkpoint_minutes", "log_interval", "wandb")
# what --fast may switch on, as the device and the method allow
FAST = ("amp", "channels_last", "tf32", "cuda_graph")
# what changes results by rounding alone
ROUNDING = ("compile", "cuda_graph")


def is_saved(item: Field[Any]) -> bool:
    """Whether config.yaml holds a field."""
    return item.metadata.get("saved", True)


# JSON's form of each saved field's default, by name
_DEFAULTS: dict[str, Any] = {
    item.name: item.default_factory() if callable(item.default_factory) else item.default
    for section in SECTIONS.values()
    for item in fields(section)
    if is_saved(item)
}
# options of what the field before them names
_OPTIONS = {
    "dataset_options": ("dataset", DATASETS),
    "method_options": ("method", METHODS),
    "fusion_options": ("fusion", FUSIONS),
    "architecture_options": ("architecture", ARCHITECTURES),
}


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings without sections, with the default of each field, and of each option, that they lack.

    They were saved by a version without it; its default is what that version did. What is damaged stays as it is.
    """
    whole = {**_DEFAULTS, **saved}
    for key, (chosen, registry) in _OPTIONS.items():
        name, options = whole[chosen], whole[key]
        if isinstance(name, str) and isinstance(options, Mapping) and name in registry:
            known = registry[name].options.items()
            defaults = {option: about.default for option, about in known if about.default is not REQUIRED}
            whole[key] = {**json.loads(json.dumps(defaults)), **options}
    return whole


def differing(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{flag: (saved value, wanted value)} where a run's saved settings are others, without those of RUN_ONLY.

    data_root is among them where it names other data, see `dataset_title`. Both arguments are without sections. A
    field or option that one of them lacks has its default; one that is unknown differs.
    """
    saved, wanted = completed(saved), completed(wanted)
    titles = [dataset_title(str(values.get("dataset")), values.get("data_root")) for values in (saved, wanted)]
    keys = [key for key in {**wanted, **saved} if key not in RUN_ONLY and saved.get(key) != wanted.get(key)]
    keys += ["data_root"] * (titles[0] != titles[1] and "dataset" not in keys)
    return {key: (saved.get(key), wanted.get(key)) for key in keys}
