"""A dataset's table: accuracies over seeds and tests against a baseline; as Markdown, CSV and LaTeX."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmpareto.escape import latex_text, markdown_text, write_csv_rows
from mmpareto.reporting import chance
from mmpareto.reporting.comparison import (
    Row,
    circumstances,
    differences,
    modalities_of,
    origin,
    repeated,
    rows_of,
    settings,
    spread,
)
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.significance import BASELINE, PairedTest, baseline_method, mean_ranks, paired_tests
from mmpareto.reporting.sweeps import tuned
from mmpareto.runs import RunError


@dataclass(frozen=True)
class Summary:
    """A dataset's rows, with a test each.

    baseline  method of the rows that others are tested against; None where there is none
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
        honest = [row for row in self.rows if not row.runs[0].selected_on_test] or list(self.rows)
        highest = max(statistics.mean(row.joint) for row in honest)
        return [row in honest and statistics.mean(row.joint) == highest for row in self.rows]

    @property
    def header(self) -> list[str]:
        """The columns' names."""
        return ["method", "seeds", "joint", *(f"{name} alone" for name in self.modalities), *_COLUMNS]

    @property
    def cells(self) -> list[list[str]]:
        """A line of text per row."""
        return [
            [
                row.label,
                str(len(row.runs)),
                spread(row.joint),
                *(spread(row.accuracies(name)) for name in self.modalities),
                "n/a" if rank is None else f"{rank:.1f}",
                *_tested(test),
            ]
            for row, rank, test in zip(self.rows, mean_ranks(self.rows), self.tests, strict=True)
        ]

    @property
    def caption(self) -> str:
        """What the numbers are."""
        parts = [
            "Test accuracy in percent of the joint head and of each modality's own head: mean ± sample standard "
            "deviation over seeds, a single seed without deviation. Bold: the highest joint mean, runs selected on "
            "test left aside. Rank: the place by joint accuracy among the rows of one seed, 1 the best, as a mean "
            "over the seeds that all rows have; rows selected on test have none."
        ]
        if self.baseline is None:
            parts.append("There is no baseline in these runs, so nothing is tested.")
        else:
            tested = sum(test.p is not None for test in self.tests)
            parts.append(
                f"Difference: joint accuracy less that of {self.baseline} with the same settings"
                f"{', what was chosen on validation aside' * bool(self.choices)}, in points, mean over the seeds that "
                f"both have. p: two-sided paired t-test over these seeds. p (Holm): corrected for the "
                f"{tested} tests of this table. n/a: fewer than two common seeds, or no such baseline."
            )
        return " ".join(parts)

    def notes(self) -> list[str]:
        """What cannot be seen in the table: why a row was not tested, what is in no mean, what else runs differ in."""
        return self._notes

    @cached_property
    def _notes(self) -> list[str]:
        said = list(self.choices)
        said += [
            f"{row.label}: not tested, {test.reason}"
            for row, test in zip(self.rows, self.tests, strict=True)
            if test.p is None and test.reason not in ("", BASELINE)
        ]
        everyone = sorted({seed for row in self.rows for seed in row.seeds})
        fewer = [f"{row.label} ({', '.join(map(str, row.seeds))})" for row in self.rows if row.seeds != everyone]
        if fewer:
            said.append(
                f"not over all of the seeds {', '.join(map(str, everyone))}, but those named: {'; '.join(fewer)}"
            )
        for row in self.rows:
            if row.repeated:
                said.append(repeated(row))
            if row.runs[0].selected_on_test:
                said.append(f"{row.label}: checkpoints selected on the test split, so the accuracy is too favourable")
        said += chance.notes(self.rows)
        averaged = [run for row in self.rows for run in row.runs]
        return [*said, *circumstances(averaged), *filter(None, [origin(averaged)])]


def summaries(
    found: Sequence[FinishedRun],
    baseline: str | None = None,
    tune: Sequence[str] = (),
    tune_seeds: Sequence[int] = (),
) -> list[Summary]:
    """A summary per dataset, in alphabetical order.

    tune        flags of which each method has the values that are best on validation; runs with others are left out
    tune_seeds  the seeds whose validation accuracies count for that; all where none is given

    Raises RunError where the baseline asked for, or a flag to tune, is in none of them, or where nothing can be chosen.
    """
    baseline_method(found, baseline)
    known = dict.fromkeys(name for run in found for name in settings(run))
    for flag in tune:
        if flag not in known:
            raise RunError(f"no run has a setting {flag!r}; they have: {', '.join(known)}")
    made = []
    for dataset in sorted({run.dataset for run in found}):
        own, choices = tuned([run for run in found if run.dataset == dataset], tune, tune_seeds)
        there = baseline is None or any(run.method == baseline for run in own)
        method = baseline_method(own, baseline) if there else None
        rows = rows_of(own)
        tests = paired_tests(rows, method, tune)
        names = tuple(modalities_of(own))
        made.append(Summary(dataset, tuple(rows), tuple(tests), names, method, tuple(choices), tuple(tune)))
    return made


