"""A dataset's table: accuracies over seeds and tests against a baseline; as Markdown, CSV and LaTeX."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mmpareto.escape import counted, csv_cell, latex_text, markdown_text
from mmpareto.reporting import chance
from mmpareto.reporting.comparison import (
    Row,
    circumstances,
    differences,
    markdown_table,
    modalities_of,
    origin,
    rows_of,
    settings,
    spread,
    without_empty_columns,
    worded,
)
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.significance import BASELINE, LEVEL, PairedTest, baseline_method, mean_ranks, paired_tests
from mmpareto.reporting.sweeps import tuned
from mmpareto.runs import RunError
from mmpareto.selection import TIE

JOINT = 2  # the column of the joint accuracy


@dataclass(frozen=True)
class Summary:
    """A dataset's rows, with a test each.

    baseline  method of the rows that others are tested against; None if there is none
    choices   a sentence for each method on the values that validation chose
    tuned     the flags whose values were chosen
    """

    dataset: str
    rows: tuple[Row, ...]
    tests: tuple[PairedTest, ...]
    modalities: tuple[str, ...]
    baseline: str | None
    choices: tuple[str, ...] = ()
    tuned: tuple[str, ...] = ()

    @property
    def runs(self) -> list[FinishedRun]:
        """All finished runs, those in no mean included."""
        return [run for row in self.rows for run in (*row.runs, *row.repeated)]

    @property
    def best(self) -> list[bool]:
        """For each row, whether its joint mean is the highest; rows selected on test count only among themselves."""
        candidates = [row for row in self.rows if not row.selected_on_test] or list(self.rows)
        highest = max(round(row.mean, TIE) for row in candidates)
        return [row in candidates and round(row.mean, TIE) == highest for row in self.rows]

    @property
    def bold(self) -> list[bool]:
        """For each row, whether its joint mean is the highest and differs significantly from the baseline's.

        A baseline's mean is bold if every row that is tested against it differs significantly.
        """
        return [
            best and not row.selected_on_test and self._significant(i)
            for i, (row, best) in enumerate(zip(self.rows, self.best, strict=True))
        ]

    def _significant(self, i: int) -> bool:
        """Whether row i differs significantly from the baseline or, being the baseline, from all rows tested."""
        if self.tests[i].reason != BASELINE:
            return self.tests[i].significant
        others = self._tested_against(self.rows[i]).values()
        return bool(others) and all(others)

    def _tested_against(self, baseline: Row) -> dict[str, bool]:
        """For each row that could be tested against this one, by its label, whether it differs significantly."""
        pairs = zip(self.rows, self.tests, strict=True)
        return {row.label: test.significant for row, test in pairs if test.baseline is baseline and test.p is not None}

    @property
    def verdict(self) -> str:
        """A sentence on the row with the highest joint mean, and whether its difference is significant."""
        i = self.best.index(True)
        row, test = self.rows[i], self.tests[i]
        highest = f"{row.label} has the highest joint mean, {spread(row.joint)} %"
        if test.reason == BASELINE:
            tested = self._tested_against(row)
            alike = [label for label, significant in tested.items() if not significant]
            which = "all rows" if len(tested) == len(self.rows) - 1 else "all rows that could be tested"
            said = f"no significant difference from {', '.join(alike)}" if alike else f"{which} differ significantly"
            if not tested:
                said = "no other row could be tested" if len(self.rows) > 1 else "there is no other row"
            return f"{highest}, and is the baseline; {said}."
        if test.baseline is None or test.p is None or test.corrected is None:
            return f"{highest}; no difference from a baseline could be tested."
        amount = f"{test.difference:+.1f} points from {test.baseline.label}"
        not_significant = "" if test.significant else "not "
        numbers = f"p (Holm) {p_text(test.corrected)}, {len(test.seeds)} seeds"
        return f"{highest}; its difference of {amount} is {not_significant}significant ({numbers})."

    def chosen(self, row: Row) -> str:
        """The values of the tuned flags that a row has."""
        values = settings(row.runs[0])
        return ", ".join(f"{flag} {worded(values[flag])}" for flag in self.tuned if flag in values) or "-"

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows as text; columns without any value are left out."""
        lines = []
        for row, rank, test in zip(self.rows, mean_ranks(self.rows), self.tests, strict=True):
            difference = "n/a" if test.difference is None else f"{test.difference:+.1f}"
            is_baseline = test.reason == BASELINE
            lines.append(
                {"method": row.label, "seeds": str(len(row.runs)), "joint": spread(row.joint)}
                | {f"{name} alone": spread(row.accuracies(name)) for name in self.modalities}
                | row.combined
                | {"rank": "n/a" if rank is None else f"{rank:.1f}"}
                | {"difference": BASELINE if is_baseline else difference}
                | {"p": "-" if is_baseline else p_text(test.p)}
                | {"p (Holm)": "-" if is_baseline else p_text(test.corrected)}
                | ({"chosen": self.chosen(row)} if self.tuned else {})
            )
        return without_empty_columns(pd.DataFrame(lines))

    @cached_property
    def costs(self) -> pd.DataFrame:
        """Time and memory of each row, means over its runs; NaN if they recorded none.

        seconds, deviation   of the epochs of a run
        per_epoch            seconds
        ratio                of the seconds to those of the baseline row
        memory               peak, in MiB
        """
        lines = []
        for row, test in zip(self.rows, self.tests, strict=True):
            seconds = pd.Series(row.seconds, dtype=float)
            epochs = [run.results.get("epochs_trained") for run in row.runs]
            per_epoch = seconds / epochs if len(seconds) == len(epochs) and all(epochs) else pd.Series(dtype=float)
            baseline = row if test.reason == BASELINE else test.baseline
            reference = pd.Series([] if baseline is None else baseline.seconds, dtype=float).mean()
            lines.append(
                {
                    "seconds": seconds.mean(),
                    "deviation": seconds.std(),
                    "per_epoch": per_epoch.mean(),
                    "ratio": seconds.mean() / reference if reference > 0 else math.nan,
                    "memory": pd.Series(row.peak_memory, dtype=float).mean(),
                }
            )
        return pd.DataFrame(lines)

    @property
    def cost_table(self) -> pd.DataFrame:
        """`costs` as text; columns without any value are left out."""

        def cells(column: str, form: str) -> list[str]:
            return ["n/a" if math.isnan(value) else f"{value:{form}}" for value in self.costs[column]]

        table = {
            "method": [row.label for row in self.rows],
            "training time, s": [spread(row.seconds) for row in self.rows],
            "s per epoch": cells("per_epoch", ".2f"),
            f"times {self.baseline}": cells("ratio", ".2f"),
            "peak memory, MiB": cells("memory", ".0f"),
        }
        return without_empty_columns(pd.DataFrame(table))

    @property
    def cost(self) -> str:
        """A sentence on what training the row with the highest joint mean costs; empty if no time was recorded."""
        i = self.best.index(True)
        cost, test = self.costs.iloc[i], self.tests[i]
        if math.isnan(cost["seconds"]):
            return ""
        versus = (
            ""
            if test.baseline is None or math.isnan(cost["ratio"])
            else (f", {cost['ratio']:.2f} times that of {test.baseline.label}")
        )
        memory = "" if math.isnan(cost["memory"]) else f"; its peak memory is {cost['memory']:.0f} MiB"
        return f"Training it takes {cost['seconds']:.1f} s{versus}{memory}."

    @property
    def caption(self) -> str:
        """What the numbers are."""
        text = (
            "Test accuracy in percent of the joint head and of each modality's own head: mean ± sample standard "
            "deviation over seeds, a single seed without deviation. Joint - best single: points between the joint head "
            "and the best unimodal head of a run. "
        )
        if "rank" in self.table:
            text += (
                "Rank: the place by joint accuracy among the rows of one seed, 1 the best, as a mean over the seeds "
                "that all rows have; rows selected on test have none. "
            )
        if self.baseline is None:
            return f"{text}There is no baseline in these runs, so nothing is tested and nothing is bold."
        if "difference" not in self.table:
            return f"{text}No row could be tested against a baseline row (the notes say why), so nothing is bold."
        return (
            f"{text}Bold: the highest joint mean, if p (Holm) is below {LEVEL}, runs selected on test left aside. "
            f"Difference: joint accuracy less that of {self.baseline} with the same settings"
            f"{' (except what was chosen on validation)' * bool(self.choices)}, in points, mean over the seeds that "
            "both have. p: two-sided paired t-test over these seeds. p (Holm): corrected for the "
            f"{counted(sum(test.p is not None for test in self.tests), 'test')} of this table. n/a: fewer than two "
            "common seeds, or no such baseline."
        )

    @cached_property
    def notes(self) -> list[str]:
        """Warnings that the table does not show: rows not tested, runs in no mean, other differences of runs."""
        notes = [
            f"{row.label}: not tested, {test.reason}"
            for row, test in zip(self.rows, self.tests, strict=True)
            if test.p is None and test.reason not in ("", BASELINE)
        ]
        seeds = sorted({seed for row in self.rows for seed in row.seeds})
        fewer = [f"{row.label} ({', '.join(map(str, row.seeds))})" for row in self.rows if row.seeds != seeds]
        if fewer:
            notes.append(f"not over all of the seeds {', '.join(map(str, seeds))}, but those named: {'; '.join(fewer)}")
        for row in self.rows:
            if row.repeated:
                notes.append(row.repetition)
            if row.selected_on_test:
                notes.append(f"{row.label}: checkpoints selected on the test split, so the accuracy is too favourable")
        return [*notes, *chance.notes(self.rows, self.at_chance), *circumstances(self._averaged)]

    @cached_property
    def at_chance(self) -> dict[Path, dict[str, float]]:
        """See `chance.at_chance`; by the runs' folders."""
        return {run.path: chance.at_chance(run) for run in self.runs}

    @property
    def origin(self) -> str:
        """See `comparison.origin`."""
        return origin(self._averaged)

    @property
    def _averaged(self) -> list[FinishedRun]:
        return [run for row in self.rows for run in row.runs]


