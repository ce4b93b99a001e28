"""A report's folder: tables, figures, and one page that holds them all and can be explored."""

import base64
import csv
import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from mmpareto.escape import csv_cell, csv_text
from mmpareto.reporting import charts
from mmpareto.reporting.balance import balance_of_rows
from mmpareto.reporting.charts import COLOURS, CONFIG, MOST_LINES, WIDTHS, Curves, Figure, text
from mmpareto.reporting.comparison import spread, usual_settings, worded
from mmpareto.reporting.comparison_figures import critical_difference, figures, missing_table
from mmpareto.reporting.finished import FinishedRun
from mmpareto.reporting.histories import history
from mmpareto.reporting.ranking import Ranking, ranking
from mmpareto.reporting.summary import JOINT, Summary, as_csv, as_latex, as_markdown, marks, p_text
from mmpareto.runs import RunError
from mmpareto.selection import LEAD
from mmpareto.writing import write_together

PAGE, TABLE, MISSING, RANKS, FIGURES = "index.html", "table.csv", "missing.csv", "ranks.csv", "figures"
TITLE = "Methods compared"
SUFFIXES = ("svg", "pdf", "png")
ACROSS = "\0all datasets"  # what stands for figures over datasets; no name of a dataset has this character
KINDS = (
    "joint-accuracy",
    "accuracy-over-time",
    "over-.+",
    "learning-curves",
    "confusion",
    "missing-modalities",
    "cosine",
    "norms",
    "joint-weight",
    "conflict-rate",
    "conflict-in-layers",
    "method-figures",
    "critical-difference",
)
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A dataset with its figures, or all datasets together; rows: their labels, the best first."""

    identifier: str
    rows: Sequence[str]
    hidden: Sequence[int]
    figures: Sequence[Figure]
    files: Sequence[Mapping[str, bytes]]

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        listed = [
            {
                "name": f"{self.identifier}-{identifier(figure.name)}",
                "panels": [{"view": panel.view, "row": panel.row} for panel in figure.panels],
                "datasets": figure.datasets,
                "columns": figure.columns,
                "names": figure.names,
                "hidden": [],
            }
            for figure in self.figures
        ]
        return {
            "id": self.identifier,
            "names": [text(row) for row in self.rows],
            "hidden": self.hidden,
            "figures": listed,
        }

    @property
    def pictures(self) -> list[dict[str, Any]]:
        """What the page's markup says of each figure."""
        return [
            {
                "figure": figure,
                "file": f"{self.identifier}-{identifier(figure.name)}",
                "pdf": base64.b64encode(files["pdf"]).decode("ascii"),
            }
            for figure, files in zip(self.figures, self.files, strict=True)
        ]


def write(output: Path, summaries: Sequence[Summary], unfinished: Sequence[Path]) -> list[Path]:
    """Write table.md, table.csv, table.tex, missing.csv, ranks.csv, figures/ and index.html; other files stay.

    All input is read before anything is written. Raises RunError if a run's files or the folder cannot be used.
    """
    identifiers = unique_identifiers([ACROSS, *(summary.dataset for summary in summaries)])
    names = short_names([*(run.path for summary in summaries for run in summary.runs), *unfinished])
    sections, tables = [], []
    for summary in summaries:
        curves = curves_of(summary, names)
        drawn = list(figures(summary.dataset, curves, summary.modalities))
        sections.append(section(identifiers[summary.dataset], curves, summary.baseline, drawn))
        tables.append(missing_table(summary.dataset, curves))
    over_datasets = ranking(summaries)
    across = None
    if over_datasets is not None:
        figure = critical_difference(over_datasets)
        drawn_files = charts.files(figure.specification([], []))
        across = Section(identifiers[ACROSS], list(over_datasets.ranks.index), [], [figure], [drawn_files])
    texts = {
        "table.md": as_markdown(summaries, [names[path] for path in unfinished]),
        TABLE: as_csv(summaries),
        "table.tex": as_latex(summaries),
        PAGE: page(summaries, sections, tables, over_datasets, across, unfinished, names),
    }
    missing = pd.concat(tables)
    if len(missing):
        texts[MISSING] = missing.map(csv_cell).to_csv(index=False)
    if over_datasets is not None:
        ranks = over_datasets.scores.T.assign(mean_rank=over_datasets.ranks).rename_axis("method").reset_index()
        texts[RANKS] = ranks.map(csv_cell).rename(columns=csv_cell).to_csv(index=False)
    # names of folders may hold bytes that are no UTF-8
    content = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    for part in [*sections, *([] if across is None else [across])]:
        for picture, files in zip(part.pictures, part.files, strict=True):
            content |= {f"{FIGURES}/{picture['file']}.{suffix}": data for suffix, data in files.items()}
    try:
        write_together(output, content, _outdated(output, identifiers, content))
    except OSError as error:
        raise RunError(f"cannot write to {output}: {error.strerror}; name another folder with --output") from error
    return [output / name for name in content]


