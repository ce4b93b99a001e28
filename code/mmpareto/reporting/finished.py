"""Finished runs, read from their folders and checked for what a report needs."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpareto import runs
from mmpareto.config import RUN_ONLY, completed
from mmpareto.data_folders import dataset_title
from mmpareto.escape import counted, shortened
from mmpareto.runs import RunDirectory, RunError
from mmpareto.selection import COMBINATIONS

# settings in which the runs of one row may differ
VARYING = ("random_seed", "diagnose_interval", "classes", *RUN_ONLY)
TRIALS = "trials"  # folder of a search: its runs choose, and are not reported
MOST_FOLDERS = 100_000  # below a folder with runs; a link to / leads to more
MOST_PERCENT = 1e6  # larger numbers are no accuracies
GREATEST_AMOUNT = 1e15  # of seconds or memory
RETRAIN = "train it again with train.py --overwrite, or leave the run out of the report"

# the fields that a report uses, and their types
_REQUIRED: dict[str, dict[str, type]] = {
    runs.CONFIG: {"dataset": str, "method": str, "random_seed": int, "selected_on": str},
    runs.RESULTS: {"dataset": str, "method": str, "seed": int, "selected_on": str, "test": dict, "integration": dict},
    runs.RESOLVED: {},
    runs.ENVIRONMENT: {},
}
_OPTIONAL: dict[str, dict[str, type]] = {
    runs.CONFIG: {"data_root": str, "method_options": dict},
    runs.RESULTS: {"selected_epoch": int},
    runs.RESOLVED: {"classes": list},
    runs.ENVIRONMENT: {"versions": dict, "git": dict},
}


@dataclass(frozen=True)
class FinishedRun:
    """Settings and results of a run, and its environment (empty if it was not recorded)."""

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """What runs must share to be averaged: data, and all settings except VARYING."""
        shared = {key: value for key, value in self.config.items() if key not in VARYING}
        return json.dumps([self.dataset, shared], sort_keys=True, default=str)

    @property
    def dataset(self) -> str:
        """The dataset's name; that of a manifest has its folder's name added."""
        return dataset_title(self.results["dataset"], self.config.get("data_root"))

    @property
    def method(self) -> str:
        """The method's name."""
        return self.results["method"]

    @property
    def seed(self) -> int:
        """The random seed."""
        return self.results["seed"]

    @property
    def selected_on_test(self) -> bool:
        """Whether the checkpoint was selected on the test split."""
        return self.results["selected_on"] == "test"

    @property
    def modalities(self) -> list[str]:
        """The modalities' names."""
        return list(self.results["test"]["unimodal"])

    @property
    def joint(self) -> float:
        """Joint test accuracy in percent."""
        return self.results["test"]["joint"]["accuracy"]

    @property
    def validation(self) -> float | None:
        """Joint validation accuracy in percent of the selected checkpoint; None if the results have no number."""
        return self._on_validation("accuracy")

    @property
    def validation_loss(self) -> float:
        """Joint validation loss of the selected checkpoint; infinite if the results have no number."""
        loss = self._on_validation("loss")
        return math.inf if loss is None else loss

    def _on_validation(self, measure: str) -> float | None:
        try:
            value = float(self.results["val"]["joint"][measure])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return value if math.isfinite(value) else None

    @property
    def seconds(self) -> float | None:
        """Time that training took; None if the results have no number."""
        return self._amount("seconds")

    @property
    def peak_memory(self) -> float | None:
        """Most memory that training took, in MiB; None in results of earlier versions."""
        return self._amount("peak_memory_mib")

    def _amount(self, name: str) -> float | None:
        value = self.results.get(name)
        return value if isinstance(value, int | float) and 0 <= value <= GREATEST_AMOUNT else None

    def accuracy(self, modality: str) -> float | None:
        """Test accuracy in percent of a modality's own head; None if the run has no such modality."""
        score = self.results["test"]["unimodal"].get(modality)
        return None if score is None else score["accuracy"]

    @property
    def lead(self) -> float:
        """Joint test accuracy minus that of the best unimodal head, in points."""
        return self.joint - max(score["accuracy"] for score in self.results["test"]["unimodal"].values())

    def all_heads(self, rule: str) -> float | None:
        """Test accuracy in percent of all heads together; None in results of earlier versions."""
        score = self.results["test"].get("all_heads", {}).get(rule)
        return None if score is None else score["accuracy"]

    def conflict_rate(self, modality: str) -> float | None:
        """Share of the measured steps in conflict, 0 to 1, in a modality's encoder; None if nothing was measured."""
        return (self.results["integration"].get(modality) or {}).get("conflict_rate")


