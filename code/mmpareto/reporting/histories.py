"""What a run wrote while it trained (metrics.csv, gradients.csv, layers.csv) and what evaluate.py added, as arrays."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmpareto import runs
from mmpareto.escape import csv_text, shortened
from mmpareto.reporting.finished import AGAIN, FinishedRun, present
from mmpareto.runs import RunDirectory, RunError

STEP_COLUMNS = ("epoch", "step", "cosine", "joint_norm", "unimodal_norm", "joint_weight", "conflict")
METHOD = "method_"  # how the columns of metrics.csv begin that are a method's own
PLACES = {"epoch": 1e6, "step": 1e12}  # columns along which values are drawn, and how far at most
GREATEST = 1e300  # of a number that is drawn
MOST_BYTES = 2**31  # of a table
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: counts [C, C], row the class, column the prediction; the classes' names."""

    counts: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """A run over its training.

    epochs  `epoch`, `val_accuracy_<name>` and what the method told of itself, `method_<name>`; an entry per epoch
    steps   {encoder: STEP_COLUMNS, an entry per measured step}; empty where nothing was measured
    layers  {encoder: {parameter tensor: conflict rate in 0 .. 1 over the measured steps}}, from the inputs on; likewise
    confusion  of the joint head on the test split, None where evaluate.py has not scored this run's selected model
    """

    epochs: Columns
    steps: dict[str, Columns]
    layers: dict[str, dict[str, float]]
    confusion: Confusion | None = None


def history(run: FinishedRun) -> History:
    """Reads a run's metrics.csv, gradients.csv, layers.csv and evaluation_test.json.

    Raises RunError where one of them cannot be used.
    """
    columns = ["epoch", *(f"val_accuracy_{name}" for name in ("joint", *run.modalities))]
    path = run.path / runs.METRICS
    epochs, _ = _read(path, columns, also=METHOD)
    trained = run.results.get("epochs_trained")
    if len(epochs["epoch"]) == 0 or (isinstance(trained, int) and len(epochs["epoch"]) != trained):
        raise RunError(
            f"{path} is damaged: it has {len(epochs['epoch'])} epochs, {runs.RESULTS} says {trained}; {AGAIN}"
        )
    return History(epochs, _steps(run.path / runs.GRADIENTS), _layers(run.path / runs.LAYERS), _confusion(run))


def _steps(path: Path) -> dict[str, Columns]:
    """`History.steps`."""
    if not present(path) or path.stat().st_size == 0:
        return {}
    steps, (encoders,) = _read(path, STEP_COLUMNS, "encoder")
    names, places = list(dict.fromkeys(encoders)), np.zeros(len(encoders), dtype=np.int64)
    number = {name: place for place, name in enumerate(names)}
    places[:] = [number[name] for name in encoders]
    return {
        name: {column: values[places == place] for column, values in steps.items()} for place, name in enumerate(names)
    }


def _layers(path: Path) -> dict[str, dict[str, float]]:
    """`History.layers`: the epochs' rates, each weighted by its steps."""
    if not present(path) or path.stat().st_size == 0:  # earlier versions wrote none
        return {}
    columns, texts = _read(path, ("steps", "conflict_rate"), "encoder", "layer")
    sums: dict[str, dict[str, tuple[float, float]]] = {}
    numbers = (columns[name].tolist() for name in ("steps", "conflict_rate"))
    for encoder, layer, steps, rate in zip(*texts, *numbers, strict=True):
        layers = sums.setdefault(encoder, {})
        conflicts, all_steps = layers.get(layer, (0.0, 0.0))
        layers[layer] = (conflicts + (steps * rate if steps else 0.0), all_steps + steps)
    return {
        encoder: {layer: conflicts / steps if steps else math.nan for layer, (conflicts, steps) in own.items()}
        for encoder, own in sums.items()
    }


