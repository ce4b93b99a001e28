"""UTD-MHAD: from .mat files to sequences of their own length; splits by subject and by trial; bad files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.real import real
from entries.command import inside, refused
from scipy.io import savemat

from mmpareto import datasets
from mmpareto.cli import prepare
from mmpareto.datasets import SPLITS, DatasetError
from mmpareto.datasets.utd_mhad import ACTIONS, SHAPES, UTDMHAD, block
from mmpareto.preparation.utd_mhad import averaged, motion_maps

SUBJECTS, TRIALS = range(1, 9), range(1, 5)


def write_recording(root: Path, action: int, subject: int, trial: int) -> None:
    """A recording of 30 frames of joints and 50 inertial samples whose values say what it is."""
    random = np.random.default_rng([action, subject, trial])
    joints = random.normal(action, 0.1, (20, 3, 30))
    inertial = random.normal(-action, 0.1, (50, 6))
    for folder, name, array in (("Skeleton", "d_skel", joints), ("Inertial", "d_iner", inertial)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        savemat(root / folder / f"a{action}_s{subject}_t{trial}_{folder.lower()}.mat", {name: array})


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("utd")
    for action in (1, 27):
        for subject in SUBJECTS:
            for trial in TRIALS:
                write_recording(root, action, subject, trial)
    return root


def prepared(source: Path, output: Path, *flags: str) -> dict[str, UTDMHAD]:
    done = inside(prepare.main, "utd-mhad", "--source", source, "--output", output, "--workers", "1", *flags)
    assert done.returncode == 0, done.stderr
    parts = {split: datasets.build("utd-mhad", output, split) for split in SPLITS}
    assert all(isinstance(part, UTDMHAD) for part in parts.values())
    return parts  # type: ignore[return-value]


def who(part: UTDMHAD, letter: str) -> set[int]:
    """The subjects (s) or trials (t) in a split."""
    return {int(next(word[1:] for word in name.split("_") if word[0] == letter)) for name in part.sample_ids()}


def test_subjects_are_in_one_split_and_sequences_keep_their_length(raw: Path, tmp_path: Path) -> None:
    parts = prepared(raw, tmp_path / "out", "--rate", "25")
    assert {split: who(part, "s") for split, part in parts.items()} == {
        "train": {1, 3, 5},
        "val": {7},
        "test": {2, 4, 6, 8},
    }
    sample = parts["train"][0]
    assert (sample["id"], ACTIONS[sample["label"]]) == ("a1_s1_t1", "swipe_left")
    skeleton, inertial = sample["inputs"]["skeleton"], sample["inputs"]["inertial"]
    assert (skeleton.shape, inertial.shape, skeleton.dtype) == ((30, 60), (25, 6), torch.float32)
    assert torch.equal(skeleton[0, 9:12], torch.zeros(3))  # the hip centre of the first frame
    assert inertial[:, :3].mean() == pytest.approx(-1, abs=0.05)
    assert inertial[:, 3:].mean() == pytest.approx(-0.01, abs=0.005)
    assert parts["test"].modalities["inertial"].shape == (163, 6)
    assert {ACTIONS[label] for label in parts["train"].labels} == {"swipe_left", "squat"}


def test_validation_by_trial_and_all_by_trial(raw: Path, tmp_path: Path) -> None:
    parts = prepared(raw, tmp_path / "a", "--val_trials", "4")
    assert {split: (who(part, "s"), who(part, "t")) for split, part in parts.items()} == {
        "train": ({1, 3, 5, 7}, {1, 2, 3}),
        "val": ({1, 3, 5, 7}, {4}),
        "test": ({2, 4, 6, 8}, set(TRIALS)),
    }
    parts = prepared(raw, tmp_path / "b", "--split", "trial")
    assert {split: who(part, "t") for split, part in parts.items()} == {"train": {1, 2}, "val": {3}, "test": {4}}
    assert all(who(part, "s") == set(SUBJECTS) for part in parts.values())


def test_preparing_again_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepared(raw, tmp_path / name)
    files = [path for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) == 2 * 64 + 5
    assert all(path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() for path in files)


def test_means_of_blocks() -> None:
    assert averaged(np.arange(10.0).reshape(5, 2), 2).tolist() == [[1, 2], [5, 6], [8, 9]]
    assert [block(name, rate) for name in SHAPES for rate in (1000, 30, 15, 10)] == [1, 1, 2, 3, 1, 2, 3, 5]


def test_depth_motion_maps_of_a_square_that_moves() -> None:
    """10 x 10 points, two metres away, move 10 columns to the right; then nothing moves."""
    depth = np.zeros((240, 320, 3), np.uint16)
    depth[100:110, 50:60, 0] = 2000
    depth[100:110, 60:70, 1:] = 2000
    front, side, above = motion_maps(depth)
    assert front.min() == front.max() == 255  # both places changed by 2000
    assert not side.any()  # as many points at each height and depth as before
    assert above.min() == above.max() == 255  # one row, 125 x 16 mm away, of 20 columns that changed by 10 points
    depth[100:110, 60:70, 2] = 3000
    front, side, above = motion_maps(depth)
    # left 2000, right 2000 + 1000: a third less; bilinear in the middle
    assert (front[:, 0].tolist(), front[:, -1].tolist()) == ([170] * 64, [255] * 64)
    assert [(int(row[0]), int(row[-1])) for row in side] == [(255, 255)] * 64  # from bin 125 to bin 187
    assert side[:, 2:-2].max() == 0
    assert above[0].min() > 0
    assert above[-1, 0] == 0
    assert (above[0, -1], above[-1, -1]) == (255, 128)  # 10 points came and went; 10 came


def test_depth_is_a_modality_where_it_is_asked_for(tmp_path: Path) -> None:
    for subject in (1, 2, 7):
        write_recording(tmp_path / "raw", 1, subject, 1)
        depth = np.random.default_rng(subject).integers(800, 4000, (240, 320, 4)).astype(np.uint16)
        (tmp_path / "raw" / "Depth").mkdir(exist_ok=True)
        savemat(tmp_path / "raw" / "Depth" / f"a1_s{subject}_t1_depth.mat", {"d_depth": depth})
    parts = prepared(tmp_path / "raw", tmp_path / "out", "--modalities", "depth", "inertial")
    sample = parts["train"][0]["inputs"]
    assert {name: (value.dtype, list(value.shape)) for name, value in sample.items()} == {
        "inertial": (torch.float32, [17, 6]),
        "depth": (torch.uint8, [3, 64, 64]),
    }
    assert parts["train"].saved_readers() == {"depth": {"reader": "computed"}}
    np.save(tmp_path / "out" / "depth" / "a1_s1_t1.npy", np.zeros((3, 64, 63), np.uint8))
    with pytest.raises(DatasetError, match=r"expected uint8 \[3, 64, 64\], found uint8 \[3, 64, 63\]"):
        datasets.build("utd-mhad", tmp_path / "out", "train")


def test_damaged_files_are_left_out_and_counted(raw: Path, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for trial in TRIALS:
        for subject in (1, 2, 7):
            write_recording(root, 1, subject, trial)
    (root / "Inertial" / "a1_s1_t1_inertial.mat").unlink()
    (root / "Skeleton" / "a1_s1_t2_skeleton.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(100))
    savemat(root / "Skeleton" / "a1_s1_t3_skeleton.mat", {"d_skel": np.zeros((20, 3))})
    savemat(root / "Inertial" / "a1_s2_t1_inertial.mat", {"d_iner": np.full((9, 6), np.nan)})
    flags = ("--source", root, "--output", tmp_path / "out", "--workers", "1", "--max_unusable", "50")
    done = inside(prepare.main, "utd-mhad", *flags)
    assert done.returncode == 0, done.stderr
    reasons = {
        row["id"]: row["reason"] for row in json.loads((tmp_path / "out" / "dataset.json").read_text())["left_out"]
    }
    assert reasons == {
        "a1_s1_t1": "missing",
        "a1_s1_t2": "unreadable .mat file",
        "a1_s1_t3": "unexpected shape",
        "a1_s2_t1": "no finite numbers",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--val_subjects", "2"), "subject 2 is in --val_subjects and in --test_subjects"),
        (("--val_subjects", "7", "--val_trials", "4"), "give one of the two"),
        (("--split", "trial", "--val_trials", "4"), "belong to --split subject"),
        (("--modalities", "depth", "depth"), "name two or three of skeleton, inertial, depth"),
        (("--modalities", "skeleton", "depth"), "Depth holds no files such as a1_s1_t1_depth.mat"),
    ],
)
def test_contradicting_flags(raw: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in refused(prepare.main, "utd-mhad", "--source", raw, "--output", tmp_path / "out", *flags)


def test_folders_without_the_data(tmp_path: Path) -> None:
    flags = ("utd-mhad", "--source", tmp_path, "--output", tmp_path / "out")
    assert "Skeleton holds no files such as a1_s1_t1_skeleton.mat" in refused(prepare.main, *flags)
    with pytest.raises(DatasetError, match="is missing"):
        datasets.build("utd-mhad", tmp_path / "nothing", "train")


def test_damaged_prepared_files(raw: Path, tmp_path: Path) -> None:
    prepared(raw, tmp_path)
    np.save(tmp_path / "skeleton" / "a1_s1_t1.npy", np.zeros((5, 7), np.float32))
    with pytest.raises(DatasetError, match=r"a1_s1_t1.npy: expected float32 \[l, 60\], found float32 \[5, 7\]"):
        datasets.build("utd-mhad", tmp_path, "train")
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text.replace('"rate": 15.0', '"rate": null'))
    with pytest.raises(DatasetError, match=r"dataset\.json has the rate None"):
        datasets.build("utd-mhad", tmp_path, "train")


def test_the_real_recordings(tmp_path: Path) -> None:
    parts = prepared(real("utd_mhad"), tmp_path)
    assert {split: len(part) for split, part in parts.items()} == {"train": 323, "val": 108, "test": 430}
    assert len(set(parts["train"].labels)) == 27
    longest = [max(len(part[i]["inputs"]["skeleton"]) for i in range(len(part))) for part in parts.values()]
    assert max(longest) == 63


def test_actions_have_their_published_numbers() -> None:
    named = {7: "basketball_shoot", 8: "draw_x", 13: "boxing", 19: "knock", 22: "jog", 24: "sit_to_stand", 26: "lunge"}
    assert {number: ACTIONS[number - 1] for number in named} == named
    assert len(ACTIONS) == 27
