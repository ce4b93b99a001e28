"""The files of a run's training (metrics.csv, gradients.csv, layers.csv) and of evaluate.py, as tables."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmpareto import runs
from mmpareto.escape import counted, csv_text, shortened
from mmpareto.reporting.finished import RETRAIN, FinishedRun, present
from mmpareto.runs import RunDirectory, RunError

STEP_COLUMNS = ("epoch", "step", "cosine", "joint_norm", "unimodal_norm", "joint_weight", "conflict")
TEXT_COLUMNS = ("encoder", "layer")
METHOD = "method_"  # prefix of a method's own columns in metrics.csv
PLACES = {"epoch": 1e6, "step": 1e12}  # columns that are places along an axis, and their greatest values
GREATEST = 1e300  # of a number that is drawn
MOST_BYTES = 2**31  # of a table
MOST_CHARACTERS = 10_000  # of a name


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: counts [C, C], row the class, column the prediction; the classes' names."""

    counts: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """A run over its training.

    epochs     `epoch`, `val_accuracy_<name>` and the method's own `method_<name>`; a line per epoch
    steps      `encoder` and STEP_COLUMNS, a line per measured step and encoder; no line if nothing was measured
    layers     `encoder`, `layer` and `rate` (share of the measured steps in conflict, 0 to 1), from the inputs on
    confusion  of the joint head on the test split; None unless evaluate.py has scored this run's selected model
    missing    of the same evaluation `modality` ("any": each one on its own; see `stand_in`), `rate` (percent of the
               samples that lack it) and `accuracy` of the joint head
    """

    epochs: pd.DataFrame
    steps: pd.DataFrame
    layers: pd.DataFrame
    confusion: Confusion | None = None
    missing: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["modality", "rate", "accuracy"]))


def history(run: FinishedRun) -> History:
    """Read a run's metrics.csv, gradients.csv, layers.csv and evaluation_test.json.

    Raises RunError if one of them cannot be used.
    """
    path = run.path / runs.METRICS
    epochs = read_table(path)
    figures = [name for name in epochs if name.startswith(METHOD)]
    scores = [f"val_accuracy_{name}" for name in ("joint", *run.modalities)]
    epochs = _checked(path, epochs, ["epoch", *scores, *figures])
    trained = run.results.get("epochs_trained")
    if epochs.empty or (isinstance(trained, int) and len(epochs) != trained):
        raise RunError(
            f"{path} is damaged: it has {counted(len(epochs), 'epoch')}, {runs.RESULTS} says {trained}; {RETRAIN}"
        )
    steps = _optional_table(run.path / runs.GRADIENTS, STEP_COLUMNS, ["encoder"])
    layers = _optional_table(run.path / runs.LAYERS, ("steps", "conflict_rate"), ["encoder", "layer"])
    evaluation = current_evaluation(run)
    if evaluation is None:
        return History(epochs, steps, _conflict_rates(layers))
    file = run.path / runs.EVALUATION.format("test")
    return History(epochs, steps, _conflict_rates(layers), _confusion(file, evaluation), _missing(file, evaluation))


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file of a run as it stands; an incomplete last line is left out.

    Raises RunError if it is no such file.
    """
    try:
        if not present(path):
            raise RunError(f"{path} is missing; {RETRAIN}")
        if path.stat().st_size > MOST_BYTES:
            raise RunError(f"{path} has {path.stat().st_size} bytes, more than any run writes; {RETRAIN}")
        data = path.read_bytes()
        data = data[: data.rfind(b"\n") + 1]
        header = pd.read_csv(io.BytesIO(data), nrows=0).columns
        table = pd.read_csv(
            io.BytesIO(data),
            dtype=dict.fromkeys(TEXT_COLUMNS, str),
            keep_default_na=False,
            na_values={name: ["nan"] for name in header if name not in TEXT_COLUMNS},
            low_memory=False,
        )
    except (OSError, ValueError, MemoryError) as error:
        reason = shortened(str(error), 200) or "out of memory"
        raise RunError(f"{path} cannot be read as a table ({reason}); {RETRAIN}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise RunError(f"{path} is damaged: a line has more cells than the header; {RETRAIN}")
    return table.rename(columns=csv_text)


def _optional_table(path: Path, numbers: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """Columns of a CSV file, without any line if the file is missing or empty."""
    if not present(path) or path.stat().st_size == 0:
        return pd.DataFrame(columns=[*names, *numbers]).astype(dict.fromkeys(numbers, float))
    return _checked(path, read_table(path), numbers, names)


def _checked(path: Path, table: pd.DataFrame, numbers: Sequence[str], names: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a table that are used; numbers that are not finite become NaN, except epochs and steps.

    Raises RunError if a column is missing, holds other values than numbers, or epochs and steps that are no places
    along an axis.
    """
    for name in (*numbers, *names):
        if name not in table:
            raise RunError(f"{path} has no column {name!r}: damaged, or of an older version; {RETRAIN}")
    columns = {}
    for name in names:
        texts = {cell: csv_text(cell) for cell in table[name].unique()}
        if max(map(len, texts), default=0) > MOST_CHARACTERS:
            raise RunError(f"{path} is damaged: column {name} holds a name of more than {MOST_CHARACTERS} characters")
        columns[name] = table[name].map(texts)
    for name in numbers:
        try:
            values = table[name].astype(float)
        except (ValueError, OverflowError) as error:
            column, reason = shortened(name, 80), shortened(str(error), 80)
            raise RunError(
                f"{path} is damaged: column {column} holds what is no number ({reason}); {RETRAIN}"
            ) from error
        most = PLACES.get(name, math.inf)
        if name in PLACES and not values.between(0, most).all():
            raise RunError(f"{path} is damaged: column {name} holds what is no number from 0 to {most:g}; {RETRAIN}")
        columns[name] = values.where(values.abs() <= GREATEST)
    return pd.DataFrame(columns)