def summaries(
    runs: Sequence[FinishedRun],
    baseline: str | None = None,
    tune: Sequence[str] = (),
    tune_seeds: Sequence[int] = (),
) -> list[Summary]:
    """A summary per dataset, in alphabetical order.

    tune        flags of which each method has the values that are best on validation; runs with others are left out
    tune_seeds  the seeds whose validation accuracies count for that; all if none is given

    Raises RunError if no run has the requested baseline or a flag to tune, or if nothing can be chosen.
    """
    baseline_method(runs, baseline)
    known = dict.fromkeys(name for run in runs for name in settings(run))
    for flag in tune:
        if flag not in known:
            raise RunError(f"no run has a setting {flag!r}; they have: {', '.join(known)}")
    parts = []
    for dataset in sorted({run.dataset for run in runs}):
        members, choices = tuned([run for run in runs if run.dataset == dataset], tune, tune_seeds)
        has_baseline = baseline is None or any(run.method == baseline for run in members)
        method = baseline_method(members, baseline) if has_baseline else None
        rows = rows_of(members, tune)
        tests = paired_tests(rows, method, tune)
        names = tuple(modalities_of(members))
        parts.append(Summary(dataset, tuple(rows), tuple(tests), names, method, tuple(choices), tuple(tune)))
    return parts


