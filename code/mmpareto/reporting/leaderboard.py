"""Leaderboards: results of searched methods as a file, files of one protocol merged, tables over datasets.

A file `leaderboard.json` holds

    schema     1
    protocol   how values were searched and chosen
    spaces     {method: {option of its own: the values that were searched, or what it was set to}}
    settings   {dataset: settings that all runs share; of learning_rate and weight_decay the value where they were not
               searched, and the range of the learning rate}
    samples    {dataset: checksums of its samples by split}; missing in files of earlier versions
    diverged   {dataset: {method: trials that diverged}}; missing where none was counted
    idle       {dataset: {method: trials that ended before the method acted}}; missing in files of earlier versions
    results    rows of dataset, method, tuned (or the recipe's values), seed, values, scores in percent, seconds
    made       day, device, commit and versions, for readers: a list, or of earlier versions one of them

Results of another protocol, or with other settings or samples of the same dataset, are never merged.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpareto.config import ROUNDING, completed
from mmpareto.json_files import json_text, read_object
from mmpareto.reporting import charts
from mmpareto.reporting.balance import balance
from mmpareto.reporting.charts import Figure
from mmpareto.reporting.comparison_figures import critical_difference, joint_accuracies
from mmpareto.reporting.finished import RETRAIN, FinishedRun
from mmpareto.reporting.leaderboard_tables import (
    ALL,
    COUNTED,
    JOINT,
    RATE,
    SINGLE,
    in_order,
    ranked,
    result_rows,
    tables,
)
from mmpareto.reporting.page import FIGURES, unique_identifiers
from mmpareto.runs import RESULTS, RunError
from mmpareto.selection import COMBINATIONS, RULES, SEARCHED_FROM
from mmpareto.writing import atomically, write_text

FILE, TABLES, SCHEMA = "leaderboard.json", "leaderboard.md", 1
_CONTENT_TYPES: dict[str, Any] = {
    "protocol": dict,
    "spaces": dict,
    "settings": dict,
    "results": list,
    "made": dict | list,
}
_TYPES: dict[str, Any] = {
    "dataset": str,
    "method": str,
    "tuned": bool,
    "seed": int,
    "values": dict,
    "scores": dict,
    "seconds": int | float,
}
_PROTOCOL_TYPES: dict[str, Any] = {
    "sampler": str,
    "trials": int,
    "trial_seeds": list,
    "budget": int | None,
    "rule": str,
}


def result(run: FinishedRun, *, tuned: bool, values: Mapping[str, str]) -> dict[str, Any]:
    """A row of `results` from a finished run.

    Raises:
        RunError: where the run's files lack what a row needs.
    """
    if run.seconds is None:
        raise RunError(f"{run.path / RESULTS} has no seconds; {RETRAIN}")
    scores = {JOINT: run.joint, SINGLE: run.joint - run.lead}
    scores |= {label: value for rule, label in COMBINATIONS.items() if (value := run.all_heads(rule)) is not None}
    scores |= {f"{name} alone": value for name in run.modalities if (value := run.accuracy(name)) is not None}
    scores |= balance(run)
    return {
        "dataset": run.dataset,
        "method": run.method,
        "tuned": tuned,
        "seed": run.seed,
        "values": dict(values),
        "scores": scores,
        "seconds": run.seconds,
    }


def write(folder: Path, content: Mapping[str, Any]) -> str:
    """Write a leaderboard's file, tables and figures into a folder; the result are the tables."""
    write_text(folder / FILE, json_text({"schema": SCHEMA, **content}, indent=1))
    checked = read(folder / FILE)
    drawn = figures(checked)
    for path, files in drawn.values():
        (folder / path).parent.mkdir(exist_ok=True)
        for suffix, data in files.items():
            with atomically(folder / f"{path}.{suffix}") as stream:
                stream.write(data)
    text = tables(checked, {dataset: f"{path}.svg" for dataset, (path, _) in drawn.items()})
    write_text(folder / TABLES, text)
    return re.sub(r"\n\n!\[.*\)", "", text)  # a terminal shows no pictures


