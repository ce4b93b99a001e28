"""The run directory: what a training run leaves behind, and nothing half-written.

config.yaml        every setting, by section      metrics.csv    a row per epoch
resolved.json      encoders, classes, modalities  gradients.csv  a row per step and encoder: what integration saw
environment.json   versions, device, command      results.json   the scores; there only when the run is finished
last.pt  previous.pt  best.pt   checkpoints
diverged.json      where losses or gradients were no longer finite, which ended the run
torchrun.txt       the job that torchrun started last in it: a restart continues its own run alone
layers.csv         a row per epoch, encoder and parameter tensor: conflict rate, mean cosine
*.png              figures                        events.*       TensorBoard
evaluation_<split>.json, evaluation_<split>_*.png  what evaluate.py found
model.onnx, model.pt2   what export.py made
"""

from __future__ import annotations

import csv
import io
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mmpareto import config_files
from mmpareto.errors import UserError
from mmpareto.escape import csv_text, write_csv_rows
from mmpareto.json_files import json_text, read_object, require_regular
from mmpareto.writing import atomically, lock, naming, write_text

if TYPE_CHECKING:
    import torch

CONFIG, RESOLVED, ENVIRONMENT = "config.yaml", "resolved.json", "environment.json"
METRICS, GRADIENTS = "metrics.csv", "gradients.csv"
LAYERS = "layers.csv"
EVALUATION = "evaluation_{}.json"  # of a split
LAST, PREVIOUS, BEST, RESULTS = "last.pt", "previous.pt", "best.pt", "results.json"
DIVERGED = "diverged.json"
JOB = "torchrun.txt"
EXPORTS = {"onnx": ".onnx", "torch_export": ".pt2"}  # suffixes of exported models, by format
CODE = Path(__file__).resolve().parent.parent  # the package, and the commands beside it
_OWN = (
    CONFIG,
    RESOLVED,
    ENVIRONMENT,
    METRICS,
    GRADIENTS,
    LAYERS,
    LAST,
    PREVIOUS,
    BEST,
    RESULTS,
    DIVERGED,
    "learning_curves.png",
    "gradients.png",
    "wandb_id.txt",
    JOB,
    *(f"model{suffix}{description}" for suffix in EXPORTS.values() for description in ("", ".json")),
)


class RunError(UserError):
    """A run directory cannot be used as requested."""


