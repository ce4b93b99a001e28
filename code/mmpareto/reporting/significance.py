"""Ranks of a dataset's rows, and paired t-tests against a baseline row, corrected after Holm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mmpareto.reporting.comparison import Row, own_options, settings
from mmpareto.reporting.finished import FinishedRun
from mmpareto.runs import RunError

DEFAULTS = ("uniform", "uniform_gamma", "one_joint")  # baselines, the first that is there

BASELINE = "baseline"  # why a row of the baseline method is not tested


@dataclass(frozen=True)
class PairedTest:
    """Joint test accuracy of a row against a baseline's over the seeds that both have.

    difference, p, corrected  None where nothing can be tested; reason says why.
    """

    baseline: Row | None
    seeds: tuple[int, ...] = ()
    difference: float | None = None
    p: float | None = None
    corrected: float | None = None
    reason: str = ""


def baseline_method(found: Sequence[FinishedRun], asked: str | None) -> str | None:
    """The method to compare with: the one asked for, else the first of DEFAULTS that is there, else none.

    Raises RunError where no run is of the method asked for.
    """
    there = dict.fromkeys(run.method for run in found)
    if asked is not None and asked not in there:
        raise RunError(f"no finished run is of the method {asked!r}; --baseline takes one of: {', '.join(there)}")
    return asked or next((method for method in DEFAULTS if method in there), None)


def paired_tests(rows: Sequence[Row], method: str | None, tuned: Sequence[str] = ()) -> list[PairedTest]:
    """A test per row of one dataset's table, p-values corrected over all rows that could be tested.

    A row is compared with the baseline row whose settings are its own; method, options of the method and flags that
    were tuned aside. Of several such baseline rows it is the one with the same values of the options that both methods
    have: at gamma 2 the gain over the baseline at gamma 2.
    """
    tests = [_test(row, [r for r in rows if r.runs[0].method == method], tuned) for row in rows]
    corrected = iter(holm([test.p for test in tests if test.p is not None]))
    return [
        test if test.p is None else PairedTest(test.baseline, test.seeds, test.difference, test.p, next(corrected))
        for test in tests
    ]


def mean_ranks(rows: Sequence[Row]) -> list[float | None]:
    """Each row's place by joint test accuracy, 1 the highest, ties shared, mean over the seeds that all rows have.

    None for rows selected on test, which are not ranked, and for all where there is no common seed or nothing to rank.
    """
    ranked = [row for row in rows if not row.runs[0].selected_on_test]
    common = set.intersection(*(set(row.seeds) for row in ranked)) if len(ranked) > 1 else set()
    if not common:
        return [None] * len(rows)
    scores = np.array([[joint for seed, joint in zip(r.seeds, r.joint, strict=True) if seed in common] for r in ranked])
    means = iter(stats.rankdata(-scores, axis=0).mean(axis=1).tolist())
    return [None if row.runs[0].selected_on_test else next(means) for row in rows]


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p-values: the k-th smallest of m times m - k + 1, at most 1, never below that of a smaller one."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


def _test(row: Row, baselines: Sequence[Row], tuned: Sequence[str]) -> PairedTest:
    if row in baselines:
        return PairedTest(None, reason=BASELINE)
    alike = [baseline for baseline in baselines if _common(baseline, tuned) == _common(row, tuned)]
    if len(alike) > 1:
        alike = [baseline for baseline in alike if _same_options(baseline, row, tuned)] or alike
    if len(alike) != 1:
        return PairedTest(None, reason=f"{len(alike) or 'no'} baseline rows with these settings" if baselines else "")
    own, theirs = (dict(zip(r.seeds, r.joint, strict=True)) for r in (row, alike[0]))
    seeds = tuple(seed for seed in own if seed in theirs)
    if len(seeds) < 2:
        return PairedTest(alike[0], seeds, reason=f"{len(seeds)} common seed{'s' * (len(seeds) != 1)}")
    a, b = (np.array([accuracies[seed] for seed in seeds]) for accuracies in (own, theirs))
    difference = float(np.mean(a - b))
    if np.ptp(a - b) <= 1e-9 * max(1.0, abs(difference)):
        return PairedTest(alike[0], seeds, difference, reason="the same difference for every seed")
    p = float(stats.ttest_rel(a, b).pvalue)
    return PairedTest(alike[0], seeds, difference, p if math.isfinite(p) else None)


def _same_options(baseline: Row, row: Row, tuned: Sequence[str]) -> bool:
    """Whether the two have an option of their methods in common, and the same values of all such options."""
    own, theirs = (own_options(r.runs[0]) for r in (row, baseline))
    shared = [name for name in own if name in theirs and name not in tuned]
    return bool(shared) and all(own[name] == theirs[name] for name in shared)


def _common(row: Row, tuned: Sequence[str]) -> str:
    """What a row and its baseline must share: all settings but the method's and those in which runs may differ."""
    run = row.runs[0]
    own = {*own_options(run), *tuned}
    return repr((run.selected_on_test, sorted((k, str(v)) for k, v in settings(run).items() if k not in own)))
