"""Prepare UTD-MHAD from its .mat files: Skeleton/a<action>_s<subject>_t<trial>_skeleton.mat, and Inertial/ and Depth/.

skeleton/<id>.npy  float32 [l, 60]: x, y, z of 20 joints in metres, relative to the hip centre of the first frame.
inertial/<id>.npy  float32 [l, 6]: acceleration in g, angular velocity in 100 degrees a second.
depth/<id>.npy     uint8 [3, 64, 64], with --modalities skeleton inertial depth: depth motion maps from the front, the
                   side and above.

Splits:
  subject  no subject is in two splits: 1, 3, 5, 7 train and 2, 4, 6, 8 test, as usual; of the training subjects 7 is
           validation, or with --val_trials some trials of all of them are.
  trial    all subjects are in all splits: trials 1 and 2 train, 3 validation, 4 test.
"""

import argparse
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmpareto.datasets.base import DatasetError, Split, UnusableError
from mmpareto.datasets.files import refuse_special_file, write_array
from mmpareto.datasets.utd_mhad import ACTIONS, MAP_SHAPE, block
from mmpareto.flag_values import count, positive
from mmpareto.preparation.common import PREPARATIONS, Clip, Outcome
from mmpareto.preparation.common import prepare as prepare_clips

# folder, name of the array, and its shape; 0: any length
FILES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "skeleton": ("Skeleton", "d_skel", (20, 3, 0)),
    "inertial": ("Inertial", "d_iner", (0, 6)),
    "depth": ("Depth", "d_depth", (240, 320, 0)),
}
TEST_SUBJECTS, VAL_SUBJECTS = [2, 4, 6, 8], [7]
TRIALS: dict[int, Split] = {3: "val", 4: "test"}
HIP_CENTRE = 3  # of the Kinect's 20 joints, from 0: head, shoulder centre, spine, hip centre, ...
_DEGREES = 100.0  # a second: the unit of angular velocity
_MILLIMETRES = 16  # of depth, a pixel of the maps from the side and from above
_FARTHEST = 4096  # millimetres
_NAME = re.compile(r"a(\d+)_s(\d+)_t(\d+)_([a-z]+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this preparation."""
    parser.add_argument(
        "--modalities",
        nargs="+",
        choices=tuple(FILES),
        default=["skeleton", "inertial"],
        help="two or three of skeleton, inertial and depth (default: skeleton inertial)",
    )
    parser.add_argument("--split", choices=("subject", "trial"), default="subject", help="(default: subject)")
    parser.add_argument(
        "--rate",
        type=positive,
        default=15.0,
        metavar="HZ",
        help="samples a second, by averaging; recorded are 30 (skeleton) and 50 (inertial) (default: 15)",
    )
    numbers: dict[str, Any] = {"type": count, "nargs": "+", "metavar": "N"}
    parser.add_argument("--test_subjects", default=TEST_SUBJECTS, help="(default: 2 4 6 8)", **numbers)
    parser.add_argument(
        "--val_subjects", help="of the others, as validation (default: 7, without --val_trials)", **numbers
    )
    parser.add_argument("--val_trials", help="of all training subjects, as validation (default: none)", **numbers)


@PREPARATIONS.register("utd-mhad", summary="UTD-MHAD, from its .mat files")
def prepare(args: argparse.Namespace) -> Outcome:
    """Prepare the dataset as the flags say."""
    modalities = [name for name in FILES if name in args.modalities]
    if len(modalities) < 2:
        raise DatasetError(f"--modalities {' '.join(args.modalities)}: name two or three of {', '.join(FILES)}")
    files = {name: _files(args.source, name) for name in modalities}
    split_of, parameters = _splits(args)
    clips = []
    for key in sorted(set[tuple[int, int, int]]().union(*files.values())):
        action, subject, trial = key
        if not 1 <= action <= len(ACTIONS):
            raise DatasetError(f"{args.source}: there is no action {action} in UTD-MHAD, 1 to {len(ACTIONS)} are")
        source = {name: paths[key] for name, paths in files.items() if key in paths}
        whole = source if len(source) == len(files) else {}
        clips.append(Clip(f"a{action}_s{subject}_t{trial}", split_of(subject, trial), ACTIONS[action - 1], whole))
    return prepare_clips(
        args.output,
        name="utd-mhad",
        clips=clips,
        classes=ACTIONS,
        modalities=dict.fromkeys(modalities, ".npy"),
        make=functools.partial(make, rate=args.rate),
        parameters=parameters | {"rate": args.rate},
        workers=args.workers,
        tools=("numpy", "pillow", "scipy") if "depth" in modalities else ("numpy", "scipy"),
        sources=(args.source,),
    )


def _splits(args: argparse.Namespace) -> tuple[Callable[[int, int], Split], dict[str, Any]]:
    """The split of a subject and a trial, and the parameters that it depends on."""
    if args.split == "trial":
        if args.test_subjects != TEST_SUBJECTS or args.val_subjects or args.val_trials:
            raise DatasetError("--test_subjects, --val_subjects and --val_trials belong to --split subject")
        return lambda subject, trial: TRIALS.get(trial, "train"), {"split": "trial"}
    if args.val_subjects and args.val_trials:
        raise DatasetError("--val_subjects and --val_trials both choose the validation split: give one of the two")
    val_subjects = [] if args.val_trials else args.val_subjects or VAL_SUBJECTS
    val_trials = args.val_trials or []
    both = sorted(set(val_subjects) & set(args.test_subjects))
    if both:
        raise DatasetError(f"subject {both[0]} is in --val_subjects and in --test_subjects; give it to one of them")

    def split_of(subject: int, trial: int) -> Split:
        if subject in args.test_subjects:
            return "test"
        return "val" if subject in val_subjects or trial in val_trials else "train"

    return split_of, {
        "split": "subject",
        "test_subjects": sorted(args.test_subjects),
        "val_subjects": sorted(val_subjects),
        "val_trials": sorted(val_trials),
    }


def _files(source: Path, modality: str) -> dict[tuple[int, int, int], Path]:
    """{(action, subject, trial): file} of a modality.

    Raises:
        DatasetError: where there are none.
    """
    folder = FILES[modality][0]
    matches = {path: _NAME.fullmatch(path.stem) for path in sorted((source / folder).glob("*.mat"))}
    files = {
        (int(match[1]), int(match[2]), int(match[3])): path
        for path, match in matches.items()
        if match is not None and match[4] == modality
    }
    if not files:
        raise DatasetError(f"{source / folder} holds no files such as a1_s1_t1_{modality}.mat; --source names the "
                           f"folder that has {folder} in it")  # fmt: skip
    return files


def make(clip: Clip, folder: Path, *, rate: float) -> None:
    """Write `folder/<modality>.npy` for each modality of a recording; sequences at `rate` samples a second."""
    for name, path in clip.source.items():
        _, key, shape = FILES[name]
        array = read_mat(path, key)
        if array.ndim != len(shape) or any(size and size != n for size, n in zip(shape, array.shape, strict=True)):
            expected = ", ".join(str(size or "T") for size in shape)
            raise UnusableError("unexpected shape", f"{path}: {key} {list(array.shape)}, expected [{expected}]")
        if name == "depth":
            values = motion_maps(array)
        elif name == "skeleton":
            frames = array.transpose(2, 0, 1).astype(np.float64)  # [T, 20, 3]
            frames -= frames[:1, HIP_CENTRE : HIP_CENTRE + 1]
            values = averaged(frames.reshape(len(frames), -1), block(name, rate))
        else:
            values = averaged(array / np.array([1, 1, 1, _DEGREES, _DEGREES, _DEGREES]), block(name, rate))
        write_array(folder / f"{name}.npy", values)


def motion_maps(depth: np.ndarray) -> np.ndarray:
    """Depth motion maps of a recording from the front, the side and above: uint8 [3, 64, 64].

    Each frame is projected onto three planes; a map is the sum of the absolute differences of successive projections,
    cut to where something moves, resized, and divided by its greatest value. The front shows the depth itself, the
    other two how many points lie at a height, or a width, and a depth. Chen, Liu & Kehtarnavaz, "Real-time human action
    recognition based on depth motion maps", Journal of Real-Time Image Processing 2016.

    Args:
        depth: [240, 320, T] in millimetres; 0: nothing was measured there.

    Raises:
        UnusableError: where it has one frame only.
    """
    height, width, frames = depth.shape
    if frames < 2:
        raise UnusableError("too short", "the depth has one frame, motion needs two")
    bins = _FARTHEST // _MILLIMETRES
    rows, columns = np.indices((height, width))
    maps = [np.zeros((height, width)), np.zeros((height, bins)), np.zeros((bins, width))]
    before: list[np.ndarray] = []
    for frame in np.moveaxis(depth.astype(np.int64), 2, 0):
        measured = frame > 0
        places = np.minimum(frame[measured] // _MILLIMETRES, bins - 1)
        side = np.bincount(rows[measured] * bins + places, minlength=height * bins).reshape(height, bins)
        above = np.bincount(places * width + columns[measured], minlength=bins * width).reshape(bins, width)
        for total, projection, previous in zip(maps, (frame, side, above), before or (frame, side, above), strict=True):
            total += np.abs(projection - previous)
        before = [frame, side, above]
    return np.stack([_shown(motion) for motion in maps])


def _shown(motion: np.ndarray) -> np.ndarray:
    """A map of motion, cut to where it is not zero, as uint8 [64, 64]."""
    from PIL import Image

    if not motion.any():
        return np.zeros(MAP_SHAPE[1:], np.uint8)
    rows, columns = np.flatnonzero(motion.any(1)), np.flatnonzero(motion.any(0))
    cut = motion[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    resized = np.asarray(Image.fromarray(cut).resize(MAP_SHAPE[:0:-1], Image.Resampling.BILINEAR))
    return np.rint(255 * resized / max(resized.max(), np.finfo(np.float32).tiny)).astype(np.uint8)


def averaged(values: np.ndarray, size: int) -> np.ndarray:
    """Means of blocks of `size` samples, the last one shorter: [l, D] -> float32 [ceil(l / size), D]."""
    starts = np.arange(0, len(values), size)
    lengths = np.diff(np.append(starts, len(values)))
    return (np.add.reduceat(values, starts) / lengths[:, None]).astype(np.float32)


def read_mat(path: Path, name: str) -> np.ndarray:
    """An array of a MATLAB file.

    Raises UnusableError where the file cannot be read, or lacks the array, or holds no finite numbers in it.
    """
    from scipy.io import loadmat

    refuse_special_file(path)
    try:
        array = loadmat(path, variable_names=[name])[name]
    except Exception as error:  # SciPy raises a dozen kinds for damaged files
        raise UnusableError("unreadable .mat file", f"{path}: no array {name} ({error})") from error
    if array.dtype.kind not in "iuf" or not array.size or not np.isfinite(array).all():
        raise UnusableError("no finite numbers", f"{path}: {name}")
    assert isinstance(array, np.ndarray)
    return array