def marks(run: FinishedRun, summary: Summary) -> list[str]:
    """What a reader of the list of runs must know of one."""
    remarks = ["selected on test"] * run.selected_on_test
    differing = differences(run, [other for other in summary.runs if other.method == run.method])
    if differing:
        remarks.append(f"differs from others of its method: {', '.join(differing)}")
    remarks += [f"{name} learned nothing" for name in summary.at_chance[run.path]]
    if any(run is repeated for row in summary.rows for repeated in row.repeated):
        remarks.append("its seed is counted already: in no mean")
    return remarks


def as_markdown(parts: Sequence[Summary], unfinished: Sequence[str] = ()) -> str:
    """A section per dataset; names of unfinished runs at the end."""
    sections = []
    for summary in parts:
        table = markdown_table(_escaped(summary, markdown_text, "**{}**"))
        items = [*summary.choices, *summary.notes, *filter(None, [summary.origin])]
        verdict = " ".join(filter(None, [summary.verdict, summary.cost]))
        paragraphs = [f"## {markdown_text(summary.dataset)}", markdown_text(verdict), table]
        costs = summary.cost_table
        cost_table = markdown_table(costs.map(markdown_text).rename(columns=markdown_text)) * (costs.shape[1] > 1)
        sections += [*paragraphs, markdown_text(summary.caption), cost_table, _markdown_list(items)]
    if unfinished:
        sections += ["## Not finished, left out", _markdown_list(unfinished)]
    return "\n\n".join(filter(None, sections)) + "\n"