def find(paths: Iterable[Path]) -> tuple[list[FinishedRun], list[Path]]:
    """The finished runs at or below the given folders, and the folders of those that are not finished.

    Runs of a search's trials, in a folder TRIALS below a given one, are left out.

    Raises RunError if a folder is missing or holds no run, or if a run's files cannot be used.
    """
    finished: dict[Path, FinishedRun] = {}
    unfinished: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise RunError(f"{path} is no folder; give run directories, or a folder that holds some")
        folders, trials = [], 0
        above = path.resolve()
        for folder, files in _walk(path):
            if runs.CONFIG in files and folder.is_relative_to(above) and _of_trial(folder.relative_to(above)):
                trials += 1
            elif runs.CONFIG in files:
                folders.append(folder)
            elif runs.RESULTS in files:
                raise RunError(f"{folder} has a {runs.RESULTS} and no {runs.CONFIG} beside it; {RETRAIN}")
        if not folders and trials:
            raise RunError(
                f"{path} holds {counted(trials, 'run')} of a search's trials, and none of chosen values; name its "
                f"folder {TRIALS} to compare trials"
            )
        if not folders:
            raise RunError(f"there is no run in {path}: no folder in it has a {runs.CONFIG}")
        for folder in sorted(folders):
            if not RunDirectory(folder).finished:
                unfinished[folder] = None
            elif folder not in finished:
                finished[folder] = _read(folder)
    return list(finished.values()), list(unfinished)


def _of_trial(path: Path) -> bool:
    """Whether it ends as the run of a trial does: trials/<dataset>/<method>/trial<k>/seed<k>."""
    *_, folder, _, _, trial, _ = ("",) * 5 + path.parts
    return folder == TRIALS and trial.startswith("trial")


def present(path: Path) -> bool:
    """Whether there is a file at this path.

    Raises RunError if it is no regular file: reading a pipe would wait for its writer, a device may never end.
    """
    if os.path.lexists(path) and not path.is_file():
        raise RunError(f"{path} is no regular file; {RETRAIN}")
    return path.exists()


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder at or below `path`, resolved, with its files; links are followed, no folder comes twice.

    Raises RunError if there are more than MOST_FOLDERS.
    """
    visited: set[Path] = set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        resolved = Path(folder).resolve()
        if resolved in visited:
            subfolders.clear()
            continue
        visited.add(resolved)
        if len(visited) > MOST_FOLDERS:
            raise RunError(f"{path} has more than {MOST_FOLDERS} folders below it (a link?); give the run directories")
        yield resolved, files


def _read(folder: Path) -> FinishedRun:
    """A finished run, its files checked for what a report needs."""
    config, results, resolved, environment = (_read_file(RunDirectory(folder), name) for name in _REQUIRED)
    path = folder / runs.RESULTS
    _check_scores(path, results)
    for key, setting in (("dataset", "dataset"), ("method", "method"), ("seed", "random_seed")):
        if results[key] != config[setting]:
            raise RunError(f"{path} and {runs.CONFIG} beside it are of different runs ({key}); {RETRAIN}")
    return FinishedRun(folder, _plain(completed(config)) | {"classes": resolved.get("classes")}, results, environment)


def _read_file(run: RunDirectory, name: str) -> dict[str, Any]:
    """The content of a file of a run, the types of its fields checked."""
    if not present(run / name) and not _REQUIRED[name]:
        return {}
    try:
        content = run.read_config() if name == runs.CONFIG else run.read_json(name)
    except RunError as error:
        raise RunError(f"{run / name} is damaged ({error.__cause__}); {RETRAIN}") from error
    for key in _REQUIRED[name]:
        if key not in content:
            raise RunError(f"{run / name} has no {key!r}: an older version wrote it; {RETRAIN}")
    optional = {key: kind for key, kind in _OPTIONAL[name].items() if content.get(key) is not None}
    for key, kind in (_REQUIRED[name] | optional).items():
        if type(content[key]) is not kind:
            value = shortened(repr(content[key]), 80)
            raise RunError(f"{run / name} is damaged: its {key} is {value}, expected {kind.__name__}; {RETRAIN}")
    return content


def _plain(value: Any) -> Any:
    """Settings in which 1.0 is 1: a number is the same however it was written."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_scores(path: Path, results: dict[str, Any]) -> None:
    """Raise RunError if test scores or conflict rates are missing or no numbers."""
    try:
        if not results["test"]["unimodal"]:
            raise KeyError("unimodal")
        scores = {"joint": results["test"]["joint"], **results["test"]["unimodal"]}
        scores |= {COMBINATIONS[rule]: score for rule, score in results["test"].get("all_heads", {}).items()}
        values = {f"accuracy of {name}": score["accuracy"] for name, score in scores.items()}
        rates = {f"conflict rate of {k}": (v or {}).get("conflict_rate") for k, v in results["integration"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(
            f"{path} has no test scores by name ({error}): damaged, or of an older version; {RETRAIN}"
        ) from error
    for name, value in (values | {name: rate for name, rate in rates.items() if rate is not None}).items():
        if type(value) not in (int, float) or not abs(value) <= MOST_PERCENT:
            raise RunError(f"{path}: {name} is {shortened(repr(value), 80)}, no finite number; {RETRAIN}")
