"""What a run took from its training data is kept: for datasets of every kind, whatever the files hold later."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from datasets.make_manifest import write_manifest
from datasets.make_media import tone, write_frames, write_wav

from mmpareto.datasets import DatasetError, Modality, MultimodalDataset, Split, build, modality_from


def test_normalised_features_of_cremad_stay_what_the_first_run_found(tmp_path: Path) -> None:
    clips = {"train": ["1001_DFA_ANG_XX", "1002_DFA_ANG_XX"], "test": ["1003_DFA_ANG_XX"]}
    (tmp_path / "audio").mkdir()
    for split, names in clips.items():
        (tmp_path / f"{split}.csv").write_text("".join(f"{name},ANG\n" for name in names))
        for name in names:
            write_frames(tmp_path / "visual" / name, ["1.jpg"])
            np.save(tmp_path / "audio" / f"{name}.npy", np.full((1024, 128), -1.0, np.float32))
    first = build("cremad", tmp_path, "train", image_size=8)
    assert first.modalities["audio"].mean is None  # normalised already
    np.save(tmp_path / "audio" / "1001_DFA_ANG_XX.npy", np.full((1024, 128), -9.0, np.float32))  # log energies
    later = build("cremad", tmp_path, "test", image_size=8, modalities=first.modalities)
    assert later.modalities == first.modalities
    assert build("cremad", tmp_path, "test", image_size=8).modalities["audio"].mean is not None


def test_a_manifests_lengths_and_shapes_stay(tmp_path: Path) -> None:
    rows = write_manifest(tmp_path, val=True)
    options = {"image_size": 8, "frames": 1}
    first = build("manifest", tmp_path, "train", **options)
    for row in rows:
        if row["split"] == "train":
            write_wav(tmp_path / row["sound"], tone(0.9))
            np.save(tmp_path / row["sensor"], np.zeros((2, 2), np.float32))
    later = build("manifest", tmp_path, "test", **options, modalities=first.modalities)
    assert later.modalities == first.modalities
    assert later[0]["inputs"]["sound"].shape == (1, 48, 128)


class Standardised(MultimodalDataset):
    """Vectors, whose mean a subclass derives from what it reads."""

    mean, width = 1.0, 2

    def __init__(self, root: Path | None, split: Split, *, seed: int = 0) -> None:
        super().__init__(seed)
        self.modalities = {"left": Modality("vector", (self.width,), (self.mean,) * self.width, (1.0,) * self.width)}
        self.classes, self.labels = ["no"], np.zeros(1, np.int64)


def test_means_of_a_class_of_ones_own_stay_and_other_shapes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:Standardised"
    first = build(name, None, "train")
    monkeypatch.setattr(Standardised, "mean", 5.0)
    assert build(name, None, "test").modalities["left"].mean == (5.0, 5.0)
    assert build(name, None, "test", modalities=first.modalities).modalities == first.modalities
    monkeypatch.setattr(Standardised, "width", 3)
    with pytest.raises(DatasetError, match=r"left is now vector \[3\], the run was trained on vector \[2\]"):
        build(name, None, "test", modalities=first.modalities)


def test_modalities_are_saved_as_json() -> None:
    modality = Modality("image", (3, 8, 8), (0.1, 0.2, 0.3), None)
    assert modality_from(asdict(modality)) == modality
    for damaged in ({"kind": "smell"}, {"shape": [0]}, {"shape": [2.5]}, {"shape": 3}, {"mean": ["x"]}, {"mean": 1}):
        with pytest.raises((TypeError, ValueError)):
            modality_from(asdict(modality) | damaged)
