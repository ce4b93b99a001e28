"""What a run's directory says of its data and its readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmpareto.datasets import DATASETS, DatasetError, MultimodalDataset
from mmpareto.datasets.reading import read_input
from mmpareto.errors import UsageError
from mmpareto.models import build_model
from mmpareto.runs import RunDirectory
from mmpareto.training.restore import (
    other_samples,
    refuse_other_samples,
    resolved,
    saved_modalities,
    saved_rates,
    saved_readers,
)
from mmpareto.training.setup import samples


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


class Named(MultimodalDataset):
    """Samples of two classes in turn, known by their ids."""

    def __init__(self, ids: str) -> None:
        super().__init__()
        self.ids, self.labels = list(ids), np.arange(len(ids)) % 2

    def sample_ids(self) -> list[str]:
        return self.ids


def test_a_run_goes_on_with_the_same_samples_not_with_others_of_the_same_classes(tmp_path: Path) -> None:
    data: dict[str, MultimodalDataset] = {"train": Named("abcd"), "val": Named("ef"), "test": Named("gh")}
    swapped = data | {"train": Named("ebcd"), "val": Named("af")}
    run = directory(tmp_path, "mine", samples=samples(data))
    refuse_other_samples(run, data | {"test": Named("g")})
    with pytest.raises(UsageError, match=r"began with other samples of train \(\{'number': 4, 'labels': .* 'ids': "):
        refuse_other_samples(run, swapped)
    assert other_samples(run, "test", Named("ga"))
    assert not other_samples(run, "test", data["test"])
    earlier = {split: {key: known[key] for key in ("number", "labels")} for split, known in samples(data).items()}
    for before in ({"samples": earlier}, {}, {"samples": {}}):
        run = directory(tmp_path, "mine", **before)
        refuse_other_samples(run, swapped)
    run = directory(tmp_path, "mine", samples=earlier)
    with pytest.raises(UsageError, match=r"other samples of val \(\{'number': 2, 'labels': '\w+'\}, now \{'number': 3"):
        refuse_other_samples(run, data | {"val": Named("efg")})


def test_a_run_that_goes_on_keeps_the_rates_of_its_sounds(tmp_path: Path) -> None:
    """Its sounds are not looked at again."""

    class Sounds(Named):
        def saved_readers(self) -> dict[str, dict[str, Any]]:
            return {"left": {"reader": "sound"}, "right": {"reader": "sound", "rates": {"8000": 2}}, "x": {}}

    known = {"reader": "sound", "rates": {"16000": 4}}
    run = directory(tmp_path, "mine", readers={"left": known, "right": known, "x": {"reader": "image"}, "gone": known})
    about = dict.fromkeys(("left", "right"), ("vector", (2,)))
    model = build_model(about, 2, dict.fromkeys(about, "mlp"))
    dataset = Sounds("ab")
    dataset.modalities, dataset.classes = {}, ["a", "b"]
    content = resolved({"train": dataset}, model, {}, saved_rates(run))
    rates = {name: reader.get("rates") for name, reader in content["readers"].items()}
    assert rates == {"left": {"16000": 4}, "right": {"8000": 2}, "x": None}
    assert saved_rates(directory(tmp_path, "mine")) == {}
    assert saved_rates(directory(tmp_path, "mine", readers=[known])) == {}
