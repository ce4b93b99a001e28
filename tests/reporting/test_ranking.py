"""Methods over datasets, by the example of Demšar (2006): four variants of C4.5 on 14 datasets, Table 6."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from reporting.synthetic import make_run
from scipy import stats

from mmpareto.reporting import page
from mmpareto.reporting.comparison_figures import critical_difference
from mmpareto.reporting.finished import find
from mmpareto.reporting.ranking import Ranking, ranking
from mmpareto.reporting.summary import summaries

AREAS = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""


def test_the_published_example() -> None:
    scores = pd.DataFrame(
        [[float(cell) for cell in line.split()] for line in AREAS.strip().splitlines()],
        columns=["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"],
    )
    ranked = Ranking(scores)
    published = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert ranked.ranks.to_dict() == pytest.approx(published, abs=5e-4)
    assert ranked.critical_difference == pytest.approx(1.25, abs=5e-3)  # 2.569 sqrt(4 * 5 / (6 * 14))
    # chi square is 9.28, before it is corrected for the ties: three of 2 methods, one of 4; and F as in section 3.2.2
    chi_square = 9.28 / (1 - (3 * 6 + 60) / (14 * 4 * 15))
    assert ranked.p == pytest.approx(stats.f.sf(13 * chi_square / (14 * 3 - chi_square), 3, 39), rel=0.1)
    assert ranked.groups == [(0, 3)]  # 3.143 - 1.964 < 1.25: no pair differs


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_quantiles_are_those_of_the_published_table(methods: int, quantile: float) -> None:
    ranked = Ranking(pd.DataFrame(0.0, index=range(6), columns=range(methods)))
    assert ranked.critical_difference == pytest.approx(quantile * (methods * (methods + 1) / 36) ** 0.5, rel=4e-4)


def test_groups_are_the_largest_ones() -> None:
    """Ranks 1, 2, 3 and 4 on 8 datasets: the critical difference is 1.66."""
    ranked = Ranking(pd.DataFrame([[90.0, 80.0, 70.0, 60.0]] * 8, columns=list("abcd")))
    assert ranked.groups == [(0, 1), (1, 2), (2, 3)]
    assert ranked.verdict.endswith("it does not differ significantly from b.")
    two = pd.DataFrame([[90.0, 80.0, 70.0, 60.0, 50.0], [80.0, 90.0, 70.0, 60.0, 50.0]] * 8, columns=list("abcde"))
    assert Ranking(two).verdict.startswith("a, b have the best mean rank, 1.50")
    assert Ranking(two).verdict.endswith("they do not differ significantly from c.")
    assert Ranking(two[["a", "b", "e"]]).verdict.endswith("they differ from all others.")
    bars = critical_difference(ranked).datasets["bars"]
    assert [(bar["first"], bar["last"], bar["joined"]) for bar in bars] == [
        (0, 1, "a, b"),
        (1, 2, "b, c"),
        (2, 3, "c, d"),
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_report_over_datasets(tmp_path: Path) -> None:
    for place, dataset in enumerate(("cgmnist", "digits", "twoview")):
        for method, joint in (("uniform", 40.0), ("pareto", 45.0), ("mmpareto", 50.0 - 7 * place)):
            make_run(tmp_path / "runs" / dataset / method, method, 0, joint, dataset=dataset)
    make_run(tmp_path / "runs" / "alone", "ensemble", 0, 99.0, dataset="digits")
    finished, unfinished = find([tmp_path / "runs"])
    parts = summaries(finished)
    over = ranking(parts)
    assert over is not None
    assert over.ranks.to_dict() == pytest.approx({"pareto": 4 / 3, "mmpareto": 2.0, "uniform": 8 / 3})
    page.write(tmp_path / "report", parts, unfinished)
    with open(tmp_path / "report" / "ranks.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["mmpareto"]["mean_rank"]) == 2.0
    assert float(rows["mmpareto"]["twoview"]) == 36.0
    assert set(rows) == {"uniform", "pareto", "mmpareto"}
    assert (tmp_path / "report" / "figures" / "all-datasets-critical-difference.svg").exists()
    assert over.verdict in (tmp_path / "report" / "index.html").read_text().replace("&#39;", "'")
    page.write(tmp_path / "report", parts[:1], [])
    assert not (tmp_path / "report" / "ranks.csv").exists()
    assert not list((tmp_path / "report" / "figures").glob("all-datasets*"))
    assert ranking(parts[:1]) is None