def figures(content: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, bytes]]]:
    """{dataset, or ALL: (path without suffix, {suffix: content})}: the joint accuracies; the critical difference."""
    rows = result_rows(content)
    rows = rows[rows["tuned"]]
    drawn: dict[str, tuple[Figure, list[str]]] = {}
    for dataset in rows["dataset"].unique():
        groups = rows[rows["dataset"] == dataset].groupby("method")
        order = in_order(groups[JOINT].mean())
        runs = {name: groups.get_group(name)[["seed", JOINT]].to_numpy().tolist() for name in order}
        labelled = [(name, [({"run": name, "seed": int(seed)}, joint) for seed, joint in runs[name]]) for name in order]
        drawn[dataset] = joint_accuracies(dataset, labelled), list(order)
    if (ranking := ranked(rows)) is not None and len(ranking.ranks) > 2:
        drawn[ALL] = critical_difference(ranking), []
    names = unique_identifiers(list(drawn))
    return {
        dataset: (f"{FIGURES}/{names[dataset]}-{figure.name}", charts.files(figure.specification(methods, [])))
        for dataset, (figure, methods) in drawn.items()
    }


def read(path: Path) -> dict[str, Any]:
    """A leaderboard's file, checked.

    Raises:
        RunError: where it cannot be read, or is no leaderboard.
    """
    try:
        content = read_object(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as a leaderboard ({error})") from error
    if content.get("schema") != SCHEMA:
        raise RunError(f"{path}: its schema is {content.get('schema')!r:.100}, expected {SCHEMA}; it is no leaderboard "
                       "that this version reads")  # fmt: skip
    for key, kind in _CONTENT_TYPES.items():
        if not isinstance(content.get(key), kind):
            raise RunError(f"{path}: its {key} is missing or damaged; make the leaderboard again")
    protocol, settings = content["protocol"], content["settings"]
    if not _typed(protocol, _PROTOCOL_TYPES) or protocol["rule"] not in RULES:
        raise RunError(f"{path}: its protocol is damaged; expected {', '.join(sorted(_PROTOCOL_TYPES))}, and a rule "
                       f"out of {', '.join(RULES)}")  # fmt: skip
    for what in COUNTED:
        numbers = content.setdefault(what, {})
        counts = [number for inner in numbers.values() for number in inner.values()] if _nested(numbers) else [None]
        if not all(type(number) is int for number in counts):
            raise RunError(f"{path}: its numbers of {what} trials are damaged; make the leaderboard again")
    samples = content.setdefault("samples", {})
    if not isinstance(samples, dict) or not all(map(_nested, samples.values())):
        raise RunError(f"{path}: its samples are damaged; make the leaderboard again")
    if isinstance(content["made"], dict):
        content["made"] = [content["made"]]
    if not _nested(settings) or not _nested(content["spaces"]):
        raise RunError(f"{path}: its settings or spaces are damaged; expected names and values for each")
    for values in settings.values():  # older versions wrote them
        for key in ROUNDING:
            values.pop(key, None)
    keys: set[tuple[Any, ...]] = set()
    for number, row in enumerate(content["results"], 1):
        known = isinstance(row, dict) and _typed(row, _TYPES) and math.isfinite(row["seconds"])
        if not known or not _numbers(row["scores"]):
            raise RunError(
                f"{path}: result {number} is damaged; expected {', '.join(_TYPES)}, and scores that are numbers, with "
                f"{JOINT} and {SINGLE} among them"
            )
        if _key(row) in keys:
            raise RunError(f"{path}: {_named(row)} is there twice; leave one of them out")
        keys.add(_key(row))
    if not any(row["tuned"] for row in content["results"]):
        raise RunError(f"{path}: it has no result with chosen values; finish the search first")
    return content


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """Several files as one.

    Raises:
        RunError: where protocols, settings on a dataset, or the values chosen for a method differ, or a result comes
            twice with other scores.
    """
    whole = read(paths[0])
    rows = {_key(row): row for row in whole["results"]}
    values_of = {_key(row)[:3]: row["values"] for row in whole["results"]}  # by dataset, method and tuned
    for path in paths[1:]:
        other = read(path)
        _same(whole["protocol"], other["protocol"], f"{path}: another protocol than {paths[0]}")
        for part, comparable in (("spaces", dict), ("settings", _comparable)):
            for name in whole[part].keys() & other[part].keys():
                first, second = comparable(whole[part][name]), comparable(other[part][name])
                if (RATE in first) != (RATE in second):
                    first, second = _without_range(first), _without_range(second)
                _same(first, second, f"{path}: other {part} of {name} than {paths[0]}")
            for name, values in other[part].items():  # what one file says more is kept, whatever their order
                whole[part][name] = values | whole[part].get(name, {})
        for name, samples in other["samples"].items():
            ours = whole["samples"].setdefault(name, {})
            message = f"{path}: other samples of {name} than {paths[0]}"
            _same(_known_of_both(ours, samples), _known_of_both(samples, ours), message)
            for split, about in samples.items():
                ours[split] = about | ours.get(split, {})
        for kind in COUNTED:
            for dataset, numbers in other[kind].items():
                ours = whole[kind].setdefault(dataset, {})
                both = ours.keys() & numbers.keys()
                message = f"{path}: another number of {kind} trials on {dataset} than in another file"
                _same({name: ours[name] for name in both}, {name: numbers[name] for name in both}, message)
                ours |= numbers
        whole["made"] += [made for made in other["made"] if made not in whole["made"]]
        for row in other["results"]:
            values = values_of.setdefault(_key(row)[:3], row["values"])
            if values != row["values"]:
                raise RunError(
                    f"{path}: {_named(row)} has other values than in another file ({row['values']}, not {values}); "
                    "they are no runs of one choice, leave one of them out"
                )
            known = rows.setdefault(_key(row), row)
            both = known["scores"].keys() & row["scores"].keys()  # measures of balance may be in one file alone
            if any(known["scores"][name] != row["scores"][name] for name in both):
                raise RunError(f"{path}: {_named(row)} is in another file, with other scores; leave one of them out")
            known["scores"] = row["scores"] | known["scores"]
    return whole | {"results": list(rows.values())}


def _known_of_both(samples: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of samples, by split, as far as it is said of others too: earlier versions said less."""
    return {
        split: {key: value for key, value in about.items() if key in other[split]}
        for split, about in samples.items()
        if split in other
    }


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of those that earlier versions did not have; what was searched has none."""
    searched = {RATE, "weight_decay"} - settings.keys()
    return {key: value for key, value in completed(settings).items() if key not in searched}


def _without_range(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the learning rate where it is the range that was searched, which earlier versions left out."""
    return {key: value for key, value in settings.items() if key != RATE or not str(value).startswith(SEARCHED_FROM)}


def _nested(values: Any) -> bool:
    """Whether it holds values by name, by name."""
    return isinstance(values, dict) and all(isinstance(inner, dict) for inner in values.values())


def _typed(values: Mapping[str, Any], types: Mapping[str, Any]) -> bool:
    """Whether each of these names has a value of its type; True and False are no numbers."""
    return values.keys() >= types.keys() and all(
        isinstance(values[key], kind) and (kind is bool or type(values[key]) is not bool) for key, kind in types.items()
    )


def _numbers(scores: Mapping[str, Any]) -> bool:
    return (
        {JOINT, SINGLE} <= scores.keys()
        and not scores.keys() & _TYPES.keys()  # both are columns of one table
        and all(type(value) in (int, float) and math.isfinite(value) for value in scores.values())
    )


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['method']} on {row['dataset']} with seed {row['seed']}" + (
        "" if row["tuned"] else " and the recipe's values"
    )


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("dataset", "method", "tuned", "seed"))


def _same(first: Mapping[str, Any], second: Mapping[str, Any], what: str) -> None:
    other = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    if other:
        key = other[0]
        raise RunError(
            f"{what} ({key}: {second.get(key)!r:.100}, not {first.get(key)!r:.100}); they cannot be merged: leave one "
            "of the files out, or run its search again with the same settings, in a new folder"
        )
