"""What a search leaves: trials.csv with every trial, leaderboard.json and its tables with the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmpareto.config import FAST, ROUNDING, RUN_ONLY, Config
from mmpareto.data_folders import dataset_title
from mmpareto.escape import csv_cell
from mmpareto.experiments.grid import Run
from mmpareto.experiments.search import SEARCHED, TUNED, Candidate, Search, Trial
from mmpareto.registries import METHODS, architecture_of
from mmpareto.reporting.finished import find
from mmpareto.runs import RESOLVED, RunDirectory
from mmpareto.writing import write_text

# settings that differ between methods, or from run to run
_OF_A_METHOD = (
    "method",
    "method_options",
    "gamma",
    "learning_rate",
    "weight_decay",
    "random_seed",
    "ckpt_path",
    *ROUNDING,
    *RUN_ONLY,
)


def write_leaderboard(search: Search, trials: Sequence[Trial], chosen: Sequence[Trial], finals: Sequence[Run]) -> bool:
    """Write trials.csv, leaderboard.json and leaderboard.md into the output folder, and print the last one.

    The result is whether there is a leaderboard: none where no run with chosen values is finished.
    """
    from mmpareto.reporting import leaderboard  # scipy takes seconds to import

    write_text(search.output / "trials.csv", trial_table(search, trials, chosen))
    content = {
        "protocol": search.protocol,
        "diverged": counts(trials, "diverged"),
        "idle": counts(trials, "idle"),
        "spaces": {trial.candidate.method: _spaces(trial.candidate) for trial in chosen},
        **_collected(chosen, finals),
    }
    if not any(row["tuned"] for row in content["results"]):
        return False
    text = leaderboard.write(search.output, content)
    print(f"\n{text}\nwritten: {search.output / leaderboard.FILE}")
    return True


def trial_table(search: Search, trials: Sequence[Trial], chosen: Sequence[Trial]) -> str:
    """Every trial, as a comma-separated table: its values, its score, and why no rule chooses it."""
    import pandas as pd

    rows = []
    for trial in trials:
        score = search.score(trial)
        rows.append(
            {
                "dataset": trial.candidate.dataset,
                "method": trial.candidate.method,
                "trial": trial.number,
                "values": " ".join(f"{key}={value}" for key, value in trial.values.items()),
                "accuracy": "" if score is None else score[0],
                "loss": "" if score is None or score[1] is None else score[1],
                "chosen": int(trial in chosen),
                "diverged": trial.diverged,
                "idle": trial.idle,
            }
        )
    return pd.DataFrame(rows).map(csv_cell).to_csv(index=False)


def _spaces(candidate: Candidate) -> dict[str, Any]:
    """{option of a method: the values that are searched, or what it is set to}."""
    return {
        key: f"set to {candidate.fixed[key]}" if key in candidate.fixed else list(space)
        for key, space in METHODS[candidate.method].search.items()
    }


def _collected(chosen: Sequence[Trial], finals: Sequence[Run]) -> dict[str, Any]:
    """What finished runs say: their results; and by dataset their samples, and the settings that they share."""
    from mmpareto.reporting import leaderboard

    trial_of = {(trial.candidate.dataset, trial.candidate.method): trial for trial in chosen}
    planned_of = {run.folder.resolve(): run for run in finals}
    results: list[dict[str, Any]] = []
    environments: list[dict[str, Any]] = []
    samples: dict[str, Any] = {}
    settings: dict[str, dict[str, list[Any]]] = {}  # {dataset: {setting: its values}}
    for run in find([run.folder for run in finals])[0]:
        planned = planned_of[run.path]
        tuned = planned.name.startswith(f"{TUNED}/")
        trial = trial_of[planned.config.data.dataset, planned.config.method.method]
        results.append(leaderboard.result(run, tuned=tuned, values=trial.values if tuned else {}))
        if of_run := RunDirectory(run.path).read_json(RESOLVED).get("samples"):  # not in runs of earlier versions
            samples.setdefault(run.dataset, of_run)
        fixed = {key: value for key, value in trial.candidate.fixed.items() if key in SEARCHED}
        for key, value in (shared_settings(planned.config, run.config) | fixed).items():
            values = settings.setdefault(run.dataset, {}).setdefault(key, [])
            if value not in values:
                values.append(value)
        environment = {key: run.environment.get(key) for key in ("device", "versions", "git")}
        environment["day"] = str(run.environment.get("started"))[:10]
        if environment not in environments:
            environments.append(environment)
    return {
        "settings": {
            dataset: {key: values[0] if len(values) == 1 else _mixed(values) for key, values in shared.items()}
            for dataset, shared in settings.items()
        },
        "samples": samples,
        "results": results,
        "made": environments,
    }


def counts(trials: Sequence[Trial], what: str) -> dict[str, dict[str, int]]:
    """{dataset, as reports call it: {method: number of its trials}}, of those that are `what` of a `Trial`."""
    numbers: dict[str, dict[str, int]] = {}
    for trial in trials:
        if getattr(trial, what):
            data = trial.runs[0].config.data
            of_dataset = numbers.setdefault(dataset_title(data.dataset, data.data_root), {})
            of_dataset[trial.candidate.method] = of_dataset.get(trial.candidate.method, 0) + 1
    return numbers


def shared_settings(config: Config, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that runs of all methods share: without the method's, and the architecture where it brings one.

    Args:
        recorded: the run's saved settings, with what `--fast` switched on.
    """
    brings = architecture_of(config.method.method)
    other = {*_OF_A_METHOD, *(("architecture", "architecture_options") if brings else ())}
    switched_on = {key: recorded[key] for key in FAST if key in recorded}
    return {key: value for key, value in (config.flat() | switched_on).items() if key not in other}


def _mixed(values: Sequence[Any]) -> str:
    """A setting in which runs differ, such as the precision of --fast on two machines; the same in any order."""
    texts = ("none" if value is None else str(value) for value in values)
    return f"differs between the runs: {', '.join(sorted(texts))}"
