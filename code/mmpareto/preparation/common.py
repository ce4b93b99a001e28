"""Prepare clips into a folder that datasets read: parallel, resumable, atomic, repeatable.

A prepared dataset:

    dataset.json                     name, modalities, classes, parameters, tool versions, what was left out and why
    splits/{train,val,test}.csv      id,label, and absent (modalities with / between) where some clips lack one
    <modality>/<id><suffix>          a file, or a folder where the suffix is empty
    .sources.txt                     a digest of each clip's raw files: a clip whose files changed is made again

dataset.json is written last: a folder without it is not finished. A clip's files are made in a folder beside and
renamed into place, so that files in place are whole; after a kill, the same command continues.
"""

import argparse
import errno
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmpareto import registries
from mmpareto.data_folders import DESCRIPTION
from mmpareto.datasets.base import SPLITS, DatasetError, Split, UnusableError
from mmpareto.datasets.files import refuse_special_file
from mmpareto.datasets.in_memory import numbered_ids, read_array
from mmpareto.datasets.lists import SPLIT_SEED, check_ids, check_modality
from mmpareto.datasets.names import class_warnings, name_warnings
from mmpareto.datasets.workers import Died, run_in_processes
from mmpareto.escape import counted
from mmpareto.flag_values import count_or_zero, fraction
from mmpareto.preparation.folder import LOCK, exclusive
from mmpareto.preparation.sources import digest, forget_changed
from mmpareto.registry import Registry
from mmpareto.writing import lock, write_text

_BESIDE = ".unfinished"  # where files are made before they are renamed into place
_LOCK = "lock"  # in it; shared by the workers that make a clip
_SHOWN = 50  # classes up to which the summary has a line for each
_STATES = ["prepared", "missing", "unusable"]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no fault of the clip


@dataclass(frozen=True)
class Clip:
    """A clip to prepare.

    id      its name in the prepared dataset.
    split   "train", "val" or "test".
    label   the name of its class.
    source  {modality: raw file, or its text}; empty where the clip is listed but not there: it counts as missing.
    absent  modalities that the clip does not have: no file is made for them.
    raw     the raw files, where `source` names the folders that hold them.
    part    start and end in seconds: what the clip is of a raw file that may be longer.
    lost    why a clip without source lacks one that should be there: it counts as unusable.
    """

    id: str
    split: Split
    label: str
    source: Mapping[str, Any] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    raw: Sequence[Path] = ()
    part: tuple[float, float] | None = None
    lost: str = ""


Make = Callable[[Clip, Path], None]
Reason = tuple[str, str]  # why a clip is left out: a few words that clips are counted by, and details


@dataclass(frozen=True)
class _NoRoom:
    """The result of a clip whose files could not be written: the preparation stops until there is room."""

    error: str


@dataclass(frozen=True)
class Outcome:
    """How many clips were prepared, are missing, and are unusable; `left_out` names the last two with reasons."""

    prepared: int
    missing: int
    unusable: int
    left_out: list[dict[str, str]]
    text: str

    @property
    def unusable_percent(self) -> float:
        """Unusable clips in percent of those that are there."""
        present = self.prepared + self.unusable
        return 100.0 * self.unusable / present if present else 0.0


def add_cut_arguments(parser: argparse.ArgumentParser, fraction_help: str, default: float | None = None) -> None:
    """Add the flags of how validation is cut from train."""
    parser.add_argument("--val_fraction", type=fraction, default=default, metavar="X", help=fraction_help)
    parser.add_argument(
        "--split_seed", type=count_or_zero, default=SPLIT_SEED, metavar="N", help="of the cut (default: %(default)s)"
    )


PREPARATIONS: Registry[Outcome] = registries.PREPARATIONS


