"""Datasets: `build(name, root, split, ...)` makes any of them; a new one is a file here and a line in `DATASETS`.

A dataset knows its modalities and its classes and gives samples {"inputs": {modality: Tensor}, "label", "id"}.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmpareto.datasets.base import (
    SPLITS,
    Batch,
    DatasetError,
    Modality,
    MultimodalDataset,
    Sample,
    Split,
    collate,
    modality_from,
    to_device,
)
from mmpareto.importing import class_at

# name -> where its class is; imported when asked for, because some need libraries that take seconds to load
DATASETS: dict[str, str] = {
    "digits": "mmpareto.datasets.digits:Digits",
    "cgmnist": "mmpareto.datasets.cgmnist:CGMNIST",
    "cremad": "mmpareto.datasets.cremad:CREMAD",
    "kinetics-sounds": "mmpareto.datasets.kinetics_sounds:KineticsSounds",
    "modelnet40": "mmpareto.datasets.modelnet40:ModelNet40",
    "manifest": "mmpareto.datasets.manifest:Manifest",
}
_OF_BUILD = ("root", "split", "seed", "modalities", "download")  # arguments of a dataset that are no options
# of these the name does not say what the samples are, but the folder does
ANY_DATA = frozenset({"manifest"})
# names that other code uses for the same sets
ALIASES: dict[str, str] = {
    "cg-mnist": "cgmnist",
    "crema-d": "cremad",
    "modelnet": "modelnet40",
    "kineticsound": "kinetics-sounds",
    "kineticsounds": "kinetics-sounds",
    "kineticssound": "kinetics-sounds",
    "kineticssounds": "kinetics-sounds",
    "ks": "kinetics-sounds",
}


def canonical(name: str) -> str:
    """The project's own name of a dataset (aliases and letter case resolved); `package.module:Class` stays as it is.

    Raises DatasetError for an unknown name.
    """
    if ":" in name:
        return name
    lowered = name.lower().replace("_", "-")
    lowered = ALIASES.get(lowered, lowered)
    if lowered not in DATASETS:
        known = ", ".join(DATASETS)
        raise DatasetError(
            f"unknown dataset {name!r:.100}; known: {known}, or package.module:Class for one of your own"
        )
    return lowered


def title(name: str, root: str | Path | None) -> str:
    """What a dataset's samples are known by: its name, and, of those of ANY_DATA and of a class of one's own that reads
    a folder, the name of that folder. Published sets are the same in any folder, and a folder may be moved.
    """
    own = name in ANY_DATA or name not in DATASETS
    folder = Path(root).name if own and isinstance(root, str | Path) else ""
    return f"{name} {folder}" if folder not in ("", name) else name


def dataset_class(name: str) -> type[MultimodalDataset]:
    """The class behind a dataset's name, or behind `package.module:Class`.

    Raises DatasetError where there is none, or where it is no MultimodalDataset.
    """
    name = canonical(name)
    try:
        return class_at(DATASETS.get(name, name), MultimodalDataset)
    except ValueError as error:
        raise DatasetError(f"dataset {error}") from error


def options(name: str) -> dict[str, Any]:
    """The options that a dataset takes beside those that `build` names, with their defaults."""
    parameters = inspect.signature(dataset_class(name)).parameters
    return {key: p.default for key, p in parameters.items() if key not in _OF_BUILD}


def build(
    name: str,
    root: str | Path | None,
    split: Split,
    *,
    seed: int = 0,
    modalities: Mapping[str, Modality] | None = None,
    download: bool = True,
    **chosen: Any,
) -> MultimodalDataset:
    """Makes one split of a dataset.

    name        one of DATASETS, an alias, or `package.module:Class`.
    root        the folder that holds the (prepared) data; None for embedded sets.
    split       "train", "val" or "test".
    seed        of the augmentation; the splits themselves never depend on it.
    modalities  what the first run resolved them to (lengths, shapes, means): they are kept, and no file is asked again.
    download    False: data that are missing are not downloaded into `root`, which a file of somebody else may name.
    chosen      the dataset's own options, see `options`.

    Raises DatasetError: unknown name, split or option, or data that is missing, unusable or not of `modalities`.
    """
    if split not in SPLITS:
        raise DatasetError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    found = dataset_class(name)
    known = options(name)
    for key in chosen:
        if key not in known:
            takes = ", ".join(known) or "none"
            raise DatasetError(f"dataset {name!r} has no option {key!r}; its options: {takes}")
    make: Callable[..., MultimodalDataset] = found
    if "download" in inspect.signature(found).parameters:
        chosen["download"] = download
    if modalities is None:
        return make(None if root is None else Path(root), split, seed=seed, **chosen)
    if "modalities" in inspect.signature(found).parameters:
        chosen["modalities"] = modalities
    dataset = make(None if root is None else Path(root), split, seed=seed, **chosen)
    for key, modality in dataset.modalities.items():
        resolved = modalities.get(key, modality)
        if (resolved.kind, resolved.shape) != (modality.kind, modality.shape):
            raise DatasetError(
                f"dataset {name!r}: the modality {key} is now {modality.kind} {list(modality.shape)}, the run was "
                f"trained on {resolved.kind} {list(resolved.shape)}; give the data that it was trained on"
            )
    dataset.modalities = {key: modalities.get(key, modality) for key, modality in dataset.modalities.items()}
    return dataset


__all__ = [
    "ALIASES",
    "ANY_DATA",
    "DATASETS",
    "SPLITS",
    "Batch",
    "DatasetError",
    "Modality",
    "MultimodalDataset",
    "Sample",
    "Split",
    "build",
    "canonical",
    "collate",
    "dataset_class",
    "modality_from",
    "options",
    "title",
    "to_device",
]
