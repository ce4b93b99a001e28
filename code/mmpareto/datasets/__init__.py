"""Datasets: `build(name, root, split, ...)` makes any of them; a new one is one file here with one decorator.

A dataset knows its modalities and its classes and gives samples {"inputs": {modality: Tensor}, "label", "id"}.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpareto.datasets.base import DATASETS as DATASETS
from mmpareto.datasets.base import SPLITS as SPLITS
from mmpareto.datasets.base import Batch as Batch
from mmpareto.datasets.base import Batches as Batches
from mmpareto.datasets.base import DatasetError as DatasetError
from mmpareto.datasets.base import DeviceBatch as DeviceBatch
from mmpareto.datasets.base import Held as Held
from mmpareto.datasets.base import Modality as Modality
from mmpareto.datasets.base import MultimodalDataset as MultimodalDataset
from mmpareto.datasets.base import Rows as Rows
from mmpareto.datasets.base import Sample as Sample
from mmpareto.datasets.base import Split as Split
from mmpareto.datasets.base import batch_to_device as batch_to_device
from mmpareto.datasets.base import collate as collate
from mmpareto.datasets.base import modality_from as modality_from
from mmpareto.datasets.base import to_device as to_device
from mmpareto.datasets.base import uncropped as uncropped


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
    """Make one split of a dataset.

    Args:
        name: one of DATASETS, an alias, or `package.module:Class`.
        root: the folder that holds the (prepared) data; None for embedded sets.
        split: "train", "val" or "test".
        seed: of the augmentation; the splits themselves never depend on it.
        modalities: what the first run resolved them to (lengths, shapes, means): they are kept, and no file is read
            for them again.
        download: False: missing data are not downloaded into `root`, which a stranger's file may name.
        chosen: the dataset's own options.

    Raises:
        DatasetError: unknown name, split or option, or data that is missing, unusable or not of `modalities`.
    """
    if split not in SPLITS:
        raise DatasetError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    entry = DATASETS[name]
    DATASETS.check_options(entry, chosen)
    accepted = inspect.signature(entry.make).parameters
    arguments = {"seed": seed, **chosen}
    if "download" in accepted:
        arguments["download"] = download
    if "modalities" in accepted and modalities is not None:
        arguments["modalities"] = modalities
    dataset = entry.make(None if root is None else Path(root), split, **arguments)
    if modalities is None:
        return dataset
    for key, modality in dataset.modalities.items():
        resolved = modalities.get(key, modality)
        if (resolved.kind, resolved.shape) != (modality.kind, modality.shape):
            raise DatasetError(
                f"dataset {name!r}: the modality {key} is now {modality.kind} {list(modality.shape)}, the run was "
                f"trained on {resolved.kind} {list(resolved.shape)}; give the data that it was trained on"
            )
    dataset.modalities = {key: modalities.get(key, modality) for key, modality in dataset.modalities.items()}
    return dataset
