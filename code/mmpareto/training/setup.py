"""What a run needs before its first step: device, seeds, data, method, model, step."""

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mmpareto import datasets
from mmpareto.config import Config, DataConfig, EngineConfig, MethodConfig
from mmpareto.datasets import DatasetError, Held, Modality, MultimodalDataset, Split
from mmpareto.errors import UsageError
from mmpareto.escape import counted
from mmpareto.integration import OnFeatures
from mmpareto.methods import METHODS, Method, MethodError, build_method
from mmpareto.models import (
    ARCHITECTURES,
    FUSIONS,
    MakeFusion,
    MultimodalModel,
    build_model,
    encoder_names,
    fusion_maker,
    options_by_modality,
)
from mmpareto.training.data import Loader
from mmpareto.training.processes import Processes
from mmpareto.training.step import TrainingStep
from mmpareto.training.switches import (
    apply_switches,
    autocast_type,
    check_switches,
    compiled,
    fastest,
    refusals,
)


def choose_device(gpu_ids: str | int | torch.device | None, processes: Processes | None = None) -> torch.device:
    """The device that --gpu_ids asks for; by default the first GPU where there is one, or this process's own.

    Names of PyTorch's are taken as well: cuda, cuda:1.

    Apple's GPU (mps) is taken where it is asked for, never by default: no run of this project was made there.

    Raises UsageError where it cannot be had.
    """
    processes = processes or Processes()
    if gpu_ids is not None:
        gpu_ids = str(gpu_ids).lower().removeprefix("cuda:")
        gpu_ids = "0" if gpu_ids == "cuda" else gpu_ids
    if gpu_ids == "cpu":
        return torch.device("cpu")
    if gpu_ids == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--gpu_ids mps: PyTorch sees no GPU of Apple's here; leave the flag out")
        if processes.size > 1:
            raise UsageError("--gpu_ids mps: one process can use Apple's GPU; start one, or give --gpu_ids cpu")
        return torch.device("mps")
    count = torch.cuda.device_count()
    if gpu_ids is None and count == 0:
        return torch.device("cpu")
    if gpu_ids is None:
        numbers = list(range(count if processes.size > 1 else 1))
    else:
        numbers = _gpu_numbers(gpu_ids, count, processes.size)
    if processes.local_rank >= len(numbers):
        raise UsageError(
            f"process {processes.local_rank} of this machine has no GPU: {len(numbers)} to use; start as many "
            "processes as GPUs, or give --gpu_ids cpu"
        )
    device = torch.device("cuda", numbers[processes.local_rank])
    torch.cuda.set_device(device)
    return device


def _gpu_numbers(gpu_ids: str, count: int, processes: int) -> list[int]:
    """The GPUs that --gpu_ids names, of the `count` that there are.

    Raises UsageError where they cannot be had.
    """
    parts = gpu_ids.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--gpu_ids: expected numbers of GPUs, such as 0 or 0,1, cpu or mps; found {gpu_ids!r}")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--gpu_ids {gpu_ids}: a GPU is named twice; name one for each process")
    if processes == 1 and len(numbers) > 1:
        raise UsageError(
            f"--gpu_ids {gpu_ids}: several GPUs need a process each; "
            f"PROCESSES={len(numbers)} sh script/distributed.sh --gpu_ids {gpu_ids} starts them"
        )
    if count == 0:
        raise UsageError(f"--gpu_ids {gpu_ids}: PyTorch sees no GPU here; leave the flag out, or give --gpu_ids cpu")
    if max(numbers) >= count:
        raise UsageError(f"--gpu_ids {gpu_ids}: PyTorch sees {counted(count, 'GPU')}, numbered from 0")
    return numbers


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build_split(
    data: DataConfig,
    seed: int,
    split: Split,
    modalities: Mapping[str, Modality] | None = None,
    download: bool = True,
) -> MultimodalDataset:
    """One split of the run's dataset.

    Args:
        data: the dataset, its folder and its own settings.
        seed: of the augmentation, and of the modalities that are dropped.
        split: "train", "val" or "test".
        modalities: as the run resolved them before (see `datasets.build`).
        download: False: missing data are not downloaded.

    Raises:
        DatasetError: where its data are missing or unusable, or no sample has one of the modalities.
    """
    dataset = datasets.build(
        data.dataset,
        data.data_root,
        split,
        seed=seed,
        modalities=modalities,
        download=download,
        **data.dataset_options,
    )
    dataset.augmenting = data.augment != "none"
    if data.augment == "device":
        dataset.augment_on_device()
    if data.missing:
        dataset.drop_modalities(data.missing, seed, split)
    for name, rows in dataset.absent.items():
        if rows.all():
            remedy = "give a smaller rate to --missing" if name in data.missing else "add some, or take it out"
            raise DatasetError(
                f"no sample of {split} has the modality {name}, so its head cannot be scored; {remedy} (evaluate.py "
                "scores a run with any modality missing)"
            )
    return dataset


