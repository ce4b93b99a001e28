"""Folders of data, as far as they can be judged before PyTorch is imported to read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpareto.errors import DatasetError
from mmpareto.registries import DATASETS
from mmpareto.special_files import hint
from mmpareto.startup import shell_command

DESCRIPTION = "dataset.json"  # of a prepared dataset
UNFINISHED = ".preparation.json"  # parameters of a preparation that has not ended


def dataset_title(name: str, root: str | Path | None) -> str:
    """What a dataset's samples are known by in tables.

    Published sets are the same in any folder: their name. Where the folder says what the samples are (a manifest, a
    class elsewhere), its name is added. No foreign class is imported.
    """
    named_by_folder = name not in DATASETS or DATASETS[name].attributes.get("named_by_folder", False)
    folder = Path(root).name if named_by_folder and isinstance(root, str | Path) else ""
    return f"{name} {folder}" if folder not in ("", name) else name


def is_embedded(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a dataset comes with an installed library under these options: there is no folder to read."""
    embedded = DATASETS[name].attributes.get("embedded", False)
    return all(options[key] == value for key, value in embedded.items()) if isinstance(embedded, Mapping) else embedded


def require_data(name: str, root: str | Path | None) -> None:
    """Refuse a folder in which a dataset finds nothing to read, before PyTorch is imported to read it.

    Raises:
        DatasetError: where the folder is missing, or not prepared.
    """
    names = DATASETS[name].attributes.get("must_hold")
    if names is None:
        return
    folder = require_root(None if root is None else Path(root), name)
    if names and not any((folder / file).exists() for file in names):
        require_prepared(folder, name)


def require_root(root: Path | None, name: str) -> Path:
    """`root`; DatasetError where it is None or no folder."""
    if root is None:
        raise DatasetError(f"{name}: give the folder of the data with --data_root")
    if not root.is_dir():
        raise DatasetError(
            f"{name}: the folder {root} is missing{hint(root)}; data/{name}/README.md says how to make it"
        )
    return root


def require_prepared(root: Path | None, name: str) -> Path:
    """The description of a prepared dataset; DatasetError where the folder is missing or not prepared."""
    file = require_root(root, name) / DESCRIPTION
    if not file.exists():
        folder = file.parent
        unfinished = (folder / UNFINISHED).exists()
        state = "its preparation has not ended; run it again" if unfinished else "prepare it"
        raise DatasetError(
            f"{name}: {folder} has no {DESCRIPTION}, {state}: "
            f"{shell_command('prepare')} {name} --source RAW --output {folder}"
        )
    return file
