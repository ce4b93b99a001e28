"""The tables in docs/results* are those that report.py makes of the files beside them."""

from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mmpareto.reporting.leaderboard import merged, read, tables

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
# the files of a page's tables, in the order of the tables
FILES = {
    "../results": ("twoview", "utd-mhad", "avmnist", "digits"),
    "twoview": ("twoview",),
    "utd-mhad": ("utd-mhad",),
    "avmnist": ("avmnist",),
    "digits": ("digits",),
    "cg-mnist": ("cg-mnist", "cg-mnist-cpu"),
}
NOTHING = {"", "-", "n/a"}

Table = list[dict[str, str]]


def parsed(text: str) -> list[Table]:
    """The tables of methods in a text of Markdown, a row by the names of its columns."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        if head[0] in ("method", ""):
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


@cache
def made(name: str) -> Table:
    """A leaderboard's table of accuracies, with the measures of balance beside them."""
    accuracies, balance = parsed(tables(read(RESULTS / f"{name}.json")))
    measures = {row.pop("method"): row for row in balance}
    return [row | measures.get(row["method"].rstrip(" =?"), {}) for row in accuracies]


def expected(row: dict[str, str], column: str) -> str:
    """A cell of a page; "probe, a / b" of it stands for two columns "probe, a" and "probe, b" of a report."""
    if " / " not in column:
        return row.get(column, "")
    first, second = column.split(" / ")
    kind = re.split(r"(?<=, )|(?<=^without )", first)[0]
    values = [row.get(name, "") for name in (first, kind + second)]
    if set(values) <= NOTHING:
        return ""
    signed = "less" in kind
    return " / ".join(f"+{value}" if signed and not value.startswith("-") else value for value in values)


def compare(table: Table, report: Table, whole: bool) -> None:
    """Fails where a cell is another one than in the report, or a method is missing or at another place."""
    names = [row["method"].rstrip(" =?") for row in table]
    of_report = {row["method"].rstrip(" =?"): row for row in report}
    assert names == [name for name in of_report if name in names]
    assert not whole or len(names) == len(report), f"without {of_report.keys() - names}"
    for name, row in zip(names, table, strict=True):
        assert row["method"] == (of_report[name]["method"] if "minus uniform" in row else name)
        for column in row.keys() - {"method"}:
            right = expected(of_report[name], column)
            assert row[column] == right or {row[column], right} <= NOTHING, (name, column)


@pytest.mark.parametrize("page", FILES)
def test_tables_of_a_page_are_those_of_its_files(page: str) -> None:
    published = parsed((RESULTS / f"{page}.md").read_text())
    accuracies = [table for table in published if {"method", "minus uniform"} <= table[0].keys()]
    balance = [table for table in published if "right only jointly" in table[0]]
    whole = page != "../results"
    for table, name in zip(accuracies, FILES[page], strict=True):
        compare(table, made(name), whole)
    with_balance = [name for name in FILES[page] if whole and "right only jointly" in made(name)[0]]
    for table, name in zip(balance, with_balance, strict=True):
        compare(table, made(name), whole)


def test_mean_ranks_are_those_of_the_files() -> None:
    content = merged([RESULTS / f"{name}.json" for name in FILES["../results"][:3]])
    *_, report = parsed(tables(content))
    expected = [list(row.values()) for row in report]
    for page, whole in (("ranks", True), ("../results", False)):
        (table,) = [table for table in parsed((RESULTS / f"{page}.md").read_text()) if "mean rank" in table[0]]
        rows = [list(row.values()) for row in table]
        assert rows == (expected if whole else [row for row in expected if row in rows])


SETS = ("twoview", "utd-mhad", "avmnist")
HEADS = {"joint head": "joint", "all heads": "all heads, logs"}