class RunDirectory:
    """A folder for one run; made by `open_for`, so that no run overwrites another unasked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def lock(self) -> None:
        """Keep the folder for this process until it ends, or until `unlock`.

        Raises RunError where another process trains in it.
        """
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            lock(self._lock)
        except BlockingIOError as error:
            self.unlock()
            raise RunError(f"another process is training in {self.path}; wait for it or name another folder") from error
        except OSError:  # some network file systems lock no folders
            pass

    def unlock(self) -> None:
        """Leave the folder to others; does nothing where it is not kept."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __reduce__(self) -> tuple[type[RunDirectory], tuple[Path]]:
        """A copy in another process does not hold the lock: a file descriptor means another file there."""
        return RunDirectory, (self.path,)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_text(self, name: str, content: str) -> None:
        """Write `name`, whole or not at all."""
        write_text(self / name, content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `name`, whole or not at all."""
        self.write_text(name, json_text(content))

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `name` with the rows' keys as header, whole or not at all."""
        buffer = io.StringIO(newline="")
        if rows:
            _write_rows(buffer, rows, header=True)
        write_text(self / name, buffer.getvalue())

    def append_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to `name`; `read_csv` passes over a last line that a crash cut off."""
        with naming(self / name), open(self / name, "a", encoding="utf-8", newline="") as file:
            _write_rows(file, rows, header=file.tell() == 0)

    def read_csv(self, name: str) -> list[dict[str, str]]:
        """The complete rows of `name`; none where it is not there.

        Raises RunError where it is no table.
        """
        if not (self / name).exists():
            return []
        try:
            require_regular(self / name)
            text = (self / name).read_bytes().decode("utf-8")
            rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
            if any(None in row or None in row.values() for row in rows):
                raise ValueError("a row has not as many cells as the header")
        except (OSError, ValueError, csv.Error) as error:
            raise RunError(f"{self / name} cannot be read as a table ({error})") from error
        return [{csv_text(key): csv_text(value) for key, value in row.items()} for row in rows]

    def cut_csv(self, name: str, epoch: int) -> int:
        """Write `name` again without its rows of epochs from `epoch` on; the result is the number of those it keeps.

        Raises RunError where it is no table of numbers by epoch.
        """
        rows = self.read_csv(name)
        try:
            for row in rows:
                for column, value in row.items():
                    if column not in ("encoder", "layer") and value:
                        float(value)
            kept = [row for row in rows if int(row["epoch"]) < epoch]
        except (KeyError, ValueError) as error:
            raise RunError(f"{self / name} is no table that train.py wrote ({error}); remove it") from error
        self.write_csv(name, kept)
        return len(kept)

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of `name`.

        Raises RunError where it is missing, or no JSON of values by name.
        """
        try:
            return read_object(self / name)
        except (OSError, ValueError) as error:
            raise RunError(f"{self / name} cannot be read ({error}); is {self.path} a run directory?") from error

    def read_config(self) -> dict[str, Any]:
        """The run's settings by flag, in one flat mapping.

        Raises:
            RunError: where the file is missing or holds something else.
        """
        if not (self / CONFIG).exists():
            older = "made by an older version of the program" if (self / "config.json").exists() else "no run directory"
            inside = (path.parent for depth in ("*", "*/*", "*/*/*") for path in self.path.glob(f"{depth}/{CONFIG}"))
            such = min(inside, default=None)
            hint = " of this train.py" if such is None else f", such as {such}"
            raise RunError(f"{self.path} is {older}: it has no {CONFIG}; give a run directory{hint}")
        try:
            return config_files.flattened(config_files.read_sections(self / CONFIG))
        except (OSError, ValueError) as error:
            raise RunError(f"{self / CONFIG} cannot be read ({error}); is {self.path} a run directory?") from error

    def read_results(self) -> dict[str, Any]:
        """The scores of a finished run.

        Raises RunError where they are not as train.py writes them.
        """
        results = self.read_json(RESULTS)
        try:
            names = list(results["test"]["unimodal"])
            scores = [results[split]["joint"] for split in ("test", "val")]
            scores += [results[split]["unimodal"][name] for split in ("test", "val") for name in names]
            scores += [score for split in ("test", "val") for score in results[split].get("all_heads", {}).values()]
            rates = [results["integration"][name]["conflict_rate"] for name in names]
            values = [results["epochs"], results.get("epochs_trained", 0), results.get("selected_epoch", 0)]
            values += [*(score["accuracy"] for score in scores), *(rate or 0 for rate in rates)]
            wrong = next((value for value in values if type(value) not in (int, float)), None)
            if wrong is not None:
                raise TypeError(f"{wrong!r:.100} is no number")
        except (LookupError, TypeError, AttributeError) as error:
            raise RunError(f"{self / RESULTS} holds no results of train.py ({error}); remove it") from error
        return results

    @property
    def finished(self) -> bool:
        """Whether the run has its results."""
        return (self / RESULTS).exists()


def open_for(path: str, resume: bool, overwrite: bool) -> RunDirectory:
    """The run directory at `path`, made where it is not there, ready to be written to.

    Raises RunError: it holds a run and neither `resume` nor `overwrite` says what to do with it; there is nothing to
    resume; it cannot be written to.
    """
    run = RunDirectory(Path(path))
    if resume and not (run / LAST).exists() and not (run / PREVIOUS).exists():
        raise RunError(
            f"there is no run to resume in {path}; name its folder with --ckpt_path, or leave --resume out to begin one"
        )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        run.lock()
        with atomically(run / ".writable") as file:
            file.write(b"")
        (run / ".writable").unlink()
    except OSError as error:
        run.unlock()
        raise RunError(f"cannot write to {path}: {error.strerror}; name another folder with --ckpt_path") from error
    for half_written in run.path.glob(".*.part"):  # by a process that was killed
        half_written.unlink()
    begun = any((run / name).exists() for name in (LAST, PREVIOUS))
    holds = "a finished run" if run.finished else "an unfinished run" if begun else ""
    if holds and not resume and not overwrite:
        run.unlock()
        raise RunError(
            f"{path} holds {holds}; --resume continues it, --overwrite deletes it, --ckpt_path names another"
        )
    if overwrite:
        for name in _OWN:
            (run / name).unlink(missing_ok=True)
        for old in [*run.path.glob("events.out.tfevents.*"), *run.path.glob("evaluation_*")]:
            old.unlink()
    return run


def _write_rows(file: TextIO, rows: Sequence[Mapping[str, Any]], header: bool) -> None:
    """Rows of a CSV file, in which no name is a formula; `read_csv` gives the names back."""
    if rows:
        write_csv_rows(file, [*[list(rows[0])] * header, *([row[name] for name in rows[0]] for row in rows)])


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What is needed to repeat a run years later: versions, device, state of the code, command line."""
    import torch  # commands that need none start sooner

    changed = _git("status", "--porcelain", "--", ".")
    versions = {}
    for name in ("torch", "torchvision", "torchaudio", "torchjd", "torchmetrics", "numpy", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": [sys.executable, *sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)},
    }


def _git(*arguments: str) -> str | None:
    if not (CODE / "train.py").exists():  # installed: a repository around it is another one
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=CODE, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no repository, or no git
        return None
    return done.stdout.strip()
