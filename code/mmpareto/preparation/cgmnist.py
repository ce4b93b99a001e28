"""Prepare CG-MNIST: MNIST's idx files, or a published coloured MNIST, as arrays that load fast.

train.py reads the raw files as well; prepared files need no colouring, and keep the colours for other programs:
{gray,colour,label}/{train,val,test}.npy, uint8 [N, channels, 28, 28] and int64 [N].
"""

import argparse
import functools
from pathlib import Path

from mmpareto.datasets.base import SPLITS
from mmpareto.datasets.cgmnist import load, raw_files
from mmpareto.datasets.files import write_array
from mmpareto.datasets.in_memory import DIGITS
from mmpareto.flag_values import fraction
from mmpareto.preparation.common import PREPARATIONS, Clip, Outcome, samples_of
from mmpareto.preparation.common import prepare as prepare_clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this preparation."""
    parser.add_argument(
        "--variance", type=fraction, default=0.03, metavar="X", help="of the colours (default: 0.03; 0.02 is used too)"
    )


@PREPARATIONS.register("cgmnist", summary="coloured-and-gray MNIST, from MNIST")
def prepare(args: argparse.Namespace) -> Outcome:
    """Prepare the dataset as the flags say; a split's digits share a file for each modality."""
    load(args.source, "test", args.variance)  # raises before any work where raw files are missing or damaged
    raw = raw_files(args.source, args.variance)
    clips = [Clip(split, split, "", {"mnist": args.source}, raw=raw) for split in SPLITS]
    return prepare_clips(
        args.output,
        name="cgmnist",
        clips=clips,
        classes=DIGITS,
        modalities={"gray": ".npy", "colour": ".npy", "label": ".npy"},
        make=functools.partial(make, variance=args.variance),
        parameters={"variance": args.variance},
        workers=min(args.workers, len(clips)),
        tools=("numpy", "scikit-learn"),
        sources=(args.source,),
        members=functools.partial(samples_of, output=args.output),
    )


def make(clip: Clip, folder: Path, *, variance: float) -> None:
    """Write the arrays of one split."""
    images, labels = load(clip.source["mnist"], clip.split, variance)
    for name, array in {**images, "label": labels}.items():
        write_array(folder / f"{name}.npy", array)