def _confusion(run: FinishedRun) -> Confusion | None:
    """`History.confusion`; an evaluation made before training ended or of another checkpoint is as none."""
    name = runs.EVALUATION.format("test")
    if not present(run.path / name):
        return None
    content = RunDirectory(run.path).read_json(name)
    try:
        if not content["finished"] or content["selected_epoch"] != run.results["selected_epoch"]:
            return None
        counts = np.array(content["joint"]["confusion"], dtype=np.float64)
        classes = tuple(str(entry["class"]) for entry in content["joint"]["per_class"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{run.path / name} has no confusion matrix ({error}); run evaluate.py again") from error
    if counts.shape != (len(classes), len(classes)):
        raise RunError(f"{run.path / name}: a confusion matrix of shape {counts.shape} for {len(classes)} classes")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise RunError(f"{run.path / name}: a confusion matrix with entries that are no counts; run evaluate.py again")
    return Confusion(counts, classes)


def across(series: Sequence[tuple[np.ndarray, np.ndarray]], edges: np.ndarray) -> tuple[np.ndarray, ...]:
    """Several runs' series over the same bins: centre, mean over runs, sample deviation over runs.

    series  (position, value) of each run; a run counts in a bin by the mean of its values there, NaN left out
    edges   of the bins, ascending; bins without a value are left out; the deviation is NaN where one run is in a bin

    The centre of a bin is the mean position of the values in it.
    """
    n = len(edges) - 1
    means = np.full((len(series), n), np.nan)
    places, counts = np.zeros(n), np.zeros(n)
    for row, (position, value) in enumerate(series):
        present = np.isfinite(value)
        bins = np.clip(np.searchsorted(edges, position[present], side="right") - 1, 0, n - 1)
        count = np.bincount(bins, minlength=n)
        total = np.bincount(bins, value[present], n)
        np.divide(total, count, out=means[row], where=count > 0)
        places += np.bincount(bins, position[present], n)
        counts += count
    there = counts > 0
    means, members = means[:, there], np.isfinite(means[:, there]).sum(axis=0)
    mean = np.nansum(means, axis=0) / members
    squares = np.nansum((means - mean) ** 2, axis=0)
    deviation = np.sqrt(np.divide(squares, members - 1, out=np.full_like(mean, np.nan), where=members > 1))
    return places[there] / counts[there], mean, deviation


def step_edges(positions: Sequence[np.ndarray], most: int = 200) -> np.ndarray:
    """Edges of at most `most` equal bins over steps; a bin per step where there are few enough."""
    measured = np.unique(np.concatenate([np.zeros(1), *positions]))
    if len(measured) <= most:
        return np.append(measured, measured[-1] + 1) - 0.5
    return np.linspace(measured[0] - 0.5, measured[-1] + 0.5, most + 1)


def _read(
    path: Path, columns: Sequence[str], *text_columns: str, also: str | None = None
) -> tuple[Columns, list[list[str]]]:
    """Columns of a CSV file as numbers, those whose names begin with `also` too, and others as text.

    Numbers that are not finite are NaN. Epochs and steps, which are places along an axis, must be finite and not huge.
    """
    needed = [*columns, *text_columns]
    header, lines = table(path)
    missing = [name for name in needed if name not in header]
    if missing:
        raise RunError(f"{path} has no column {missing[0]!r}: damaged, or of an older version; {AGAIN}")
    if any(len(line) != len(header) for line in lines):
        line = next(number for number, line in enumerate(lines, 2) if len(line) != len(header))
        raise RunError(f"{path} is damaged: line {line} has not as many cells as the header; {AGAIN}")
    cells = list(zip(*lines, strict=True)) or [()] * len(header)
    numbers = {}
    for name in [*columns, *(name for name in header if also is not None and name.startswith(also))]:
        try:
            values = np.fromiter(map(float, cells[header.index(name)]), dtype=np.float64, count=len(lines))
        except ValueError as error:
            column, reason = shortened(name, 80), shortened(str(error), 80)
            raise RunError(f"{path} is damaged: column {column} holds what is no number ({reason}); {AGAIN}") from error
        values[~(np.abs(values) <= GREATEST)] = np.nan
        most = PLACES.get(name, math.inf)
        if name in PLACES and not ((values >= 0) & (values <= most)).all():
            raise RunError(f"{path} is damaged: column {name} holds what is no number from 0 to {most:g}; {AGAIN}")
        numbers[name] = values
    texts = [cells[header.index(name)] for name in text_columns]
    plain = {cell: csv_text(cell) for cell in set().union(*texts)}
    return numbers, [[plain[cell] for cell in column] for column in texts]


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file that a run wrote; a last line that a crash cut off is left out.

    Raises RunError where it is no such file.
    """
    try:
        if not present(path):
            raise RunError(f"{path} is missing; {AGAIN}")
        if path.stat().st_size > MOST_BYTES:
            raise RunError(f"{path} has {path.stat().st_size} bytes, more than any run writes; {AGAIN}")
        text = path.read_bytes().decode("utf-8")
        header, *lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    except (OSError, ValueError, csv.Error, MemoryError) as error:
        raise RunError(f"{path} cannot be read as a table ({error or 'out of memory'}); {AGAIN}") from error
    return list(map(csv_text, header)), lines