def _outdated(output: Path, identifiers: Mapping[str, str], content: Mapping[str, bytes]) -> list[Path]:
    """Files of an earlier report that this one does not have."""
    kinds = "|".join(KINDS)
    prefixes = "|".join(re.escape(identifier(dataset)) for dataset in _datasets(output / TABLE) | set(identifiers))
    ours = re.compile(rf"({prefixes})(-\d+)?-({kinds})(-\d+)?\.({'|'.join(SUFFIXES)})")
    older = [path for path in (output / FIGURES).glob("*.*") if ours.fullmatch(path.name)]
    older += [output / name for name in (MISSING, RANKS) if (output / TABLE).exists()]
    return [path for path in older if str(path.relative_to(output)) not in content]


def _datasets(table: Path) -> set[str]:
    """The datasets of an earlier report's table; none if there is no readable table."""
    try:
        with open(table, newline="", encoding="utf-8") as file:
            return {csv_text(row["dataset"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return set()


def curves_of(summary: Summary, names: Mapping[Path, str]) -> list[Curves]:
    """A dataset's rows with their histories, the best first. names: of the runs."""
    rows = reversed(summary.rows)
    return [Curves(row, [history(run) for run in row.runs], place, names) for place, row in enumerate(rows)]


def section(prefix: str, curves: Sequence[Curves], baseline: str | None, drawn: Sequence[Figure]) -> Section:
    """A dataset's figures with their files; at first the best rows and the baseline are drawn."""
    hidden = [line.place for line in curves[MOST_LINES:] if line.row.method != baseline]
    labels = [line.row.label for line in curves]
    names = [text(label) for label in labels]
    files = [charts.files(figure.specification(names, hidden)) for figure in drawn]
    return Section(prefix, labels, hidden, drawn, files)


def page(
    summaries: Sequence[Summary],
    sections: Sequence[Section],
    missing: Sequence[pd.DataFrame],
    over_datasets: Ranking | None,
    across: Section | None,
    unfinished: Sequence[Path],
    names: Mapping[Path, str],
) -> str:
    """The page, complete in itself: nothing is loaded from elsewhere. names: of the runs, as a reader sees them."""
    parts = [
        {
            "part": part,
            "summary": summary,
            "tiles": tiles(summary),
            "tables": tables_of(summary, of_missing),
            "settings": usual_settings(summary.runs) | _method_options(summary.runs),
            "runs": runs_table(summary, names),
        }
        for summary, part, of_missing in zip(summaries, sections, missing, strict=True)
    ]
    runs = sum(len(summary.runs) for summary in summaries)
    averaged = sum(len(row.runs) for summary in summaries for row in summary.rows)
    counted = f"{averaged} finished run{'s are' if averaged != 1 else ' is'} compared."
    if runs > averaged:
        counted += f" {runs - averaged} more repeat a seed and are in no mean."
    if unfinished:
        counted += f" {len(unfinished)} not finished: left out."
    scripts = [charts.script(), (FOLDER / "page.js").read_text(encoding="utf-8")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    every = [*sections, *([] if across is None else [across])]
    return environment.get_template("page.html").render(
        title=TITLE,
        counted=counted,
        parts=parts,
        across=across,
        ranking=over_datasets,
        ranks=None if over_datasets is None else ranks_table(over_datasets),
        unfinished=[names[path] for path in unfinished],
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        colours=COLOURS,
        data={"config": CONFIG, "widths": WIDTHS, "sections": [part.data for part in every]},
    )


@dataclass(frozen=True)
class Table:
    """A table of text; bold: places of cells, marked: of rows, dots: whether rows have the colours of the figures."""

    kind: str
    title: str
    data: pd.DataFrame
    caption: str
    bold: Sequence[tuple[int, int]] = ()
    marked: Sequence[int] = ()
    dots: bool = False


def tables_of(summary: Summary, missing: pd.DataFrame) -> list[Table]:
    """A dataset's tables, the best rows first; missing: see `missing_table`."""
    bold = [(i, JOINT) for i, is_bold in enumerate(reversed(summary.bold)) if is_bold]
    marked = [i for i, row in enumerate(reversed(summary.rows)) if row.selected_on_test]
    tables = [Table("accuracy", "Accuracy", summary.table[::-1], summary.caption, bold, marked, dots=True)]
    if summary.cost_table.shape[1] > 1:
        tables.append(Table("cost", "Time and memory", summary.cost_table[::-1], COST_CAPTION, dots=True))
    balance = balance_of_rows(summary.rows[::-1])
    if balance.shape[1] > 1:
        tables.append(Table("balance", "Balance", balance, BALANCE_CAPTION, dots=True))
    if len(missing):
        tables.append(Table("missing", "Accuracy with missing modalities", missing_cells(missing), MISSING_CAPTION))
    return tables


COST_CAPTION = (
    "Means over runs; time of the epochs, scoring on the validation split included. Memory is what PyTorch "
    "allocated on a GPU, or what the process had resident on a CPU. Times of different machines cannot be compared."
)
BALANCE_CAPTION = (
    "Means over runs, in percent or points. Probe less alone: accuracy of a linear probe on the encoder, less that of "
    "an encoder trained alone (train.py --probe). Shapley share, accuracy without a modality, samples that only the "
    "joint head gets right: of runs that evaluate.py has scored. Conflict: measured steps in which the joint and the "
    "unimodal gradient of the encoder point in opposite directions."
)
MISSING_CAPTION = (
    "Joint test accuracy in percent, mean ± sample standard deviation over the seeds that evaluate.py has scored, "
    "where this share of the samples lacks the modality (any: each modality on its own; a sample keeps one at least)."
)


def tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """The key numbers of a dataset: what it is, the number, a remark."""
    i = summary.best.index(True)
    row, test, cost = summary.rows[i], summary.tests[i], summary.costs.iloc[i]
    listed = [("Highest joint accuracy", f"{spread(row.joint)} %", row.label)]
    if test.baseline is not None and test.difference is not None:
        tested = "not tested" if test.corrected is None else f"p (Holm) {p_text(test.corrected)}"
        said = "significant" if test.significant else "not significant"
        remark = tested if test.corrected is None else f"{said}, {tested}"
        listed.append((f"Difference from {test.baseline.label}", f"{test.difference:+.1f} points", remark))
    listed.append(("Joint minus best single", row.combined[LEAD], "points, mean over seeds"))
    if cost["seconds"] == cost["seconds"]:
        remark = "mean over runs"
        if test.baseline is not None and cost["ratio"] == cost["ratio"]:
            remark = f"{cost['ratio']:.2f} times {test.baseline.label}"
        listed.append(("Training time", f"{cost['seconds']:.1f} s", remark))
    return listed


def missing_cells(table: pd.DataFrame) -> pd.DataFrame:
    """`missing_table` as text: a line per row and modality, a column per share of the samples that lack it."""
    cells = table.assign(
        cell=[
            f"{mean:.1f}" + (f" ± {deviation:.1f}" if deviation == deviation else "")
            for mean, deviation in zip(table["mean"], table["std"], strict=True)
        ]
    )
    wide = cells.pivot_table("cell", ["method", "modality"], "missing_percent", aggfunc="first", sort=False)
    wide = wide[sorted(wide)].fillna("n/a")
    return wide.rename(columns=lambda rate: f"{rate:g} % missing").reset_index().rename_axis(columns=None)


def ranks_table(over_datasets: Ranking) -> pd.DataFrame:
    """Mean ranks and the accuracy on each dataset, as text."""
    table = over_datasets.scores.T.loc[over_datasets.ranks.index].map("{:.1f}".format)
    table.insert(0, "mean rank", over_datasets.ranks.map("{:.2f}".format))
    return table.rename_axis("method").reset_index().rename_axis(columns=None)


def runs_table(summary: Summary, names: Mapping[Path, str]) -> pd.DataFrame:
    """A line per run, as text; columns without any value are left out."""
    lines = [
        {
            "run": names[run.path],
            "method": run.method,
            "seed": str(run.seed),
            "joint": f"{run.joint:.2f}",
            LEAD: f"{run.lead:.2f}",
            "selected epoch": str(run.results.get("selected_epoch", "")),
            "training time, s": "" if run.seconds is None else f"{run.seconds:.1f}",
            "marks": "; ".join(marks(run, summary)),
        }
        for run in summary.runs
    ]
    table = pd.DataFrame(lines)
    return table.loc[:, (table != "").any()]


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Folders from the folder that holds them all on; a single one by its last two parts."""
    if len(set(paths)) == 1:
        return {path: "/".join(path.parts[-2:]) for path in paths}
    common = os.path.commonpath(paths)
    return {path: path.relative_to(common).as_posix() if path != Path(common) else path.name for path in paths}


def identifier(name: str) -> str:
    """A name fit for a file and a link."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "dataset"


def unique_identifiers(names: Sequence[str]) -> dict[str, str]:
    """{name: identifier}, no two of them alike, also if file names have no case."""
    identifiers: dict[str, str] = {}
    for name in names:
        taken = {other.lower() for other in identifiers.values()}
        candidates = (identifier(name) + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        identifiers[name] = next(candidate for candidate in candidates if candidate.lower() not in taken)
    return identifiers


def _method_options(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """{method: its options}; without those that its runs do not have in common."""
    listed: dict[str, str] = {}
    for method in dict.fromkeys(run.method for run in runs):
        first, *others = [run.config.get("method_options") or {} for run in runs if run.method == method]
        shared = {key: value for key, value in first.items() if all(o.get(key) == value for o in others)}
        if shared:
            listed[f"options of {method}"] = ", ".join(f"{key} {worded(value)}" for key, value in shared.items())
    return listed