def with_switches(config: Config, device: torch.device, processes: int) -> Config:
    """The settings with what `--fast` switches on here.

    Raises:
        UsageError: for switches that cannot work here or together.
    """
    if config.engine.fast:
        method = make_method(config.method, config.engine, processes)
        fast = fastest(device, processes, method, config.engine)
        config = replace(config, engine=config.engine.filled(fast))
    check_switches(config.data, config.engine, device, processes)
    return config


def hold_on_device(data_on: str | None, splits: Collection[MultimodalDataset], device: torch.device) -> None:
    """Move the splits' samples to the device where `--data_on` says so, or by default where it is a GPU with room.

    Batches have the same samples and values as without.

    Raises:
        UsageError: for `device`, where the samples are not held in memory or do not fit.
    """
    if data_on == "host" or (data_on is None and device.type != "cuda"):
        return
    stored = [tensor for dataset in splits if dataset.stored is not None for tensor in dataset.stored.values()]
    if any(dataset.stored is None for dataset in splits):
        if data_on == "device":
            raise UsageError(
                "--data_on device: this dataset reads its samples one by one, and only samples that are held in memory "
                "as whole tensors can be kept on the device; leave the flag out"
            )
        return
    needed = sum(tensor.nbytes for tensor in stored)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if data_on == "device" and free is not None and needed > free:
        raise UsageError(
            f"--data_on device: the samples take {needed / 2**20:.0f} MiB, and {device} has {free / 2**20:.0f} MiB "
            "free; leave the flag out"
        )
    if data_on == "device" or free is None or needed <= free / 4:
        for dataset in splits:
            dataset.held = Held(dataset, device)


def make_loader(
    dataset: MultimodalDataset,
    data: DataConfig,
    seed: int,
    device: torch.device,
    *,
    rank: int = 0,
    size: int = 1,
    training: bool = False,
) -> Loader:
    """The split's loader: shuffled in training, in the order of the split otherwise; see `Loader` for rank and size."""
    return Loader(
        dataset,
        data.batch_size,
        shuffle=training,
        seed=seed,
        workers=data.num_workers,
        pin=device.type == "cuda",
        rank=rank,
        size=size,
        training=training,
    )


def make_method(config: MethodConfig, engine: EngineConfig | None = None, processes: int = 1) -> Method:
    """The method of a configuration.

    Args:
        config: its name and settings.
        engine: the switches that it must work with; None: none.
        processes: number of processes that it must work with.

    Raises:
        UsageError: where it cannot be made, or refuses a switch, with the reason.
    """
    try:
        method = build_method(config.method, **config.method_options)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    engine = engine or EngineConfig()
    if config.integrate == "features":
        method.integrator = on_features(config.method, method, engine)
    switched_on = {
        "cuda_graph": engine.cuda_graph,
        "compile": engine.compile,
        "accumulate": engine.accumulate > 1,
        "processes": processes > 1,
        f"amp {engine.amp}": True,
    }
    for switch, reason in refusals(method).items():
        if switched_on.get(switch):
            what = "several processes" if switch == "processes" else f"--{switch}"
            raise UsageError(f"{what} with --method {config.method}: {reason}")
    return method


def on_features(name: str, method: Method, engine: EngineConfig) -> OnFeatures:
    """The method's integrator, at the features.

    Raises:
        UsageError: for a method with one pass through the encoders, and for micro-batches.
    """
    if method.integrator.passes == 1:
        raise UsageError(
            f"--integrate features saves the second backward pass, and --method {name} has one pass; leave it out"
        )
    if engine.accumulate > 1:
        raise UsageError("--integrate features needs the whole batch at once; leave --accumulate out")
    return OnFeatures(method.integrator)


# what each of `MultimodalModel.offers` is, and where it is found
_NEEDS = {
    "features": ("joint logits that are a function of the encoders' features alone", "--architecture late_fusion"),
    "contributions": ("joint logits that are a sum of one part per modality", "--fusion"),
    "gates": ("encoders that scale one another's channels by gates", "--architecture mmtm"),
}


def set_up(method: Method, model: MultimodalModel, seed: int, epochs: int) -> None:
    """Introduce the method to the model.

    Raises:
        UsageError: where it cannot train it.
    """
    needs = dict.fromkeys(sorted(method.requires), "")
    if isinstance(method.integrator, OnFeatures):
        needs["features"] = "--integrate features"
    for need, name in needs.items():
        if need not in model.offers:
            (what, found), lacking = _NEEDS[need], f"--architecture {ARCHITECTURES.name_of(model)}"
            if need == "contributions":
                found += f" {' or '.join(key for key in FUSIONS if hasattr(FUSIONS[key].source, need))}"
                lacking += f" with --fusion {FUSIONS.name_of(model.fusion)}"
            name = name or f"--method {METHODS.name_of(method)}"
            raise UsageError(
                f"{name} needs {what}, which {lacking} does not have; take {found}, or another method (docs/methods.md "
                "says what goes together)"
            )
    try:
        method.setup(model, seed, epochs)
    except MethodError as error:
        raise UsageError(str(error)) from error


