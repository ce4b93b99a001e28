"""What a run wrote while it trained (metrics.csv, gradients.csv, layers.csv) and what evaluate.py added, as arrays."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmpareto import runs
from mmpareto.reporting.finished import AGAIN, FinishedRun
from mmpareto.runs import RunDirectory, RunError

STEP_COLUMNS = ("epoch", "step", "cosine", "joint_norm", "unimodal_norm", "joint_weight", "conflict")
METHOD = "method_"  # how the columns of metrics.csv begin that are a method's own
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
    if not path.exists():
        raise RunError(f"{path} is missing; {AGAIN}")
    epochs, _ = _read(path, columns, also=METHOD)
    trained = run.results.get("epochs_trained")
    if len(epochs["epoch"]) == 0 or (isinstance(trained, int) and len(epochs["epoch"]) != trained):
        raise RunError(
            f"{path} is damaged: it has {len(epochs['epoch'])} epochs, {runs.RESULTS} says {trained}; {AGAIN}"
        )
    return History(epochs, _steps(run.path / runs.GRADIENTS), _layers(run.path / runs.LAYERS), _confusion(run))


def _steps(path: Path) -> dict[str, Columns]:
    """`History.steps`."""
    if not path.exists() or path.stat().st_size == 0:
        return {}
    steps, (encoders,) = _read(path, STEP_COLUMNS, "encoder")
    return {
        name: {column: values[encoders == name] for column, values in steps.items()}
        for name in dict.fromkeys(encoders.tolist())
    }


def _layers(path: Path) -> dict[str, dict[str, float]]:
    """`History.layers`: the epochs' rates, each weighted by its steps."""
    if not path.exists() or path.stat().st_size == 0:  # earlier versions wrote none
        return {}
    columns, texts = _read(path, ("steps", "conflict_rate"), "encoder", "layer")
    sums: dict[str, dict[str, tuple[float, float]]] = {}
    for encoder, layer, steps, rate in zip(*texts, columns["steps"], columns["conflict_rate"], strict=True):
        conflicts, all_steps = sums.setdefault(str(encoder), {}).get(str(layer), (0.0, 0.0))
        sums[str(encoder)][str(layer)] = (conflicts + (steps * rate if steps else 0.0), all_steps + steps)
    return {
        encoder: {layer: conflicts / steps if steps else math.nan for layer, (conflicts, steps) in own.items()}
        for encoder, own in sums.items()
    }


def _confusion(run: FinishedRun) -> Confusion | None:
    """`History.confusion`; an evaluation made before training ended or of another checkpoint is as none."""
    name = runs.EVALUATION.format("test")
    if not (run.path / name).exists():
        return None
    content = RunDirectory(run.path).read_json(name)
    try:
        if not content["finished"] or content["selected_epoch"] != run.results["selected_epoch"]:
            return None
        counts = np.array(content["joint"]["confusion"], dtype=np.float64)
        classes = tuple(str(entry["class"]) for entry in content["joint"]["per_class"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.path / name} has no confusion matrix ({error}); run evaluate.py again") from error
    if counts.shape != (len(classes), len(classes)):
        raise RunError(f"{run.path / name}: a confusion matrix of shape {counts.shape} for {len(classes)} classes")
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
) -> tuple[Columns, list[np.ndarray]]:
    """Columns of a CSV file as numbers, those whose names begin with `also` too, and others as text."""
    needed = [*columns, *text_columns]
    try:
        text = path.read_text(encoding="utf-8")
        header, *lines = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read as a table ({error}); {AGAIN}") from error
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
            numbers[name] = np.array(cells[header.index(name)], dtype=np.float64)
        except ValueError as error:
            raise RunError(f"{path} is damaged: column {name} holds what is no number ({error}); {AGAIN}") from error
    return numbers, [np.array(cells[header.index(name)], dtype=str) for name in text_columns]