def marks(run: FinishedRun, summary: Summary) -> list[str]:
    """What a reader of the list of runs must know of one."""
    said = []
    if run.selected_on_test:
        said.append("selected on test")
    differing = differences(run, [other for other in summary.runs if other.method == run.method])
    if differing:
        said.append(f"differs from others of its method: {', '.join(differing)}")
    said += [f"{name} learned nothing" for name in chance.at_chance(run)]
    if any(run is repeated for row in summary.rows for repeated in row.repeated):
        said.append("its seed is counted already: in no mean")
    return said


def as_markdown(made: Sequence[Summary], unfinished: Sequence[str] = ()) -> str:
    """A section per dataset; names of unfinished runs at the end."""
    parts = []
    for summary in made:
        body = [[markdown_text(cell) for cell in line] for line in summary.cells]
        for line, best in zip(body, summary.best, strict=True):
            line[_JOINT] = f"**{line[_JOINT]}**" if best else line[_JOINT]
        header = [markdown_text(name) for name in summary.header]
        lines = [header, [":--", *("--:" for _ in header[1:])], *body]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n- {markdown_text(note)}" for note in summary.notes())
        caption = markdown_text(summary.caption)
        parts.append(f"## {markdown_text(summary.dataset)}\n\n{table}\n\n{caption}\n" + (f"{notes}\n" if notes else ""))
    if unfinished:
        parts.append(
            "## Not finished, left out\n" + "".join(f"\n- {markdown_text(name)}" for name in unfinished) + "\n"
        )
    return "\n".join(parts)


def as_csv(made: Sequence[Summary]) -> str:
    """A line per dataset and row, numbers in full; empty cells where there is no number.

    Of tuned flags the values are in columns of their own, chosen_<flag>, empty where a method has no such flag.
    """
    modalities = list(dict.fromkeys(name for summary in made for name in summary.modalities))
    flags = list(dict.fromkeys(flag for summary in made for flag in summary.tuned))
    lines: list[dict[str, Any]] = []
    for summary in made:
        for row, rank, test, best in zip(
            summary.rows, mean_ranks(summary.rows), summary.tests, summary.best, strict=True
        ):
            line = {
                "dataset": summary.dataset,
                "method": row.runs[0].method,
                "label": row.label,
                "selected_on": "test" if row.runs[0].selected_on_test else "val",
                "n_seeds": len(row.runs),
                "seeds": " ".join(map(str, row.seeds)),
                "best": int(best),
                **{f"chosen_{flag}": settings(row.runs[0]).get(flag) for flag in flags},
                **_numbers("joint", row.joint),
            }
            for name in modalities:
                line |= _numbers(name, row.accuracies(name))
            lines.append(
                line
                | {
                    "rank": rank,
                    "baseline": "" if test.baseline is None else test.baseline.label,
                    "common_seeds": len(test.seeds),
                    "difference": test.difference,
                    "p": test.p,
                    "p_holm": test.corrected,
                }
            )
    buffer = io.StringIO(newline="")
    write_csv_rows(buffer, [list(lines[0]), *([line[name] for name in lines[0]] for line in lines)])
    return buffer.getvalue()


def as_latex(made: Sequence[Summary]) -> str:
    r"""A table environment per dataset, for \usepackage{booktabs}."""
    parts = ["% needs \\usepackage{booktabs}\n"]
    for summary in made:
        body = [[latex_text(cell) for cell in line] for line in summary.cells]
        for line, best in zip(body, summary.best, strict=True):
            line[_JOINT] = rf"\textbf{{{line[_JOINT]}}}" if best else line[_JOINT]
        lines = [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_text(f'{summary.dataset}. {summary.caption}')}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(summary.header) - 1)}}}",
            r"    \toprule",
            rf"    {' & '.join(map(latex_text, summary.header))} \\",
            r"    \midrule",
            *(rf"    {' & '.join(line)} \\" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par\smallskip{{\footnotesize {latex_text(note)}}}" for note in summary.notes()),
            r"\end{table}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


_COLUMNS = ("rank", "difference", "p", "p (Holm)")
_JOINT = 2


def _tested(test: PairedTest) -> list[str]:
    if test.reason == BASELINE:
        return [BASELINE, "-", "-"]
    return ["n/a" if test.difference is None else f"{test.difference:+.1f}", _p(test.p), _p(test.corrected)]


def _p(value: float | None) -> str:
    return "n/a" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _numbers(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        f"{name}_mean": statistics.mean(values) if values else None,
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
    }