def _conflict_rates(layers: pd.DataFrame) -> pd.DataFrame:
    """`History.layers`: the epochs' rates, each weighted by its steps."""
    conflicts = (layers["steps"] * layers["conflict_rate"]).where(layers["steps"] > 0, 0.0)
    sums = layers.assign(conflicts=conflicts).groupby(["encoder", "layer"], sort=False)[["steps", "conflicts"]].sum()
    return (sums["conflicts"] / sums["steps"]).rename("rate").reset_index()


def current_evaluation(run: FinishedRun) -> dict[str, Any] | None:
    """The content of evaluation_test.json; that of an unfinished run or of another checkpoint counts as none."""
    name = runs.EVALUATION.format("test")
    if not present(run.path / name):
        return None
    content = RunDirectory(run.path).read_json(name)
    current = content.get("finished") and content.get("selected_epoch") == run.results["selected_epoch"]
    return content if current else None


def stand_in(evaluation: Mapping[str, Any]) -> str:
    """What names of measures end in, where something else than zeros stood for absent modalities: another measure."""
    missing = evaluation.get("missing", "zero")
    return "" if missing == "zero" else f" by {missing}"


def _confusion(file: Path, content: dict[str, Any]) -> Confusion:
    """`History.confusion`."""
    try:
        counts = np.array(content["joint"]["confusion"], dtype=np.float64)
        classes = tuple(str(entry["class"]) for entry in content["joint"]["per_class"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{file} has no confusion matrix ({error}); run evaluate.py again") from error
    if counts.shape != (len(classes), len(classes)):
        raise RunError(f"{file}: a confusion matrix of shape {counts.shape} for {len(classes)} classes")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise RunError(f"{file}: a confusion matrix with entries that are no counts; run evaluate.py again")
    return Confusion(counts, classes)


def _missing(file: Path, content: dict[str, Any]) -> pd.DataFrame:
    """`History.missing`; evaluations of an older version have none."""
    try:
        rows = content.get("missing_rates") or []
        subsets: list[dict[str, Any]] = content["subsets"] if rows else [{"present": [], "accuracy": 0.0}]
        whole = max(subsets, key=lambda row: len(row["present"]))["accuracy"]
        by = stand_in(content)
        names = dict.fromkeys(f"{row['modality']}{by}" for row in rows)
        lines = [(name, 0.0, float(whole)) for name in names]
        lines += [(f"{row['modality']}{by}", 100 * float(row["rate"]), float(row["accuracy"])) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{file} has no accuracies with modalities missing ({error}); run evaluate.py again") from error
    table = pd.DataFrame(lines, columns=["modality", "rate", "accuracy"])
    if not (table[["rate", "accuracy"]].apply(lambda column: column.between(0, 100)).all().all()):
        raise RunError(f"{file}: rates or accuracies that are no percentages; run evaluate.py again")
    return table