def difference(gains: np.ndarray) -> tuple[str, float]:
    """Mean and 95 % interval of differences by seed as the page shows them, and p, by the formulas of textbooks."""
    mean, error = gains.mean(), gains.std(ddof=1) / np.sqrt(len(gains))
    margin = stats.t.ppf(0.975, len(gains) - 1) * error
    p = 2 * stats.t.sf(abs(mean / error), len(gains) - 1)
    return f"{mean:+.1f} [{mean - margin:+.1f}, {mean + margin:+.1f}]", float(p)


def corrected(p_values: dict[str, float]) -> dict[str, str]:
    """As the page shows them: each times the number of those that are not smaller, and no less than those before it."""
    shown, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - rank)))
        shown[name] = "<0.001" if highest < 0.001 else f"{highest:.3f}"
    return shown


def seeds_table(page: str, head: str) -> list[list[str]]:
    """The rows of the table on a page whose first column has this name."""
    lines = (RESULTS / f"{page}.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


@pytest.mark.parametrize("page", ["again", "../results"])
def test_the_test_of_umt_is_that_of_its_runs(page: str) -> None:
    scores = pd.read_csv(RESULTS / "umt-twenty.csv").set_index(["dataset", "method", "seed"])
    rows = seeds_table(page, "seeds 30 to 49")
    assert len(rows) == 4
    for label, *cells in rows:
        sides = re.findall(r"(umt|uniform), (joint head|all heads)", label)
        found = [
            difference(np.subtract(*(scores.loc[(dataset, method), HEADS[head]].to_numpy() for method, head in sides)))
            for dataset in SETS
        ]
        p_values = corrected({dataset: p for dataset, (_, p) in zip(SETS, found, strict=True)})
        assert cells[::2] == [text for text, _ in found]
        assert cells[1::2] == [p_values[dataset] for dataset in SETS]
    assert set(scores.groupby(["dataset", "method"]).size()) == {20}


def test_ten_fresh_seeds_are_those_of_their_files() -> None:
    rows = [row | row["scores"] for row in read(RESULTS / "again.json")["results"]]
    scores = pd.concat([pd.DataFrame(rows), pd.read_csv(RESULTS / "umt-again.csv")])
    table = {label: cells for label, *cells in seeds_table("again", "seeds 20 to 29")}
    for place, dataset in enumerate(SETS):
        by_seed = scores[scores["dataset"] == dataset].pivot_table(
            index="seed", columns="method", values=list(HEADS.values())
        )
        found = {}
        for method, head in itertools.product(scores.loc[scores["dataset"] == dataset, "method"].unique(), HEADS):
            gains = (by_seed[HEADS[head], method] - by_seed["joint", "uniform"]).to_numpy()
            if gains.any():
                found[f"{method}, {head}"] = difference(gains)
        p_values = corrected({name: p for name, (_, p) in found.items()})
        shown = {name: tuple(cells[2 * place : 2 * place + 2]) for name, cells in table.items() if cells[2 * place]}
        assert shown == {name: (text, p_values[name]) for name, (text, _) in found.items()}


def test_what_five_seeds_can_show_is_what_the_page_says() -> None:
    """The least gain of a method with the median deviation of differences that the corrected test finds significant."""
    found = {}
    for dataset in SETS:
        rows = [row | row["scores"] for row in read(RESULTS / f"{dataset}.json")["results"] if row["tuned"]]
        joint = pd.DataFrame(rows).pivot_table(index="seed", columns="method", values="joint")
        gains = joint.drop(columns="uniform").sub(joint["uniform"], axis=0)
        deviation = gains.std()[gains.std() > 0].median()
        least = stats.t.ppf(1 - 0.025 / gains.shape[1], 4) * deviation / np.sqrt(5)
        found[dataset] = f"{least:.1f}", f"{100 - joint['uniform'].mean():.1f}"
    needed, left = zip(*found.values(), strict=True)
    page = (RESULTS / "../results.md").read_text()
    assert "it is {} points (two views), {} (UTD-MHAD) or {} (AV-MNIST) above".format(*needed) in page
    assert "; {}, {} and {} are left".format(*left) in page