def make_model(
    config: Config,
    dataset: MultimodalDataset,
    device: torch.device,
    method: Method | None = None,
    restored: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[MultimodalModel, dict[str, str]]:
    """The classifier for a dataset's modalities and classes, on the device, and the name of each modality's encoder.

    Args:
        config: settings of the run.
        dataset: a split of its dataset.
        device: where the model goes.
        method: whose fusion it gets; by default that of the configuration. A routine of integration leaves the fusion
            as it is and is not made: a trained run can be read where the libraries that the routine needs are missing.
        restored: configurations of its encoders where a checkpoint of the model follows, see `build_model`.

    Raises:
        ModelError: for encoders that are unknown, cannot take such input, or whose weights are missing.
        UsageError: for a fusion beside that of the method.
    """
    if method is None and _may_fuse(config.method.method):
        method = make_method(config.method)
    chosen = config.model.fusion
    fusion: MakeFusion | None = None if method is None else method.fusion
    if chosen != "concat":
        if method is not None and type(method).fusion is not Method.fusion:
            raise UsageError(f"--fusion {chosen}: the method {config.method.method} brings its own; leave the flag out")
        fusion = fusion_maker(chosen, config.model.fusion_options)
    about = {name: (modality.kind, modality.shape) for name, modality in dataset.modalities.items()}
    encoders = encoder_names(about, config.model.model, config.model.encoder)
    options = options_by_modality(config.model.encoder_options, about)
    if restored is None and config.data.dataset_options.get("tokenizer") is None:
        for name, modality in dataset.modalities.items():
            of_hub = encoders[name].startswith("hf:") and options.get(name, {}).get("weights") != "none"
            if of_hub and modality.tokenizer is not None:
                raise UsageError(
                    f"--encoder {name}={encoders[name]}: the tokenizer is trained on this dataset's text, and its ids "
                    "are not those of the model; give the model's tokenizer with --tokenizer FOLDER"
                )
    model = build_model(
        about,
        len(dataset.classes),
        encoders,
        fusion,
        config.model.architecture,
        config.model.architecture_options,
        encoder_options=options,
        restored=restored,
    )
    return apply_switches(model, config.engine, device), encoders


def use_statistics(model: MultimodalModel, datasets: Iterable[MultimodalDataset]) -> None:
    """Replace the mean and the std of modalities by those that their encoders were trained with."""
    for dataset in datasets:
        for name, encoder in model.innermost().items():
            preprocess = getattr(encoder, "preprocess", None)
            if preprocess is not None and preprocess.mean is not None:
                modality = replace(dataset.modalities[name], mean=preprocess.mean, std=preprocess.std)
                dataset.modalities = dataset.modalities | {name: modality}


def _may_fuse(method: str) -> bool:
    """Whether a method is more than an integration routine."""
    make = METHODS[method].make
    return isinstance(make, type) and issubclass(make, Method)


def check_presence(name: str, method: Method, dataset: MultimodalDataset) -> None:
    """Raise UsageError for a method that cannot train on samples that lack a modality, where there are some."""
    if dataset.absent and "missing" in method.refuses:
        raise UsageError(
            f"some samples lack a modality, and the method {name} cannot train on them: {method.refuses['missing']}; "
            "choose another method (docs/methods.md says which)"
        )


def make_step(
    model: MultimodalModel,
    method: Method,
    optimizer: torch.optim.Optimizer,
    engine: EngineConfig,
    clip_grad: float | None,
    modalities: Mapping[str, Modality],
    device: torch.device,
) -> TrainingStep:
    """The training step with the switches of `engine`."""
    forward: Callable[..., Any] | None = None
    if engine.compile:
        forward = compiled(model, {name: modality.kind for name, modality in modalities.items()})
    return TrainingStep(
        model,
        method,
        optimizer,
        clip_grad=clip_grad,
        amp=autocast_type(engine),
        scaler=torch.amp.GradScaler(device.type) if engine.amp == "fp16" else None,
        accumulate=engine.accumulate,
        forward=forward,
    )


def samples(data: Mapping[str, MultimodalDataset]) -> dict[str, dict[str, Any]]:
    """{split: what its samples are known by: their number, and checksums of their labels and ids in order}."""
    return {
        split: {
            "number": len(part),
            "labels": _checksum(part.labels.tobytes()),
            "ids": _checksum("\n".join(part.sample_ids()).encode(errors="backslashreplace")),
        }
        for split, part in data.items()
    }


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def settings_and_data(config: Config, data: dict[str, MultimodalDataset]) -> dict[str, Any]:
    """What all processes of a run must have alike, by name."""
    differ = ("data_root", "data_on", "num_workers", "gpu_ids")
    values = {f"--{key}": value for key, value in config.flat().items() if key not in differ}
    for name, known in samples(data).items():
        values |= {f"samples of {name}": known["number"]}
        values |= {f"checksum of the {what} of {name}": known[what] for what in ("labels", "ids")}
    return values | {"classes": list(data["train"].classes)}
