"""Read a prepared dataset: its description and the clips of its splits. `mmpareto.preparation` writes both."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpareto.data_folders import require_prepared
from mmpareto.datasets.base import DatasetError, Split
from mmpareto.datasets.files import refuse_special_file, version
from mmpareto.datasets.items import Items
from mmpareto.datasets.lists import CONTROL, check_classes, check_ids, check_modality, read_table
from mmpareto.json_files import read_object


def read_description(root: Path, name: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The dataset.json of a prepared dataset.

    parameters  that the dataset must have been prepared with.

    Raises DatasetError where the folder is missing, not prepared, of another dataset or made with other parameters.
    """
    file = require_prepared(root, name)
    refuse_special_file(file)
    try:
        description = read_object(file)
        prepared_name, prepared_with = description["name"], description["parameters"]
        _check_description(description, file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{file}: cannot be read ({error}); delete the folder and prepare the dataset again"
        ) from error
    if prepared_name != name:
        raise DatasetError(f"{root} holds the dataset {prepared_name}, not {name}; give another --data_root")
    for key, value in (parameters or {}).items():
        if prepared_with.get(key) != value:
            raise DatasetError(
                f"{root} was prepared with {key} {prepared_with.get(key)}, the flags ask for {key} {value}; change the "
                f"flag, or prepare the dataset again with --{key} {value} into another folder"
            )
    return description


def _check_description(description: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError or DatasetError where a dataset.json does not hold what preparations write.

    Its names become paths and are printed: none leads out of the folder, and none holds control characters.
    """
    modalities, classes = description["modalities"], description["classes"]
    if not isinstance(description["parameters"], dict) or not isinstance(modalities, dict) or not modalities:
        raise ValueError("parameters and modalities must be names with values")
    for modality, suffix in modalities.items():
        check_modality(modality, file)
        if not isinstance(suffix, str) or not re.fullmatch(r"(\.[A-Za-z0-9]+)?", suffix):
            raise ValueError(f"the suffix of {modality} is no suffix of a file, such as .npy")
    if not isinstance(classes, list) or not classes or not all(isinstance(label, str) for label in classes):
        raise ValueError("classes must be a list of names")
    if len(set(classes)) < len(classes) or "" in classes or CONTROL.search("".join(classes)):
        raise ValueError("names of classes that are empty, come twice or hold control characters")


def read_split(root: Path, name: str, split: Split, parameters: Mapping[str, Any], classes: Sequence[str]) -> Items:
    """The clips of one split of a prepared dataset; its file is read again only when it changes.

    Raises DatasetError where the folder is not prepared, or with other parameters, or its split names unknown classes.
    """
    suffixes: dict[str, str] = read_description(root, name, parameters)["modalities"]
    file = root / "splits" / f"{split}.csv"
    return _read_clips(root, file, tuple(suffixes.items()), tuple(classes), version(file))


@functools.lru_cache(maxsize=3)  # each split of a manifest asks for the training clips too
def _read_clips(
    root: Path,
    file: Path,
    suffixes: tuple[tuple[str, str], ...],
    classes: tuple[str, ...],
    file_version: tuple[int, ...],
) -> Items:
    del file_version  # a part of the cache's key
    table = read_table(file, ("id", "label"))
    ids, labels = table["id"].tolist(), table["label"].tolist()
    check_ids(ids, file)
    check_classes(labels, classes, file)
    absent = [set(names.split("/")) for names in table["absent"]] if "absent" in table else [set[str]()] * len(ids)
    return Items(
        root,
        ids,
        labels,
        {
            modality: [
                "" if modality in lacking else f"{modality}/{i}{suffix}" for i, lacking in zip(ids, absent, strict=True)
            ]
            for modality, suffix in suffixes
        },
    )
