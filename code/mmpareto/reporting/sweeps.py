"""Flags that were varied: accuracy against a flag's value, and the value that validation chooses."""

import math
import statistics
from collections.abc import Sequence

import pandas as pd

from mmpareto.reporting.comparison import Row, differences, settings, settings_table, worded
from mmpareto.reporting.finished import RETRAIN, FinishedRun
from mmpareto.reporting.histories import GREATEST
from mmpareto.runs import RESULTS, RunError
from mmpareto.selection import SELECTED_ON_TEST, rank

FEWEST = 3  # values that make a curve

Sweep = dict[str, list[tuple[float, Row]]]


def sweeps(rows: Sequence[Row]) -> dict[str, Sweep]:
    """For each flag with numbers for values: {method and other settings: rows by value, ascending}.

    A curve has three values or more of rows that differ in nothing else; rows selected on test are in none.
    """
    rows = [row for row in rows if not row.selected_on_test]
    table = settings_table([row.runs[0] for row in rows]).reset_index(drop=True)
    numbers = table.apply(pd.to_numeric, errors="coerce")
    numbers = numbers.where(numbers.abs() <= GREATEST)
    by_flag: dict[str, Sweep] = {}
    for flag, values in numbers.items():
        others = table.drop(columns=flag).assign(method=[row.method for row in rows])
        groups = values.dropna().groupby(others.apply(tuple, axis=1), sort=False)
        long = [group.sort_values() for _, group in groups if len(group) >= FEWEST]
        curves = [[(value, rows[i]) for i, value in group.items()] for group in long]
        firsts = [curve[0][1].runs[0] for curve in curves]
        for run, curve in zip(firsts, curves, strict=True):
            same_method = [other for other in firsts if other.method == run.method]
            label = ", ".join([run.method, *differences(run, same_method, [str(flag)])])
            by_flag.setdefault(str(flag), {})[label] = curve
    return by_flag


def tuned(
    runs: Sequence[FinishedRun], flags: Sequence[str], seeds: Sequence[int] = ()
) -> tuple[list[FinishedRun], list[str]]:
    """Of runs that differ in these flags alone, those with the best values, and a sentence on each choice.

    seeds  that choose; all that any of the values has, if none is given. The runs that are kept have other seeds too,
           so that a small grid chooses values and more seeds measure the chosen ones.

    The best values have the highest joint validation accuracy, averaged over these seeds, and on a tie the lowest mean
    loss (see `mmpareto.selection`). Values that lack one of these seeds, because its run failed or is not finished, are
    not eligible. Of several runs with the same values and seed, the first by path chooses.

    Raises RunError if a run has no validation accuracy, or if no values are eligible.
    """
    for run in runs:
        if flags and run.validation is None:
            raise RunError(f"{run.path} has no joint validation accuracy in {RESULTS}; {RETRAIN}")
    groups: dict[tuple[str, ...], dict[str, list[FinishedRun]]] = {}
    for run in runs:
        values = settings(run)
        rest = repr(sorted((name, str(value)) for name, value in values.items() if name not in flags))
        chosen = ", ".join(f"{flag} {worded(values[flag])}" for flag in flags if flag in values)
        key = (run.dataset, run.method, str(run.selected_on_test), rest)
        groups.setdefault(key, {}).setdefault(chosen, []).append(run)
    kept: list[FinishedRun] = []
    sentences = []
    firsts = [next(iter(candidates.values()))[0] for candidates in groups.values()]
    for first, candidates in zip(firsts, groups.values(), strict=True):
        if len(candidates) == 1:
            kept += next(iter(candidates.values()))
            continue
        best, reason = _choose(candidates, flags, seeds)
        kept += candidates[best]
        others = [run for run in firsts if (run.dataset, run.method) == (first.dataset, first.method)]
        differing = differences(first, others, flags)
        differing += [SELECTED_ON_TEST] * (first.selected_on_test and not all(run.selected_on_test for run in others))
        name = f"{first.method} ({', '.join(differing)})" if differing else first.method
        sentences.append(f"{name}: {best}, chosen by mean validation accuracy{reason}")
    return kept, sentences


def _choose(
    candidates: dict[str, list[FinishedRun]], flags: Sequence[str], requested: Sequence[int]
) -> tuple[str, str]:
    """The best of the candidates, {values: runs}, and the seeds and means behind the choice in words."""
    seeds = set(requested) or {run.seed for runs in candidates.values() for run in runs}
    listed = ", ".join(map(str, sorted(seeds)))
    eligible = {values: runs for values, runs in candidates.items() if {run.seed for run in runs} >= seeds}
    if not eligible:
        run = next(iter(candidates.values()))[0]
        raise RunError(
            f"{run.dataset}, {run.method}: no choice of {', '.join(flags)} has all of seeds {listed}; finish the grid"
        )
    means, losses = {}, {}
    for values, runs in sorted(eligible.items(), key=lambda pair: _order(pair[1][0], flags)):
        by_seed = {run.seed: run for run in sorted(runs, key=lambda run: str(run.path), reverse=True)}
        means[values] = statistics.mean(by_seed[seed].validation or 0.0 for seed in seeds)
        losses[values] = statistics.mean(by_seed[seed].validation_loss for seed in seeds)
    best = max(means, key=lambda values: rank(means[values], losses[values]))
    considered = "; ".join(f"{values}: {mean:.1f}" for values, mean in means.items())
    incomplete = "; ".join(values for values in candidates if values not in eligible)
    note = f"; not eligible, for want of seeds: {incomplete}" if incomplete else ""
    return best, f"{f' over seeds {listed}' if requested else ''} ({considered}{note})"


def _order(run: FinishedRun, flags: Sequence[str]) -> list[tuple[bool, float, str]]:
    """Sort key of a run's values of these flags: numbers first, by size."""
    values = [settings(run).get(flag) for flag in flags]
    return [
        (False, value, "") if isinstance(value, int | float) and math.isfinite(value) else (True, 0.0, str(value))
        for value in values
    ]
