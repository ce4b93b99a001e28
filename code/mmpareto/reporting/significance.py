"""Ranks of a dataset's rows, and paired t-tests against a baseline row, corrected after Holm."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from mmpareto.registries import METHODS, architecture_of
from mmpareto.reporting.comparison import Row, method_options, options_of, settings
from mmpareto.reporting.finished import FinishedRun
from mmpareto.runs import RunError

DEFAULTS = ("uniform", "uniform_gamma", "one_joint")  # baselines; the first that the runs have is taken
BASELINE = "baseline"  # reason of a row of the baseline method
SAME = 1e-9  # points: differences by seed that are no further apart are the same, which no t-test compares
LEVEL = 0.05  # a difference with a smaller corrected p is significant


@dataclass(frozen=True)
class PairedTest:
    """Joint test accuracy of a row against a baseline's over the seeds that both have.

    difference, p, corrected  None if nothing can be tested; reason says why.
    """

    baseline: Row | None
    seeds: tuple[int, ...] = ()
    difference: float | None = None
    p: float | None = None
    corrected: float | None = None
    reason: str = ""

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below LEVEL."""
        return self.corrected is not None and self.corrected < LEVEL


def baseline_method(runs: Sequence[FinishedRun], requested: str | None) -> str | None:
    """The method to compare with: the requested one, else the first of DEFAULTS that the runs have, else none.

    Raises RunError if no run is of the requested method.
    """
    methods = dict.fromkeys(run.method for run in runs)
    if requested is not None and requested not in methods:
        raise RunError(f"no finished run is of the method {requested!r}; --baseline takes one of: {', '.join(methods)}")
    return requested or next((method for method in DEFAULTS if method in methods), None)


def paired_tests(rows: Sequence[Row], method: str | None, tuned: Sequence[str] = ()) -> list[PairedTest]:
    """A test per row of one dataset's table, p-values corrected over all rows that could be tested (Holm, 1979).

    A row is compared with the baseline row of equal settings, except the method, its options, the architecture that it
    brings, and the tuned flags. Of
    several such baseline rows, the one with the same values of the options that both methods have is taken: a row with
    gamma 2 is compared with the baseline with gamma 2.
    """
    tests = [_test(row, [other for other in rows if other.method == method], tuned) for row in rows]
    corrected = iter(holm([test.p for test in tests if test.p is not None]))
    return [test if test.p is None else replace(test, corrected=next(corrected)) for test in tests]


def mean_ranks(rows: Sequence[Row]) -> list[float | None]:
    """Each row's place by joint test accuracy, 1 the highest, ties shared, mean over the seeds that all rows have.

    None for rows selected on test, which are not ranked, and for all rows if there is no common seed or only one row.
    """
    scores = pd.DataFrame({i: row.by_seed for i, row in enumerate(rows) if not row.selected_on_test}).dropna()
    if scores.empty or scores.shape[1] == 1:
        return [None] * len(rows)
    means = scores.rank(axis=1, ascending=False).mean()
    return [means.get(i) for i in range(len(rows))]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979)."""
    order = np.argsort(p_values)
    multiplied = np.take(p_values, order) * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(multiplied), 1.0)
    return corrected.tolist()


def paired_p(gains: np.ndarray) -> float | None:
    """p of a two-sided paired t-test from the differences by seed; None for fewer than two, or if they are the same."""
    if len(gains) < 2 or np.ptp(gains) <= SAME:
        return None
    return float(stats.ttest_1samp(gains, 0).pvalue)


def _test(row: Row, baselines: Sequence[Row], tuned: Sequence[str]) -> PairedTest:
    """The test of one row, not corrected."""
    if row in baselines:
        return PairedTest(None, reason=BASELINE)
    ignored: set[str] = set(tuned)
    if row.method in METHODS and architecture_of(row.method) is not None:  # no baseline has the method's own
        ignored |= {
            "architecture",
            *options_of([row.runs[0], *(other.runs[0] for other in baselines)], ["architecture"]),
        }
    candidates = [baseline for baseline in baselines if _common(baseline, ignored) == _common(row, ignored)]
    if len(candidates) > 1:
        candidates = [baseline for baseline in candidates if _same_options(baseline, row, tuned)] or candidates
    if len(candidates) != 1:
        count = len(candidates) or "no"
        return PairedTest(None, reason=f"{count} baseline rows with these settings" if baselines else "")
    (baseline,) = candidates
    pairs = pd.concat([row.by_seed, baseline.by_seed], axis=1, join="inner")
    seeds = tuple(pairs.index.tolist())
    if len(pairs) < 2:
        return PairedTest(baseline, seeds, reason=f"{len(pairs)} common seed{'s' * (len(pairs) != 1)}")
    gains = (pairs[0] - pairs[1]).to_numpy()
    difference, p = float(gains.mean()), paired_p(gains)
    return PairedTest(baseline, seeds, difference, p, reason="the same difference for every seed" if p is None else "")


def _same_options(baseline: Row, row: Row, tuned: Sequence[str]) -> bool:
    """Whether the two have an option of their methods in common, and the same values of all common options."""
    first, second = (method_options(member.runs[0]) for member in (row, baseline))
    shared = [name for name in first if name in second and name not in tuned]
    return bool(shared) and all(first[name] == second[name] for name in shared)


def _common(row: Row, ignored: Collection[str]) -> str:
    """What a row and its baseline must share: all settings but the method's options and the ignored ones."""
    run = row.runs[0]
    left_out = {*method_options(run), *ignored}
    return repr((run.selected_on_test, sorted((k, str(v)) for k, v in settings(run).items() if k not in left_out)))
