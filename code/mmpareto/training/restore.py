"""A trained run, made again from its directory: options, data, model, selected weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from mmpareto import runs
from mmpareto.datasets import Modality, MultimodalDataset, Split, modality_from
from mmpareto.importing import require_allowed
from mmpareto.models import MultimodalClassifier
from mmpareto.options import NOT_SAVED, Options, UsageError, differing, from_saved
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.checkpoints import load_checkpoint
from mmpareto.training.setup import build_split, make_model

_CHECKPOINTS = (runs.LAST, runs.PREVIOUS, runs.BEST)


def saved_options(run: RunDirectory, allowed: Collection[str] = (), **changed: Any) -> Options:
    """The options that a run was trained with, its encoders by name; `changed` ones in their place.

    allowed  import paths that the command line allows; any other that config.json names is refused, not imported.

    Raises RunError where the folder holds no run, one of another version of the program, or one that asks for code.
    """
    if not run.path.is_dir():
        raise RunError(f"{run.path} is no folder; give a run directory of train.py")
    if not (run / runs.CONFIG).exists():
        raise RunError(f"{run.path} is no run directory: it has no {runs.CONFIG}; give one that train.py made")
    config = run.read_json(runs.CONFIG)
    expected = {field.name for field in fields(Options)} - NOT_SAVED.keys()
    missing = sorted((expected | {"encoders"}) - set(config))
    if missing:
        raise RunError(
            f"{run.path} was made by an older version of the program: its {runs.CONFIG} lacks "
            f"{', '.join(missing[:5])}; train it again"
        )
    encoders = _encoders(run, config)
    for name, kind in (("dataset", str), ("method", str), ("dataset_options", dict), ("method_options", dict)):
        if not isinstance(config[name], kind):
            raise RunError(f"{run / runs.CONFIG} holds {name} {config[name]!r:.100}, which train.py does not write")
    try:
        require_allowed([config["dataset"], config["method"], str(config["model"]), *encoders.values()], allowed)
    except ValueError as error:
        raise RunError(f"{run.path} {error}") from error
    try:
        options = from_saved({key: config[key] for key in expected} | {"encoder": encoders})
    except UsageError as error:
        raise RunError(f"{run / runs.CONFIG} holds values that train.py does not write: {error}") from error
    return replace(options, **{key: value for key, value in changed.items() if value is not None})


def _encoders(run: RunDirectory, config: Mapping[str, Any]) -> dict[str, str]:
    """The name of each modality's encoder.

    Raises RunError where config.json has none.
    """
    encoders = config.get("encoders")
    if not isinstance(encoders, dict) or not all(isinstance(name, str) for name in encoders.values()):
        raise RunError(f"{run / runs.CONFIG} holds encoders {encoders!r:.100}, which train.py does not write")
    return encoders


def same_data(run: RunDirectory, options: Options, split: Split) -> MultimodalDataset:
    """A split of the run's dataset.

    Raises DatasetError where it cannot be read, UsageError where its modalities or classes are not those that the run
    was trained on.
    """
    dataset = build_split(options, split, saved_modalities(run), download=False)
    check_same_data(run, options, dataset)
    return dataset


def saved_modalities(run: RunDirectory) -> dict[str, Modality] | None:
    """What the run resolved its modalities to when it began; None where an older version trained it.

    Raises RunError where the run's config.json holds something else there.
    """
    saved = run.read_json(runs.CONFIG).get("modalities")
    if saved is None:
        return None
    try:
        return {name: modality_from(value) for name, value in saved.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run / runs.CONFIG} holds modalities that train.py does not write ({type(error).__name__}: {error}); "
            "train the run again"
        ) from error


def continued_modalities(options: Options, restarts: int) -> dict[str, Modality] | None:
    """The modalities of the run that these options continue or score again; None where a run begins.

    None also where the options are of other data: the run directory refuses them later, by name.
    """
    run = RunDirectory(Path(options.ckpt_path))
    continues = options.resume is not None or bool(restarts) or not options.train
    if not continues or not (run / runs.CONFIG).exists() or not any((run / n).exists() for n in _CHECKPOINTS):
        return None
    saved = run.read_json(runs.CONFIG)
    wanted = json.loads(json.dumps(options.resolved(), default=str))
    if {"dataset", "dataset_options", "data_root"} & set(differing(saved, wanted)):
        return None
    return saved_modalities(run)


def check_same_data(run: RunDirectory, options: Options, dataset: MultimodalDataset) -> None:
    """Raises UsageError where the dataset's modalities or classes are not those that the run was trained on."""
    config = run.read_json(runs.CONFIG)
    there = f"the {options.dataset} in {options.data_root}"
    for what, trained, found in (
        ("modalities", list(_encoders(run, config)), list(dataset.modalities)),
        ("classes", config.get("classes"), list(dataset.classes)),  # earlier runs kept no names
    ):
        if trained is not None and trained != found:
            raise UsageError(
                f"{run.path} was trained on the {what} {_short(trained)}; {there} has {_short(found)}; give the folder "
                "of its own data with --data_root"
            )


def trained_model(
    run: RunDirectory, options: Options, dataset: MultimodalDataset, device: torch.device
) -> tuple[MultimodalClassifier, int]:
    """The run's model with the weights of the selected epoch, and that epoch.

    Raises RunError where best.pt is missing, damaged, or of another model; ModelError where the encoders of the run
    cannot take the dataset's inputs.
    """
    if not (run / runs.BEST).exists():
        raise RunError(f"{run.path} has no {runs.BEST}: no epoch is finished yet; go on with train.py --resume")
    saved = load_checkpoint(run / runs.BEST, device, ("model", "epoch"))
    model, _ = make_model(options, dataset, device)
    try:
        model.load_state_dict(saved["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = str(error).splitlines()[-1].strip()[:200]
        raise RunError(
            f"{run / runs.BEST} does not fit the model for the {options.dataset} in {options.data_root}: {detail}"
        ) from error
    return model, saved["epoch"]


def _short(names: Any) -> str:
    if not isinstance(names, list):
        return f"{names!r:.100}"
    return ", ".join(map(str, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
