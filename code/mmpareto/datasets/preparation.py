"""Preparation: raw clips -> a folder that the loader reads; parallel, resumable, atomic, repeatable.

A prepared dataset:

    dataset.json                     name, modalities, classes, parameters, tool versions, what was left out and why
    splits/{train,val,test}.csv      id,label
    <modality>/<id><suffix>          a file, or a folder where the suffix is empty

dataset.json is written last: a folder that has none is not finished. A clip's files are made in a folder beside and
renamed into place, so that what is there is whole; after a kill, the same command goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import functools
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmpareto.datasets.base import SPLITS, DatasetError, Split
from mmpareto.datasets.files import refuse_special_file
from mmpareto.datasets.lists import CONTROL, check_ids, check_modality
from mmpareto.datasets.names import class_warnings, name_warnings
from mmpareto.datasets.workers import Died, run_in_processes
from mmpareto.json_files import read_object

DESCRIPTION = "dataset.json"
UNFINISHED = ".preparation.json"  # parameters of a preparation that has not ended
# may lie in a folder that a preparation begins; data/<dataset> has its README already
_HARMLESS = (UNFINISHED, f".{UNFINISHED}.part", "README.md")
_BESIDE = ".unfinished"  # where files are made before they are renamed into place
_LOCK = "lock"  # in it; shared by the workers that make a clip
_SHOWN = 50  # classes up to which the summary has a line for each
# the clip is not to blame for these
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UnusableError(Exception):
    """A clip's media cannot be used. `reason`: a few words that clips are counted by; `detail`: names the file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Clip:
    """A clip to prepare.

    id      its name in the prepared dataset.
    split   "train", "val" or "test".
    label   the name of its class.
    source  modality -> raw file; empty where the clip is listed but not there: it counts as missing.
    """

    id: str
    split: Split
    label: str
    source: Mapping[str, Path] = field(default_factory=dict)


Make = Callable[[Clip, Path], None]


@dataclass(frozen=True)
class _NoRoom:
    """The result of a clip whose files could not be written: the preparation stops, it goes on when there is room."""

    error: str


