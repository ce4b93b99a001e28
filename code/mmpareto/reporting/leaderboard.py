"""Leaderboards: results of searched methods as a file, files of one protocol merged, tables over datasets.

A file `leaderboard.json` holds

    schema     1
    protocol   how values were searched and chosen
    spaces     {method: {option of its own: the values that were searched, or what it was set to}}
    settings   {dataset: settings that all runs share; learning_rate and weight_decay only where they were not searched,
               or not around the recipe's}
    diverged   {dataset: {method: trials that diverged}}; missing where none was counted
    results    rows of dataset, method, tuned (or the recipe's values), seed, values, scores in percent, seconds
    made       date, device, commit and versions, for readers

Results of another protocol, or with other settings on the same dataset, are never merged.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mmpareto.config import ROUNDING, completed
from mmpareto.escape import counted, markdown_text
from mmpareto.json_files import read_object
from mmpareto.reporting import charts
from mmpareto.reporting.balance import MEASURES, balance, place, with_gaps
from mmpareto.reporting.charts import Figure
from mmpareto.reporting.comparison import LEAD, markdown_table, spread
from mmpareto.reporting.comparison_figures import critical_difference, joint_accuracies
from mmpareto.reporting.finished import RETRAIN, FinishedRun
from mmpareto.reporting.page import FIGURES, unique_identifiers
from mmpareto.reporting.ranking import Ranking
from mmpareto.reporting.significance import DEFAULTS, LEVEL, holm
from mmpareto.reporting.summary import p_text
from mmpareto.runs import RESULTS, RunError
from mmpareto.selection import COMBINATIONS, RULES, TIE
from mmpareto.writing import atomically, write_text

FILE, TABLES, SCHEMA = "leaderboard.json", "leaderboard.md", 1
ALL = "All datasets"
JOINT, SINGLE = "joint", "best single"
TOGETHER = COMBINATIONS["logarithms"]
_RESAMPLES = 10_000
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
    write_text(folder / FILE, json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n")
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
    rows = _rows(content)
    rows = rows[rows["tuned"]]
    drawn: dict[str, tuple[Figure, list[str]]] = {}
    for dataset in rows["dataset"].unique():
        groups = rows[rows["dataset"] == dataset].groupby("method")
        order = _in_order(groups[JOINT].mean())
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
        RunError: where it cannot be read, or is none.
    """
    try:
        content = read_object(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as a leaderboard ({error})") from error
    if content.get("schema") != SCHEMA:
        raise RunError(f"{path}: its schema is {content.get('schema')!r:.100}, expected {SCHEMA}; it is no leaderboard "
                       "that this version reads")  # fmt: skip
    for key, kind in (("protocol", dict), ("spaces", dict), ("settings", dict), ("results", list), ("made", dict)):
        if not isinstance(content.get(key), kind):
            raise RunError(f"{path}: its {key} is missing or damaged; make the leaderboard again")
    protocol, settings = content["protocol"], content["settings"]
    if not _typed(protocol, _PROTOCOL_TYPES) or protocol["rule"] not in RULES:
        raise RunError(f"{path}: its protocol is damaged; expected {', '.join(sorted(_PROTOCOL_TYPES))}, and a rule "
                       f"out of {', '.join(RULES)}")  # fmt: skip
    lost = content.setdefault("diverged", {})
    counts = [number for numbers in lost.values() for number in numbers.values()] if _nested(lost) else [None]
    if not all(type(number) is int for number in counts):
        raise RunError(f"{path}: its numbers of diverged trials are damaged; make the leaderboard again")
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
        for part, complete in (("spaces", dict), ("settings", completed)):
            for name in whole[part].keys() & other[part].keys():
                first, second = complete(whole[part][name]), complete(other[part][name])
                _same(first, second, f"{path}: other {part} of {name} than {paths[0]}")
            whole[part] |= other[part]
        for dataset, numbers in other["diverged"].items():
            whole["diverged"][dataset] = whole["diverged"].get(dataset, {}) | numbers
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


def _rows(content: Mapping[str, Any]) -> pd.DataFrame:
    """A line per result, its scores in columns."""
    return pd.DataFrame([{**row, **row["scores"]} for row in content["results"]])


def tables(content: Mapping[str, Any], pictures: Mapping[str, str] | None = None) -> str:
    """The leaderboard in Markdown: how it was made, a table per dataset, one over all of them.

    pictures  {dataset, or ALL: path of its figure}
    """
    protocol, rows = content["protocol"], _rows(content)
    parts = [worded(protocol)]
    shown = {dataset: f"![{markdown_text(dataset)}]({path})" for dataset, path in (pictures or {}).items()}
    for dataset in dict.fromkeys(rows["dataset"][rows["tuned"]]):
        of_dataset = rows[rows["dataset"] == dataset]
        lost = content["diverged"].get(dataset, {})
        parts += [
            f"## {dataset}",
            not_searched(content["settings"].get(dataset, {})),
            dataset_table(of_dataset),
            diverged_trials(lost, protocol["trials"]),
            shown.get(dataset, ""),
            balance_table(of_dataset[of_dataset["tuned"]]),
        ]
    tuned = rows[rows["tuned"]]
    if tuned["dataset"].nunique() > 1:
        parts += [f"## {ALL}", over_datasets(tuned), shown.get(ALL, "")]
    return "\n\n".join(filter(None, parts)) + "\n"


def worded(protocol: Mapping[str, Any]) -> str:
    """How values were chosen, in a sentence or two."""
    budget = (
        "as many epochs as the reported runs" if protocol["budget"] is None else counted(protocol["budget"], "epoch")
    )
    seeds = ", ".join(map(str, protocol["trial_seeds"]))
    return (
        f"Every method: {counted(protocol['trials'], 'trial')} ({protocol['sampler']}), each of {budget}, with seed "
        f"{seeds}; chosen by {RULES[protocol['rule']]}. Then fresh seeds.\n\n"
        "Test accuracy in percent, mean ± sample standard deviation; in brackets the 95 % bootstrap interval of the "
        "mean. Effect of tuning: chosen values less the recipe's, mean over seeds. p: two-sided paired t-test against "
        "the baseline's joint head, corrected over the column after Holm; of the joint head, and of all heads by the "
        "sum of their log-probabilities. Rows are in the order of their means. A row marked = "
        "does not differ significantly from the first one: p of a paired test against it, corrected after Holm, is not "
        f"below {LEVEL}."
    )


def not_searched(settings: Mapping[str, Any]) -> str:
    """A sentence on what every method has searched otherwise; "" where nothing is."""
    other = [f"{key} {settings[key]}" for key in ("learning_rate", "weight_decay") if key in settings]
    return f"The same for all methods: {markdown_text(', '.join(other))}." if other else ""


def dataset_table(rows: pd.DataFrame) -> str:
    """A row per method, the highest joint mean first."""
    tuned = rows[rows["tuned"]].pivot_table(index="seed", columns="method", values=JOINT)
    recipe = rows[~rows["tuned"]].pivot_table(index="seed", columns="method", values=JOINT)
    order = _in_order(tuned.mean())
    from_first = paired(tuned, tuned[order[0]])
    baseline = next((method for method in DEFAULTS if method in order), None)
    columns = {} if baseline is None else {(f"less {baseline}", "p"): tuned.drop(columns=baseline)}
    if baseline is not None and TOGETHER in rows:
        together = rows[rows["tuned"]].pivot_table(index="seed", columns="method", values=TOGETHER)
        columns[f"all heads less {baseline}", "p, all heads"] = together
    tests = {names: paired(table, tuned[baseline]) for names, table in columns.items()}
    lines = []
    for method in order:
        runs = rows[rows["tuned"] & (rows["method"] == method)]
        joint = tuned[method].dropna()
        gains = (tuned[method] - tuned[order[0]]).dropna()
        alike = len(gains) > 1 and not gains.any()  # which no t-test says
        equal = method != order[0] and (from_first[method] >= LEVEL if method in from_first else alike)
        line = {
            "method": markdown_text(method) + " =" * equal,
            "seeds": str(len(joint)),
            "joint": f"{spread(joint.tolist())} {interval(joint)}".strip(),
            LEAD: spread((runs[JOINT] - runs[SINGLE]).tolist()),
        }
        line |= {label: spread(runs[label].dropna().tolist()) for label in COMBINATIONS.values() if label in runs}
        if method in recipe and (effect := (joint - recipe[method]).dropna()).size:
            line["effect of tuning"] = f"{effect.mean():+.1f}"
        for (less, p), table in columns.items():
            known = method in table and (table[method] - tuned[baseline]).notna().any()
            line[less] = f"{(table[method] - tuned[baseline]).mean():+.1f}" if known else "-"
            line[p] = p_text(tests[less, p][method]) if method in tests[less, p] else "-"
        lines.append(line | {"seconds a run": f"{runs['seconds'].mean():.0f}"})
    return markdown_table(pd.DataFrame(lines).fillna("n/a"))


def _in_order(means: pd.Series) -> pd.Index:
    """Methods, the highest mean first; those that differ by rounding alone as they come."""
    return means.round(TIE).sort_values(ascending=False, kind="stable").index


def diverged_trials(lost: Mapping[str, int], trials: int) -> str:
    """A sentence on the trials that diverged, which no rule chooses."""
    if not lost:
        return ""
    listed = ", ".join(f"{markdown_text(method)} {number} of {trials}" for method, number in lost.items())
    return f"Diverged trials (a loss or gradient was not finite): {listed}."


def balance_table(rows: pd.DataFrame) -> str:
    """A row per method in the order of `dataset_table`: means of the measures of balance."""
    rows = with_gaps(rows)
    names = sorted((name for name in rows if name.startswith(MEASURES) and rows[name].notna().any()), key=place)
    means = rows.groupby("method")[[JOINT, *names]].mean()
    table = (
        means.loc[_in_order(means[JOINT]), names]
        .map(lambda value: "n/a" if pd.isna(value) else f"{value:.1f}")
        .reset_index()
    )
    table["method"] = table["method"].map(markdown_text)
    return markdown_table(table.rename(columns=markdown_text)) if names else ""


def over_datasets(rows: pd.DataFrame) -> str:
    """Mean joint accuracy by dataset, mean rank over datasets, Friedman's test and Nemenyi's critical difference."""
    ranking = ranked(rows)
    missing = [name for name in rows["method"].unique() if ranking is None or name not in ranking.ranks.index]
    left_out = f"Not on all datasets, and left out: {', '.join(map(markdown_text, missing))}." if missing else ""
    if ranking is None:
        return left_out
    shown = ranking.scores.T.map(lambda value: f"{value:.1f}").assign(
        rank=ranking.ranks.map(lambda value: f"{value:.2f}")
    )
    text = markdown_table(shown.loc[ranking.ranks.index].rename_axis("method").reset_index())
    text = "\n\n".join(filter(None, [text, left_out]))
    if len(ranking.ranks) < 3:
        return text
    verdict = markdown_text(ranking.verdict)
    return (
        f"{text}\n\n{verdict} Ranks that differ by less than {ranking.critical_difference:.2f}, Nemenyi's "
        f"critical difference at {LEVEL}, do not differ significantly."
    )


def ranked(rows: pd.DataFrame) -> Ranking | None:
    """The methods that all datasets have, by their mean joint accuracy; None for one dataset, or no such method."""
    table = rows.pivot_table(index="dataset", columns="method", values=JOINT, sort=False).dropna(axis=1)
    return Ranking(table) if len(table) > 1 and table.shape[1] else None


def paired(accuracies: pd.DataFrame, reference: pd.Series) -> dict[str, float]:
    """{method: p, corrected after Holm} of paired t-tests of columns against other accuracies, over common seeds."""
    p_values: dict[str, float] = {}
    for method in accuracies:
        gains = (accuracies[method] - reference).dropna().to_numpy()
        if len(gains) > 1 and np.ptp(gains) > 1e-9:
            p_values[method] = float(stats.ttest_1samp(gains, 0).pvalue)
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def interval(values: pd.Series) -> str:
    """The 95 % bootstrap interval of the mean (percentiles, fixed seed); "" for fewer than three values."""
    listed = values.to_numpy()
    if len(listed) < 3 or np.ptp(listed) == 0:
        return ""
    bounds = stats.bootstrap(
        (listed,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return f"[{bounds.low:.1f}, {bounds.high:.1f}]"
