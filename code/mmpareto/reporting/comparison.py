"""Runs of several methods and seeds side by side: mean and deviation, nothing averaged that does not belong."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpareto import runs
from mmpareto.options import RUN_ONLY
from mmpareto.runs import RunDirectory, RunError

# settings in which the runs of one row may differ
OWN = ("random_seed", "diagnose_interval", "classes", *RUN_ONLY)


@dataclass(frozen=True)
class FinishedRun:
    """A run's settings and results."""

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]

    @property
    def group(self) -> str:
        """What runs must share to be averaged: every setting but the seed and where and how fast it ran."""
        return repr(sorted((key, value) for key, value in self.config.items() if key not in OWN))


def find(paths: Iterable[Path]) -> tuple[list[FinishedRun], list[Path]]:
    """The finished runs at or below the given folders, and the folders of those that are not finished.

    Raises RunError where a folder is missing or holds no run.
    """
    finished, unfinished = [], []
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise RunError(f"{path} is no folder; give run directories, or a folder that holds some")
        folders = sorted(config.parent.resolve() for config in path.rglob(runs.CONFIG))
        if not folders:
            raise RunError(f"there is no run in {path}: no folder in it has a {runs.CONFIG}")
        for folder in folders:
            if folder in seen:
                continue
            seen.add(folder)
            run = RunDirectory(folder)
            if run.finished:
                finished.append(FinishedRun(folder, run.read_json(runs.CONFIG), run.read_json(runs.RESULTS)))
            else:
                unfinished.append(folder)
    return finished, unfinished


def comparison(found: Sequence[FinishedRun]) -> list[dict[str, str]]:
    """A row per method and settings: seeds, test accuracy in percent (mean and deviation), conflict rate.

    The joint accuracy comes first, then each modality's own; "n/a" where the runs of a dataset have no such modality.
    Runs whose settings differ in more than the seed stand in rows of their own, what differs beside the method's name.
    Rows of a dataset are sorted by their mean joint accuracy.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in found:
        groups.setdefault(run.group, []).append(run)
    names = list(dict.fromkeys(name for run in found for name in run.results["test"]["unimodal"]))
    rows = []
    for members in sorted(groups.values(), key=lambda group: (group[0].results["dataset"], _mean_joint(group))):
        results = [run.results for run in members]
        rows.append(
            {
                "dataset": results[0]["dataset"],
                "method": _label(members[0], found),
                "seeds": str(len({result["seed"] for result in results})),
                "joint": _spread([result["test"]["joint"]["accuracy"] for result in results]),
                **{
                    f"{name} alone": _spread(
                        [r["test"]["unimodal"][name]["accuracy"] for r in results if name in r["test"]["unimodal"]]
                    )
                    for name in names
                },
                **{
                    f"conflict, {name}": _rate([r["integration"].get(name, {}).get("conflict_rate") for r in results])
                    for name in names
                },
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Rows as a Markdown table."""
    header = list(rows[0])
    lines = [header, [":--", ":--", *("--:" for _ in header[2:])], *([row[key] for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _label(run: FinishedRun, found: Sequence[FinishedRun]) -> str:
    """The method, and how these runs differ from the others of the same method on the same dataset."""
    rivals = [r for r in found if all(r.config[key] == run.config[key] for key in ("method", "dataset"))]
    differing = [
        f"{key} {value}"
        for key, value in run.config.items()
        if key not in (*OWN, "selected_on") and any(rival.config.get(key) != value for rival in rivals)
    ]
    marks = ["SELECTED ON TEST"] if run.results["selected_on"] == "test" else []
    return ", ".join([run.results["method"], *differing, *marks])


def _mean_joint(runs_of_a_row: Sequence[FinishedRun]) -> float:
    return statistics.mean(run.results["test"]["joint"]["accuracy"] for run in runs_of_a_row)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "n/a"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _rate(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    return f"{100 * statistics.mean(present):.1f} %" if present else "not measured"