def as_csv(parts: Sequence[Summary]) -> str:
    """A line per dataset and row, numbers in full; empty cells if there is no number.

    Values of tuned flags are in columns of their own, chosen_<flag>, empty if a method has no such flag.
    """
    modalities = list(dict.fromkeys(name for summary in parts for name in summary.modalities))
    lines = []
    for summary in parts:
        ranks = mean_ranks(summary.rows)
        costs = summary.costs.to_dict("records")
        for row, test, rank, best, cost in zip(summary.rows, summary.tests, ranks, summary.best, costs, strict=True):
            flags = settings(row.runs[0])
            line: dict[str, Any] = {
                "dataset": summary.dataset,
                "method": row.method,
                "label": row.label,
                "selected_on": "test" if row.selected_on_test else "val",
                "n_seeds": len(row.runs),
                "seeds": " ".join(map(str, row.seeds)),
                "best": int(best),
                **{f"chosen_{flag}": worded(flags[flag]) if flag in flags else "" for flag in summary.tuned},
            }
            columns = {"joint": row.joint, **{name: row.accuracies(name) for name in modalities}}
            for name, values in (columns | row.combined_values).items():
                scores = pd.Series(values, dtype=float)
                line |= {f"{name}_mean": scores.mean(), f"{name}_std": scores.std()}
            lines.append(
                line
                | {
                    "rank": rank,
                    "baseline": "" if test.baseline is None else test.baseline.label,
                    "common_seeds": len(test.seeds),
                    "difference": test.difference,
                    "p": test.p,
                    "p_holm": test.corrected,
                    "seconds_mean": cost["seconds"],
                    "seconds_std": cost["deviation"],
                    "seconds_per_epoch": cost["per_epoch"],
                    "times_baseline": cost["ratio"],
                    "peak_memory_mib": cost["memory"],
                }
            )
    table = pd.DataFrame(lines).map(csv_cell).rename(columns=csv_cell)
    return table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def as_latex(parts: Sequence[Summary]) -> str:
    r"""A table environment per dataset, for \usepackage{booktabs}."""
    environments = ["% needs \\usepackage{booktabs}\n"]
    for summary in parts:
        table = _escaped(summary, latex_text, r"\textbf{{{}}}")
        tabular = table.to_latex(index=False, escape=False, column_format="l" + "r" * (table.shape[1] - 1))
        caption = latex_text(f"{summary.dataset}. {summary.verdict} {summary.caption}")
        notes = [*summary.choices, *summary.notes, *filter(None, [summary.origin])]
        below = "".join(f"\\par\\smallskip{{\\footnotesize {latex_text(note)}}}\n" for note in notes)
        environments.append(f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{tabular}{below}\\end{{table}}\n")
    return "\n".join(environments)


def _escaped(summary: Summary, escape: Callable[[str], str], bold: str) -> pd.DataFrame:
    """The table with every cell and name escaped, and bold means."""
    table = summary.table.map(escape).rename(columns=escape)
    for i, is_bold in enumerate(summary.bold):
        if is_bold:
            table.iloc[i, JOINT] = bold.format(table.iloc[i, JOINT])
    return table


def _markdown_list(items: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(item)}" for item in items)


def p_text(value: float | None) -> str:
    """A p-value for a reader."""
    return "n/a" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
