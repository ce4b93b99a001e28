"""Flags that were varied: accuracy against a flag's value, and the value that validation chooses."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from mmpareto.reporting.comparison import SELECTED_ON_TEST, Row, differences, settings, worded
from mmpareto.reporting.finished import AGAIN, FinishedRun
from mmpareto.reporting.histories import GREATEST
from mmpareto.runs import RESULTS, RunError
from mmpareto.selection import rank

FEWEST = 3  # values that make a curve

Sweep = dict[str, list[tuple[float, Row]]]


def sweeps(rows: Sequence[Row]) -> dict[str, Sweep]:
    """For each flag with numbers for values: {method and other settings: rows by value, ascending}.

    A curve has three values or more of rows that differ in nothing else; rows selected on test are in none.
    """
    honest = [row for row in rows if not row.runs[0].selected_on_test]
    made: dict[str, Sweep] = {}
    for flag in dict.fromkeys(
        name for row in honest for name, value in settings(row.runs[0]).items() if _number(value)
    ):
        curves: dict[tuple[str, str], list[tuple[float, Row]]] = {}
        for row in honest:
            own = settings(row.runs[0])
            if _number(own.get(flag)):
                curves.setdefault((row.runs[0].method, _rest(own, [flag])), []).append((float(own[flag]), row))
        long = {key: sorted(curve, key=lambda point: point[0]) for key, curve in curves.items() if len(curve) >= FEWEST}
        if long:
            made[flag] = {_name(key[0], curve, long, flag): curve for key, curve in long.items()}
    return made


def tuned(
    found: Sequence[FinishedRun], flags: Sequence[str], chosen_on: Sequence[int] = ()
) -> tuple[list[FinishedRun], list[str]]:
    """Of runs that differ in these flags alone, those with the best values, and a sentence on each choice.

    chosen_on  seeds that choose; all that any of the values has, where none is given. The runs that are kept have other
               seeds too, so that a small grid chooses values and more seeds measure the chosen ones.

    The best values have the highest joint validation accuracy, averaged over these seeds, and on a tie the lowest mean
    loss (see `mmpareto.selection`). Values that lack one of these seeds, because its run failed or is not finished, are
    not eligible.

    Of several runs with the same values and seed, the first by path chooses, as it alone is in means.

    Raises RunError where a run has no validation accuracy, and where no values are eligible.
    """
    without = [run for run in found if flags and run.validation is None]
    if without:
        raise RunError(f"{without[0].path} has no joint validation accuracy in {RESULTS}; {AGAIN}")
    groups: dict[tuple[str, ...], dict[str, list[FinishedRun]]] = {}
    for run in found:
        own = settings(run)
        key = (run.dataset, run.method, str(run.selected_on_test), _rest(own, flags))
        values = ", ".join(f"{flag} {worded(own[flag])}" for flag in flags if flag in own)
        groups.setdefault(key, {}).setdefault(values, []).append(run)
    kept: list[FinishedRun] = []
    said = []
    firsts = [next(iter(candidates.values()))[0] for candidates in groups.values()]
    for ((dataset, method, *_), candidates), first in zip(groups.items(), firsts, strict=True):
        if len(candidates) == 1:
            kept += next(iter(candidates.values()))
            continue
        seeds = set(chosen_on) or {run.seed for runs in candidates.values() for run in runs}
        whole = {values: runs for values, runs in candidates.items() if {run.seed for run in runs} >= seeds}
        if not whole:
            raise RunError(
                f"{dataset}, {method}: no choice of {', '.join(flags)} has all of seeds "
                f"{', '.join(map(str, sorted(seeds)))}; finish the grid"
            )
        means, losses = {}, {}
        for values, runs in sorted(whole.items(), key=lambda pair: _order(pair[1][0], flags)):
            by_seed = {run.seed: run for run in sorted(runs, key=lambda run: str(run.path), reverse=True)}
            means[values] = statistics.mean(by_seed[seed].validation or 0.0 for seed in seeds)
            losses[values] = statistics.mean(by_seed[seed].validation_loss for seed in seeds)
        best = max(means, key=lambda values: rank(means[values], losses[values]))
        kept += whole[best]
        considered = "; ".join(f"{values}: {mean:.1f}" for values, mean in means.items())
        left = [values for values in candidates if values not in whole]
        incomplete = f"; not eligible, for want of seeds: {'; '.join(left)}" if left else ""
        over = f" over seeds {', '.join(map(str, sorted(seeds)))}" if chosen_on else ""
        others = [run for run in firsts if (run.dataset, run.method) == (dataset, method) and run is not first]
        apart = differences(first, others, flags)
        apart += [SELECTED_ON_TEST] * (first.selected_on_test and any(not run.selected_on_test for run in others))
        name = f"{method} ({', '.join(apart)})" if apart else method
        said.append(f"{name}: {best}, chosen by mean validation accuracy{over} ({considered}{incomplete})")
    return kept, said


def _order(run: FinishedRun, flags: Sequence[str]) -> list[tuple[bool, float, str]]:
    """Sort key of a run's values of these flags: numbers first, by size."""
    values = [settings(run).get(flag) for flag in flags]
    return [(False, float(v), "") if isinstance(v, int | float) and _number(v) else (True, 0.0, str(v)) for v in values]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= GREATEST


def _rest(own: dict[str, Any], flags: Iterable[str]) -> str:
    return repr(sorted((name, str(value)) for name, value in own.items() if name not in flags))


def _name(
    method: str,
    curve: Sequence[tuple[float, Row]],
    curves: dict[tuple[str, str], list[tuple[float, Row]]],
    flag: str,
) -> str:
    """The method, and the settings in which this curve differs from the others of the method."""
    own = settings(curve[0][1].runs[0])
    others = [settings(other[0][1].runs[0]) for (name, _), other in curves.items() if name == method]
    differing = [
        f"{key} {value}" for key, value in own.items() if key != flag and any(o.get(key) != value for o in others)
    ]
    return ", ".join([method, *differing])
