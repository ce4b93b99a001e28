"""Finished runs, read from their folders and checked for what a report needs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpareto import datasets, runs
from mmpareto.escape import shortened
from mmpareto.options import RUN_ONLY
from mmpareto.runs import RunDirectory, RunError

# settings in which the runs of one row may differ
OWN = ("random_seed", "diagnose_interval", "classes", *RUN_ONLY)
MOST_FOLDERS = 100_000  # below a folder with runs; a link to / leads to more
MOST_PERCENT = 1e6  # no accuracy, whatever wrote it
AGAIN = "train it again with train.py --overwrite, or leave the run out of the report"


# what values must be that a report computes with or sorts by
_KINDS: tuple[tuple[str, str, Any], ...] = (
    (runs.CONFIG, "data_root", str | None),
    (runs.CONFIG, "classes", list | None),
    (runs.RESULTS, "dataset", str),
    (runs.RESULTS, "method", str),
    (runs.RESULTS, "selected_on", str),
    (runs.RESULTS, "selected_epoch", int | None),
)


@dataclass(frozen=True)
class FinishedRun:
    """A run's settings and results, and what it was made with (empty where that was not recorded)."""

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """What runs must share to be averaged: data, and settings but the seed and where and how fast it ran."""
        return repr([self.dataset, *sorted((key, value) for key, value in self.config.items() if key not in OWN)])

    @property
    def dataset(self) -> str:
        """What the data are known by: the dataset's name, that of a manifest with its folder's."""
        return datasets.title(self.results["dataset"], self.config.get("data_root"))

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
        """Joint validation accuracy in percent of the selected checkpoint; None where the results have no number."""
        return self._on_validation("accuracy")

    @property
    def validation_loss(self) -> float:
        """Joint validation loss of the selected checkpoint; infinite where the results have no number."""
        loss = self._on_validation("loss")
        return math.inf if loss is None else loss

    def _on_validation(self, measure: str) -> float | None:
        try:
            value = float(self.results["val"]["joint"][measure])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return value if math.isfinite(value) else None

    def accuracy(self, modality: str) -> float | None:
        """Test accuracy in percent of a modality's own head; None where the run has no such modality."""
        score = self.results["test"]["unimodal"].get(modality)
        return None if score is None else score["accuracy"]


def find(paths: Iterable[Path]) -> tuple[list[FinishedRun], list[Path]]:
    """The finished runs at or below the given folders, and the folders of those that are not finished.

    Raises RunError where a folder is missing or holds no run, and where a run's files cannot be used.
    """
    finished, unfinished = [], []
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise RunError(f"{path} is no folder; give run directories, or a folder that holds some")
        folders = []
        for folder, files in _walk(path):
            if runs.CONFIG in files:
                folders.append(folder)
            elif runs.RESULTS in files:
                raise RunError(f"{folder} has a {runs.RESULTS} and no {runs.CONFIG} beside it; {AGAIN}")
        if not folders:
            raise RunError(f"there is no run in {path}: no folder in it has a {runs.CONFIG}")
        for folder in sorted(folders):
            if folder in seen:
                continue
            seen.add(folder)
            if RunDirectory(folder).finished:
                finished.append(_read(folder))
            else:
                unfinished.append(folder)
    return finished, unfinished


def present(path: Path) -> bool:
    """Whether there is a file at this path.

    Raises RunError where it is no regular file: reading a pipe would wait for its writer, a device may never end.
    """
    if os.path.lexists(path) and not path.is_file():
        raise RunError(f"{path} is no regular file; {AGAIN}")
    return path.exists()


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder at or below `path`, resolved, with its files; links are followed, no folder comes twice.

    Raises RunError where there are more than MOST_FOLDERS.
    """
    seen: set[Path] = set()
    for folder, below, files in os.walk(path, followlinks=True):
        resolved = Path(folder).resolve()
        if resolved in seen:
            below.clear()
            continue
        seen.add(resolved)
        if len(seen) > MOST_FOLDERS:
            raise RunError(f"{path} has more than {MOST_FOLDERS} folders below it (a link?); give the run directories")
        yield resolved, files


def _read(folder: Path) -> FinishedRun:
    """A finished run, its files checked for what a report needs."""
    run = RunDirectory(folder)
    content: dict[str, dict[str, Any]] = {}
    for name, needed in (
        (runs.CONFIG, ("dataset", "method", "random_seed", "selected_on")),
        (runs.RESULTS, ("dataset", "method", "seed", "selected_on", "test", "integration")),
        (runs.ENVIRONMENT, ()),
    ):
        if not present(run / name) and not needed:
            content[name] = {}
            continue
        try:
            content[name] = run.read_config() if name == runs.CONFIG else run.read_json(name)
        except RunError as error:
            raise RunError(f"{run / name} is damaged ({error.__cause__}); {AGAIN}") from error
        missing = [key for key in needed if key not in content[name]]
        if missing:
            raise RunError(f"{run / name} has no {missing[0]!r}: an older version wrote it; {AGAIN}")
    _check_scores(run / runs.RESULTS, content[runs.RESULTS])
    for own, theirs in (("dataset", "dataset"), ("method", "method"), ("seed", "random_seed")):
        if content[runs.RESULTS][own] != content[runs.CONFIG][theirs]:
            raise RunError(f"{run / runs.RESULTS} and {runs.CONFIG} beside it are of different runs ({own}); {AGAIN}")
    for name, key in ((runs.CONFIG, "method_options"), (runs.ENVIRONMENT, "versions"), (runs.ENVIRONMENT, "git")):
        part = content[name].get(key)
        if not isinstance(part, Mapping | None):
            raise RunError(f"{run / name} is damaged: its {key} is {_shown(part)}, no values by name; {AGAIN}")
    for name, key, kinds in _KINDS:
        value = content[name].get(key)
        if not isinstance(value, kinds):
            raise RunError(f"{run / name} is damaged: its {key} is {_shown(value)}; {AGAIN}")
    return FinishedRun(folder, _plain(content[runs.CONFIG]), content[runs.RESULTS], content[runs.ENVIRONMENT])


def _plain(value: Any) -> Any:
    """Settings in which 1.0 is 1: one number, however it was given."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_scores(path: Path, results: Mapping[str, Any]) -> None:
    """Raises RunError where test scores are missing or no numbers."""
    try:
        scores = {"joint": results["test"]["joint"], **results["test"]["unimodal"]}
        values = {name: score["accuracy"] for name, score in scores.items()}
        measured = {name: (part or {}).get("conflict_rate") for name, part in results["integration"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(
            f"{path} has no test scores by name ({error}): damaged, or of an older version; {AGAIN}"
        ) from error
    for name, value in (values | {f"conflict rate of {k}": v for k, v in measured.items() if v is not None}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_PERCENT:
            raise RunError(f"{path}: {name} is {_shown(value)}, no finite number; {AGAIN}")
    if isinstance(results["seed"], bool) or not isinstance(results["seed"], int):
        raise RunError(f"{path}: seed is {_shown(results['seed'])}, no integer; {AGAIN}")


def _shown(value: Any) -> str:
    return shortened(repr(value), 80)
