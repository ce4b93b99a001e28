"""Methods over several datasets: mean ranks, Friedman's test, Nemenyi's critical difference (Demšar, 2006)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pandas as pd
from scipy import stats

from mmpareto.reporting.significance import LEVEL
from mmpareto.reporting.summary import Summary, p_text
from mmpareto.selection import TIE

PERMUTATIONS = 9999  # that are drawn, at most


def _rank_sums_squared(*ranks: np.ndarray, axis: int) -> np.ndarray:
    """The statistic of Friedman's test, but for constants: the sum over methods of their rank sums, squared."""
    return np.sum([column.sum(axis) ** 2 for column in ranks], axis=0)


@cache
def nemenyi_quantile(methods: int) -> float:
    """The studentized range's quantile at LEVEL for so many methods, over the root of two; takes a second."""
    return float(stats.studentized_range.ppf(1 - LEVEL, methods, math.inf)) / math.sqrt(2)


@dataclass(frozen=True)
class Ranking:
    """Scores of methods on several datasets.

    scores  a line per dataset, a column per method: mean joint test accuracy in percent
    """

    scores: pd.DataFrame

    @cached_property
    def _rounded(self) -> pd.DataFrame:
        return self.scores.round(TIE)  # means over seeds that differ by rounding alone are ties

    @cached_property
    def ranks(self) -> pd.Series:
        """Mean rank of each method, 1 the highest accuracy, ties shared; the best first."""
        return self._rounded.rank(axis=1, ascending=False).mean().sort_values(kind="stable")

    @cached_property
    def p(self) -> float:
        """p of Friedman's test that all methods are alike; NaN if all of them tie.

        From the permutations of ranks within datasets: all of them where there are few, else PERMUTATIONS that are
        drawn. The chi-square of textbooks is too conservative for few datasets, and the F of Iman and Davenport too
        liberal where they agree.
        """
        ranks = self._rounded.rank(axis=1)
        if ranks.nunique(axis=1).max() == 1:
            return math.nan
        columns = [ranks[name].to_numpy() for name in ranks]
        result = stats.permutation_test(
            columns,
            _rank_sums_squared,
            permutation_type="samples",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            alternative="greater",
            rng=np.random.default_rng(0),
        )
        return float(result.pvalue)

    @cached_property
    def critical_difference(self) -> float:
        """The least difference of two mean ranks that is significant by Nemenyi's test at LEVEL."""
        datasets, methods = self.scores.shape
        return nemenyi_quantile(methods) * math.sqrt(methods * (methods + 1) / (6 * datasets))

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """First and last place, by rank, of the largest groups of methods that do not differ significantly."""
        ranks = self.ranks.to_numpy()
        ends = [int((ranks < rank + self.critical_difference).sum()) - 1 for rank in ranks]
        return [
            (first, last) for first, last in enumerate(ends) if last > first and (first == 0 or last > ends[first - 1])
        ]

    @property
    def verdict(self) -> str:
        """A sentence on the methods' ranks."""
        best, differ = self.ranks.index[self.ranks == self.ranks.iloc[0]], self.p < LEVEL
        first = (
            f"{', '.join(best)} {'has' if len(best) == 1 else 'have'} the best mean rank, {self.ranks.iloc[0]:.2f}, "
            f"over {len(self.scores)} datasets"
        )
        numbers = "" if math.isnan(self.p) else f" (Friedman, p {p_text(self.p)})"
        if not differ:
            return f"{first}; the methods' ranks do not differ significantly{numbers}."
        group = self.ranks.index[: 1 + self.groups[0][1]] if self.groups and self.groups[0][0] == 0 else []
        rest = [name for name in group if name not in best]
        one = len(best) == 1
        joined = f"{'it does' if one else 'they do'} not differ significantly from {', '.join(rest)}"
        if not rest:
            joined = "it differs from all others" if one else "they differ from all others"
        return f"{first}; the methods' ranks differ{numbers}, {joined}."


def ranking(summaries: Sequence[Summary]) -> Ranking | None:
    """Rows that all datasets have, by their labels; None for fewer than two datasets or three rows.

    Rows selected on test are left out.
    """
    by_dataset = {
        summary.dataset: {row.label: row.mean for row in summary.rows if not row.selected_on_test}
        for summary in summaries
    }
    scores = pd.DataFrame(by_dataset).T.dropna(axis=1)
    return Ranking(scores) if len(scores) > 1 and scores.shape[1] > 2 else None