def prepare(
    output: Path,
    *,
    name: str,
    clips: Sequence[Clip],
    classes: Sequence[str],
    modalities: Mapping[str, str],
    make: Make,
    parameters: Mapping[str, Any],
    workers: int,
    tools: Sequence[str] = (),
    sources: Sequence[Path] = (),
    members: Callable[[Clip], Sequence[Clip]] | None = None,
) -> Outcome:
    """Prepare a dataset into the folder `output`, or continue a preparation that was cut short.

    name        of the dataset.
    clips       all that are listed, in their order.
    modalities  {modality: suffix of its file, "" for a folder}.
    make        make(clip, folder) writes `folder / (modality + suffix)` for each modality; it raises UnusableError
                where the media cannot be used. It must be importable (functools.partial carries its parameters): it
                runs in worker processes. The same clip and parameters must give the same bytes.
    parameters  what makes the result what it is; a folder made with others is refused.
    workers     number of processes.
    tools       distributions whose versions dataset.json records.
    sources     the folders of the raw files: a folder that is moved as a whole has not changed.
    members     for files that hold many clips each: the clips in one of `clips`, called when all is made; splits and
                summary count these.

    Raises DatasetError: bad ids, other parameters than the folder was made with, nothing prepared at all, no room left.
    """
    check_ids([clip.id for clip in clips], name)
    for modality in modalities:
        check_modality(modality, name)
    _refuse_links(output, modalities)
    identity = {"name": name, "parameters": dict(parameters), "modalities": dict(modalities)}
    with exclusive(output, identity):
        digests = {clip.id: digest(clip.raw or clip.source, sources) for clip in clips if clip.source}
        reasons = _make_all(output, name, clips, modalities, make, workers, digests)
        if members is not None:
            for whole, (reason, detail) in reasons.items():
                raise DatasetError(f"{name}: {whole} could not be made ({reason}: {detail})")
            clips = [member for clip in clips for member in members(clip)]
        table = _state_table(clips, reasons)
        outcome = _summary(table, classes)
        if not outcome.prepared:
            raise DatasetError(f"{name}: not one of {counted(len(clips), 'clip')} could be prepared\n{outcome.text}")
        (output / DESCRIPTION).unlink(missing_ok=True)  # of an earlier run: the splits change now
        columns = {"id": "id", "class": "label", "absent": "absent"}
        if not table["absent"].any():
            del columns["absent"]
        for split in SPLITS:
            rows = table.loc[(table["split"] == split) & (table["state"] == "prepared"), list(columns)]
            text = rows.to_csv(index=False, header=list(columns.values()), lineterminator="\n")
            write_text(output / "splits" / f"{split}.csv", text)
        counts = _counts(table)
        description = identity | {
            "classes": list(classes),
            "versions": {tool: metadata.version(tool) for tool in tools},
            "clips": {split: counts.loc[split].to_dict("index") for split in counts.index.unique("split")},
            "left_out": outcome.left_out,
        }
        write_text(output / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return outcome


def samples_of(whole: Clip, output: Path) -> list[Clip]:
    """The samples of a prepared split whose arrays hold all of them; see `prepare`."""
    labels = read_array(output / "label" / f"{whole.split}.npy")
    ids = numbered_ids(whole.split, len(labels))
    return [Clip(i, whole.split, str(label), whole.source) for i, label in zip(ids, labels, strict=True)]


def _make_all(
    output: Path,
    name: str,
    clips: Sequence[Clip],
    modalities: Mapping[str, str],
    make: Make,
    workers: int,
    digests: Mapping[str, str],
) -> dict[str, Reason]:
    """Make the files of all clips that lack some, or whose raw files changed; {id: reason} of those that are left out.

    digests  of the raw files, by id.
    """
    beside = _fresh_beside(output / _BESIDE)
    for modality in modalities:
        (output / modality).mkdir(exist_ok=True)
    forget_changed(output, digests, modalities)
    reasons = {
        clip.id: ("no such file", clip.lost) if clip.lost else ("missing", "not found in the source")
        for clip in clips
        if not clip.source
    }
    waiting = [
        clip
        for clip in clips
        if clip.source
        and not all((output / m / (clip.id + modalities[m])).exists() for m in modalities if m not in clip.absent)
    ]
    work = functools.partial(_make_one, beside=beside, output=output, modalities=dict(modalities), make=make)
    with tqdm(total=len(waiting), desc=name, unit="clip", file=sys.stderr) as bar:
        for clip, result in run_in_processes(work, waiting, workers):
            bar.update()
            if isinstance(result, _NoRoom):
                raise DatasetError(f"{output}: {result.error}; make room, then run the same command again to continue")
            if isinstance(result, Died):
                result = ("worker process died", result.cause)
            if result is not None:
                reasons[clip.id] = result
    shutil.rmtree(output / _BESIDE, ignore_errors=True)
    return reasons


def _refuse_links(output: Path, modalities: Iterable[str]) -> None:
    """Raise DatasetError where the preparation would write, or delete, outside of the folder, or would wait."""
    locks = (output / LOCK, output / _BESIDE / _LOCK)
    for path in (output / _BESIDE, *locks, output / "splits", *(output / modality for modality in modalities)):
        if path.is_symlink():
            raise DatasetError(
                f"{path}: is a link, and a preparation writes there; delete it, or give another --output"
            )
    for path in locks:
        refuse_special_file(path)


def _fresh_beside(place: Path) -> Path:
    """Clear what a killed run left in `place` and return a new folder in it.

    Workers of a killed run end with the clip that they make. They are waited for: two must not make the same clip, and
    nothing may be deleted that one of them is about to rename into place.
    """
    place.mkdir(exist_ok=True)
    with open(place / _LOCK, "a") as file:
        try:
            lock(file)
        except BlockingIOError:
            print("waiting for the clips that a killed preparation still makes", file=sys.stderr)
            lock(file, wait=True)
        for path in place.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        return Path(tempfile.mkdtemp(dir=place))


def _make_one(
    clip: Clip, beside: Path, output: Path, modalities: Mapping[str, str], make: Make
) -> Reason | _NoRoom | None:
    """Make one clip's files in a folder in `beside`; the result is None, or why it is unusable."""
    folder = beside / clip.id
    try:
        with open(beside.parent / _LOCK) as file:
            lock(file, shared=True, wait=True)
            folder.mkdir()  # fails where another run has begun
            make(clip, folder)
            for modality, suffix in modalities.items():
                if modality in clip.absent:
                    continue
                place = output / modality / (clip.id + suffix)
                if place.is_dir():  # whole, from a run that was killed between two modalities
                    shutil.rmtree(place)
                os.replace(folder / (modality + suffix), place)
    except UnusableError as error:
        return error.reason, error.detail
    except Exception as error:  # the run continues without the clip, whatever is wrong with it, and says so
        if isinstance(error, OSError) and (error.errno in _NO_ROOM or "requested and" in str(error)):  # NumPy's text
            return _NoRoom(str(error))
        return type(error).__name__, " ".join(str(error).split())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _state_table(clips: Sequence[Clip], reasons: Mapping[str, Reason]) -> pd.DataFrame:
    """A row for each clip: id, split, class, absent modalities, state, and if it is left out reason and detail."""
    rows = []
    for clip in clips:
        state = "prepared" if clip.id not in reasons else "unusable" if clip.source or clip.lost else "missing"
        rows.append(
            (clip.id, clip.split, clip.label, "/".join(sorted(clip.absent)), state, *reasons.get(clip.id, ("", "")))
        )
    return pd.DataFrame(rows, columns=["id", "split", "class", "absent", "state", "reason", "detail"], dtype=object)


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    """Clips of each split and class (rows, classes by alphabet) in each state (columns)."""
    counts = pd.crosstab([table["split"], table["class"]], table["state"]).reindex(columns=_STATES, fill_value=0)
    return counts.reindex([split for split in SPLITS if split in counts.index.unique("split")], level="split")


def _summary(table: pd.DataFrame, classes: Sequence[str]) -> Outcome:
    """Count and name what was prepared and what was left out."""
    lines = [f"{'split':<6} {'class':<24} {'prepared':>8} {'missing':>8} {'unusable':>8}"]
    counts = _counts(table)
    for split in counts.index.unique("split"):
        by_class = counts.loc[split]
        if len(by_class) > _SHOWN:  # all of them are in dataset.json
            by_class = by_class.sum().to_frame(f"{counted(len(by_class), 'class')}").T
        lines += [
            f"{split:<6} {label:<24} " + " ".join(f"{value:>8}" for value in row)
            for label, *row in by_class.itertuples()
        ]
    total = counts.sum()
    lines.append(f"{'all':<31} " + " ".join(f"{value:>8}" for value in total))
    prepared = counts["prepared"].unstack("class", fill_value=0).reindex(SPLITS, columns=classes, fill_value=0)
    lines += [
        f"no clip of the split {split} is prepared: train.py needs some of each split"
        for split in SPLITS
        if not prepared.loc[split].any()
    ]
    warnings = class_warnings(classes, {split: prepared.loc[split].tolist() for split in SPLITS}) + name_warnings(
        "ids", table["id"].tolist()
    )
    lines += [f"warning: {text}" for text in warnings]
    left_out = table[table["state"] != "prepared"].drop(columns="absent")
    unusable = left_out[left_out["state"] == "unusable"]
    for reason, number in unusable["reason"].value_counts().items():
        example = unusable[unusable["reason"] == reason].iloc[0]
        lines.append(f"unusable, {reason}: {number}, such as {example['id']}: {example['detail']}")
    return Outcome(**total.to_dict(), left_out=left_out.to_dict("records"), text="\n".join(lines))