@dataclass(frozen=True)
class Outcome:
    """How many clips were prepared, are missing, and are unusable; `left_out` names each of these with its reason."""

    prepared: int
    missing: int
    unusable: int
    left_out: list[dict[str, str]]
    text: str

    @property
    def unusable_percent(self) -> float:
        """Unusable clips in percent of those that are there."""
        there = self.prepared + self.unusable
        return 100.0 * self.unusable / there if there else 0.0


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
    members: Callable[[Clip], Sequence[Clip]] | None = None,
    progress: bool = True,
) -> Outcome:
    """Prepares a dataset into the folder `output`, or goes on with a preparation that was cut short.

    name        of the dataset.
    clips       all that are listed, in their order.
    modalities  modality -> suffix of its file ("" for a folder).
    make        make(clip, folder) writes `folder / (modality + suffix)` for each modality; it raises UnusableError
                where the media cannot be used. It must be importable (functools.partial carries its parameters): it
                runs in worker processes. The same clip and parameters must give the same bytes.
    parameters  what makes the result what it is; a folder made with others is refused.
    workers     number of processes.
    tools       distributions whose versions dataset.json records.
    members     for files that hold many clips each: the clips in one of `clips`, asked for when all is made; splits and
                summary count these.

    Raises DatasetError: bad ids, other parameters than the folder was made with, nothing prepared at all, no room left.
    """
    check_ids([clip.id for clip in clips], name)
    for modality in modalities:
        check_modality(modality, name)
    _refuse_links(output, modalities)
    identity = {"name": name, "parameters": dict(parameters)}
    with _exclusive(output, identity):
        beside = _fresh_beside(output / _BESIDE)
        for modality in modalities:
            (output / modality).mkdir(exist_ok=True)
        reasons = {clip.id: ("missing", "not found in the source") for clip in clips if not clip.source}
        waiting = [clip for clip in clips if clip.source and not _finished(output, clip, modalities)]
        work = functools.partial(_make_one, beside=beside, output=output, modalities=dict(modalities), make=make)
        with tqdm(total=len(waiting), desc=name, unit="clip", disable=not progress, file=sys.stderr) as bar:
            for clip, result in run_in_processes(work, waiting, workers):
                bar.update()
                if isinstance(result, Died):
                    result = ("worker process died", result.cause)
                if isinstance(result, _NoRoom):
                    raise DatasetError(
                        f"{output}: {result.error}; make room, then run the same command again: it goes on from here"
                    )
                if result is not None:
                    reasons[clip.id] = result
        shutil.rmtree(output / _BESIDE, ignore_errors=True)
        if members is not None:
            within = {clip.id: members(clip) for clip in clips}
            reasons = {member.id: reasons[whole] for whole in reasons for member in within[whole]}
            clips = [member for clip in clips for member in within[clip.id]]
        outcome = _summary(clips, reasons, classes)
        if not outcome.prepared:
            raise DatasetError(f"{name}: not one of {len(clips)} clips could be prepared\n{outcome.text}")
        (output / DESCRIPTION).unlink(missing_ok=True)  # of an earlier run: the splits change now
        for split in SPLITS:
            rows = [(clip.id, clip.label) for clip in clips if clip.split == split and clip.id not in reasons]
            write_text(output / "splits" / f"{split}.csv", csv_text([("id", "label"), *rows]))
        description = identity | {
            "modalities": dict(modalities),
            "classes": list(classes),
            "versions": {tool: metadata.version(tool) for tool in tools},
            "clips": _counts(clips, reasons),
            "left_out": outcome.left_out,
        }
        write_text(output / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return outcome


def read_description(root: Path, name: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The dataset.json of a prepared dataset.

    parameters  that the dataset must have been prepared with.

    Raises DatasetError where the folder is missing, not prepared, of another dataset or made with other parameters.
    """
    file = root / DESCRIPTION
    if not root.is_dir():
        raise DatasetError(f"{name}: the folder {root} is missing; see data/{name}/README.md for how to make it")
    if not file.exists():
        state = "its preparation has not ended: run it again" if (root / UNFINISHED).exists() else "it is not prepared"
        raise DatasetError(
            f"{name}: {root} has no {DESCRIPTION}, {state}; python code/prepare.py {name} --source RAW --output {root}"
        )
    refuse_special_file(file)
    try:
        description = read_object(file)
        other_name, made_with = description["name"], description["parameters"]
        _check_description(description, file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{file}: cannot be read ({error}); delete the folder and prepare the dataset again"
        ) from error
    if other_name != name:
        raise DatasetError(f"{root} holds the dataset {other_name}, not {name}; give another --data_root")
    for key, value in (parameters or {}).items():
        if made_with.get(key) != value:
            raise DatasetError(
                f"{root} was prepared with {key} {made_with.get(key)}, the flags ask for {key} {value}; change the "
                f"flag, or prepare the dataset again with --{key} {value} into another folder"
            )
    return description


def _check_description(description: Mapping[str, Any], file: Path) -> None:
    """Raises ValueError or DatasetError where a dataset.json does not hold what preparations write.

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
    together = "".join(classes)
    if len(set(classes)) < len(classes) or "" in classes or CONTROL.search(together) or set("\r\n") & set(together):
        raise ValueError("names of classes that are empty, come twice or hold control characters")


def _refuse_links(output: Path, modalities: Iterable[str]) -> None:
    """Raises DatasetError where something in the folder would be written to, or emptied, elsewhere, or would wait."""
    lock = output / _BESIDE / _LOCK
    for path in (output / _BESIDE, lock, output / "splits", *(output / modality for modality in modalities)):
        if path.is_symlink():
            raise DatasetError(
                f"{path}: is a link, and a preparation writes there; delete it, or give another --output"
            )
    refuse_special_file(lock)


def _fresh_beside(place: Path) -> Path:
    """Clears what a killed run left in `place` and gives a new folder in it.

    Workers of a killed run end with the clip that they make. They are waited for: two must not make the same clip, and
    nothing may be deleted that one of them is about to rename into place.
    """
    place.mkdir(exist_ok=True)
    with open(place / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for the clips that a killed preparation still makes", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for path in place.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        return Path(tempfile.mkdtemp(dir=place))


def _make_one(
    clip: Clip, beside: Path, output: Path, modalities: Mapping[str, str], make: Make
) -> tuple[str, str] | _NoRoom | None:
    """Makes one clip's files in a folder in `beside`; the result is None, or why it is unusable."""
    folder = beside / clip.id
    try:
        with open(beside.parent / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            folder.mkdir()  # fails where another run has begun
            make(clip, folder)
            for modality, suffix in modalities.items():
                place = output / modality / (clip.id + suffix)
                if place.is_dir():  # whole, from a run that was killed between two modalities
                    shutil.rmtree(place)
                os.replace(folder / (modality + suffix), place)
    except UnusableError as error:
        return error.reason, error.detail
    except OSError as error:
        if error.errno in _NO_ROOM or "requested and" in str(error):  # what NumPy says instead
            return _NoRoom(str(error))
        return type(error).__name__, " ".join(str(error).split())
    except Exception as error:  # the run goes on without the clip, whatever is wrong with it, and says so
        return type(error).__name__, " ".join(str(error).split())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _finished(output: Path, clip: Clip, modalities: Mapping[str, str]) -> bool:
    return all((output / modality / (clip.id + suffix)).exists() for modality, suffix in modalities.items())


@contextlib.contextmanager
def _exclusive(output: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Holds the folder for one preparation with one set of parameters."""
    if output.exists() and not output.is_dir():
        raise DatasetError(f"{output} is a file; --output must name a folder")
    file = output / UNFINISHED
    earlier = next((f for f in (file, output / DESCRIPTION) if f.exists() and f.stat().st_size), None)
    if (
        earlier is None
        and output.is_dir()
        and any(path.name not in _HARMLESS and not _is_side_car(path) for path in output.iterdir())
    ):
        raise DatasetError(f"{output} holds other files and no {DESCRIPTION}; give --output a new or empty folder")
    if earlier is not None:
        refuse_special_file(earlier)
        try:
            saved = read_object(earlier)
            earlier_identity = {key: saved.get(key) for key in identity}
        except ValueError as error:
            raise DatasetError(
                f"{earlier}: cannot be read ({error}); delete the folder and prepare the dataset again"
            ) from error
        if earlier_identity != json.loads(json.dumps(identity)):
            raise DatasetError(
                f"{output} was prepared as {json.dumps(earlier_identity)}, expected {json.dumps(identity)}; "
                "give another --output, or delete the folder"
            )
    output.mkdir(parents=True, exist_ok=True)
    if earlier != file:
        write_text(file, json.dumps(identity))
    with open(file, "r+") as lock:  # network file systems refuse exclusive locks on files that are open to read
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(f"{output}: another process is preparing it; wait for it, or end it") from error
        (output / "splits").mkdir(exist_ok=True)
        yield
        file.unlink()


def _is_side_car(path: Path) -> bool:
    """Whether macOS left it: .DS_Store, or ._name beside a file."""
    return path.name == ".DS_Store" or path.name.startswith("._")


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.part")
    beside.unlink(missing_ok=True)
    with open(beside, "x", encoding="utf-8", newline="") as file:  # x: a link of that name is not followed
        file.write(text)
    os.replace(beside, path)


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows as comma-separated text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _state(reasons: Mapping[str, tuple[str, str]], clip: Clip) -> str:
    if clip.id not in reasons:
        return "prepared"
    return "unusable" if clip.source else "missing"


def _counts(clips: Sequence[Clip], reasons: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, dict[str, int]]]:
    """{split: {class: {"prepared", "missing", "unusable"}}}."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    states = Counter((clip.split, clip.label, _state(reasons, clip)) for clip in clips)
    for split, label in sorted({(clip.split, clip.label) for clip in clips}, key=lambda p: (SPLITS.index(p[0]), p[1])):
        row = {state: states[split, label, state] for state in ("prepared", "missing", "unusable")}
        counts.setdefault(split, {})[label] = row
    return counts


def _summary(clips: Sequence[Clip], reasons: Mapping[str, tuple[str, str]], classes: Sequence[str]) -> Outcome:
    states = Counter(_state(reasons, clip) for clip in clips)
    lines = [f"{'split':<6} {'class':<24} {'prepared':>8} {'missing':>8} {'unusable':>8}"]
    counts = _counts(clips, reasons)
    for split, by_class in counts.items():
        if len(by_class) > _SHOWN:  # all of them are in dataset.json
            sums = {
                state: sum(row[state] for row in by_class.values()) for state in ("prepared", "missing", "unusable")
            }
            by_class = {f"{len(by_class)} classes": sums}
        for label, row in by_class.items():
            lines.append(f"{split:<6} {label:<24} " + " ".join(f"{value:>8}" for value in row.values()))
    total = (states["prepared"], states["missing"], states["unusable"])
    lines.append(f"{'all':<31} " + " ".join(f"{value:>8}" for value in total))
    lines += [
        f"no clip of the split {split} is prepared: train.py needs some of each split"
        for split in SPLITS
        if not any(clip.split == split and clip.id not in reasons for clip in clips)
    ]
    nothing: dict[str, int] = {}
    by_split: dict[str, list[int]] = {
        split: [counts.get(split, {}).get(label, nothing).get("prepared", 0) for label in classes] for split in SPLITS
    }
    warnings = class_warnings(classes, by_split) + name_warnings("ids", [clip.id for clip in clips])
    lines += [f"warning: {text}" for text in warnings]
    left_out = [
        {
            "id": clip.id,
            "split": clip.split,
            "class": clip.label,
            "state": _state(reasons, clip),
            "reason": reasons[clip.id][0],
            "detail": reasons[clip.id][1],
        }
        for clip in clips
        if clip.id in reasons
    ]
    for reason, number in Counter(row["reason"] for row in left_out if row["state"] == "unusable").most_common():
        example = next(row for row in left_out if row["reason"] == reason)
        lines.append(f"unusable, {reason}: {number}, such as {example['id']}: {example['detail']}")
    return Outcome(*total, left_out, "\n".join(lines))
