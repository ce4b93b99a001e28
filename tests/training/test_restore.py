"""What a run's directory says of its data and its readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpareto.datasets import DATASETS, DatasetError
from mmpareto.datasets.reading import read_input
from mmpareto.runs import RunDirectory
from mmpareto.training.restore import saved_modalities, saved_readers


def directory(folder: Path, dataset: str, **resolved: object) -> RunDirectory:
    """A run directory with these settings alone."""
    (folder / "config.yaml").write_text(f"data:\n  dataset: {dataset}\n")
    (folder / "resolved.json").write_text(json.dumps(resolved))
    return RunDirectory(folder)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("dataset", "name", "shape", "message"),
    [
        ("avmnist", "image", (1, 28, 28), "is a picture, and the run was trained on values that prepare.py computes"),
        ("utd-mhad", "depth", (3, 64, 64), r"give such an array \(.npy, .pt\) of shape \[3, 64, 64\]"),
        ("cgmnist", "gray", (1, 28, 28), None),
    ],
)
def test_a_picture_is_refused_for_computed_values(
    dataset: str, name: str, shape: tuple[int, ...], message: str | None, known: bool, tmp_path: Path
) -> None:
    """For a run that does not say it, too: earlier versions did not."""
    about = {"kind": "image", "shape": shape, "mean": None, "std": None}
    readers = {name: {"reader": "computed"}} if known and message else {}
    assert (name in getattr(DATASETS[dataset].source, "computed", ())) == (message is not None)
    run = directory(tmp_path, dataset, modalities={name: about}, readers=readers)
    reader, modality = saved_readers(run)[name], saved_modalities(run)[name]
    Image.new("L", shape[:0:-1]).save(tmp_path / "a.png")
    if message is None:
        assert read_input(tmp_path / "a.png", reader, modality).shape == shape
    else:
        with pytest.raises(DatasetError, match=message):
            read_input(tmp_path / "a.png", reader, modality)
        with pytest.raises(DatasetError, match=r"a.gif: expected a file with one of .npy, .pt$"):
            read_input(tmp_path / "a.gif", reader, modality)
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    assert read_input(tmp_path / "a.npy", reader, modality).shape == shape
