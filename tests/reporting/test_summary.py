"""A report's tables, read back: what is averaged, what is bold, what stands apart."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from reporting.synthetic import make_run

from mmpareto.reporting.comparison import usual_settings
from mmpareto.reporting.finished import find
from mmpareto.reporting.summary import Summary, as_csv, as_latex, as_markdown, marks, summaries


def summaries_of(*folders: Path) -> list[Summary]:
    return summaries(find(folders)[0])


def three_methods(folder: Path) -> list[Summary]:
    """Means 42 (sample deviation 2), 46 and 30; alone 60 and 40."""
    for seed, joint in enumerate((40.0, 42.0, 44.0)):
        make_run(folder / f"u{seed}", "uniform", seed, joint)
        make_run(folder / f"m{seed}", "mmpareto", seed, joint + (3.0, 4.0, 5.0)[seed])
    make_run(folder / "o", "one_joint", 0, 30.0)
    return summaries_of(folder)


def markdown_table(text: str) -> list[dict[str, str]]:
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(header, line, strict=True)) for line in body]


def test_markdown(tmp_path: Path) -> None:
    text = as_markdown(three_methods(tmp_path))
    rows = {row["method"]: row for row in markdown_table(text)}
    assert rows["uniform"] == {
        "method": "uniform",
        "seeds": "3",
        "joint": "42.0 ± 2.0",
        "gray alone": "60.0 ± 0.0",
        "colour alone": "40.0 ± 0.0",
        "joint - best single": "-18.0 ± 2.0",
        "rank": "2.0",
        "difference": "baseline",
        "p": "-",
        "p (Holm)": "-",
    }
    assert rows["mmpareto"]["joint"] == "**46.0 ± 3.0**"
    assert rows["mmpareto"]["difference"] == "+4.0"
    # t = 4 sqrt 3, two degrees of freedom: p = 1 - t / sqrt(2 + t^2)
    assert rows["mmpareto"]["p"] == rows["mmpareto"]["p (Holm)"] == f"{1 - (48 / 50) ** 0.5:.3f}" == "0.020"
    assert (rows["one_joint"]["joint"], rows["one_joint"]["p"]) == ("30.0", "n/a")
    assert (rows["mmpareto"]["rank"], rows["one_joint"]["rank"]) == ("1.0", "3.0")
    assert text.count("**") == 2
    assert "one_joint: not tested, 1 common seed" in text
    assert "- not over all of the seeds 0, 1, 2, but those named: one_joint (0)\n" in text


def test_the_highest_mean_is_bold_only_if_its_difference_is_significant(tmp_path: Path) -> None:
    for seed, (uniform, pareto) in enumerate(((40.0, 47.0), (42.0, 41.0), (44.0, 43.0))):
        make_run(tmp_path / f"u{seed}", "uniform", seed, uniform)
        make_run(tmp_path / f"p{seed}", "pareto", seed, pareto)
    (summary,) = summaries_of(tmp_path)
    assert (summary.best, summary.bold) == ([False, True], [False, False])
    assert "pareto has the highest joint mean" in summary.verdict
    assert "its difference of +1.7 points from uniform is not significant (p (Holm) 0.596, 3 seeds)" in summary.verdict
    text = as_markdown([summary])
    assert summary.verdict.split(";")[0] in text
    assert "**" not in text + as_latex([summary]).replace("textbf", "**")
    for seed in range(3):
        make_run(tmp_path / f"m{seed}", "mmpareto", seed, 20.0 + (0.0, 2.1, 3.9)[seed])
    (with_lower,) = summaries(find([tmp_path])[0], baseline="pareto")
    assert with_lower.bold == [False, False, False]  # uniform does not differ from pareto, the baseline


def test_a_baseline_with_the_highest_mean_is_compared_only_with_what_was_tested(tmp_path: Path) -> None:
    def verdict() -> str:
        return summaries_of(tmp_path)[0].verdict.partition("baseline; ")[2]

    for seed in range(3):
        make_run(tmp_path / f"u{seed}", "uniform", seed, 90.0 + seed)
    assert verdict() == "there is no other row."
    make_run(tmp_path / "o", "one_joint", 0, 30.0)
    assert verdict() == "no other row could be tested."
    for seed in range(3):
        make_run(tmp_path / f"m{seed}", "mmpareto", seed, 40.0 + (0.0, 2.1, 3.9)[seed])
    assert verdict() == "all rows that could be tested differ significantly."
    for seed in (1, 2):
        make_run(tmp_path / f"o{seed}", "one_joint", seed, 30.0 + 1.5 * seed)
    assert verdict() == "all rows differ significantly."
    for seed in range(3):
        make_run(tmp_path / f"p{seed}", "pareto", seed, (90.0, 92.0, 90.0)[seed])
    assert verdict() == "no significant difference from pareto."


def test_columns_without_values_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "o", "one_joint", 0, 30.0)
    make_run(tmp_path / "m", "mmpareto", 1, 30.0)
    (summary,) = summaries_of(tmp_path)
    assert list(summary.table) == ["method", "seeds", "joint", "gray alone", "colour alone", "joint - best single"]
    assert "no difference from a baseline could be tested" in summaries_of(tmp_path / "m")[0].verdict


def test_csv(tmp_path: Path) -> None:
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(as_csv(three_methods(tmp_path))))}
    assert float(rows["uniform"]["joint_mean"]) == pytest.approx(42.0)
    assert float(rows["uniform"]["joint_std"]) == pytest.approx(2.0)
    assert float(rows["mmpareto"]["p"]) == pytest.approx(1 - (48 / 50) ** 0.5)
    assert float(rows["mmpareto"]["gray_mean"]) == pytest.approx(60.0)
    assert float(rows["mmpareto"]["joint - best single_mean"]) == pytest.approx(-14.0)
    assert rows["mmpareto"]["seeds"] == "0 1 2"
    assert [float(rows[name]["rank"]) for name in ("uniform", "mmpareto", "one_joint")] == [2, 1, 3]
    assert [rows[name]["best"] for name in ("uniform", "mmpareto", "one_joint")] == ["0", "1", "0"]
    assert (rows["one_joint"]["joint_std"], rows["one_joint"]["p"]) == ("", "")


def test_latex(tmp_path: Path) -> None:
    make_run(tmp_path / "strange", "my_method", 0, 1.0, encoder={"gray": "a_b & 50%"})
    make_run(tmp_path / "other", "my_method", 0, 2.0, encoder={"gray": "x"})
    text = as_latex(three_methods(tmp_path))
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = [re.split(r"(?<!\\)&", line.strip().removesuffix(r"\\")) for line in body.splitlines()[1:] if line.strip()]
    columns = text[text.index(r"\begin{tabular}") :].splitlines()[0].count("r", len(r"\begin{tabular}") + 2) + 1
    assert {len(row) for row in rows} == {columns} == {10}
    best = [row for row in rows if r"\textbf" in row[2]]
    assert [row[0].strip() for row in best] == ["mmpareto"]
    assert best[0][2].strip() == r"\textbf{46.0 $\pm$ 3.0}"
    assert best[0][7].strip() == "$+4.0$"
    assert r"a\_b \& 50\%" in body
    assert not re.search(r"(?<!\\)[_%#]", body)
    below = text[text.index(r"\end{tabular}") : text.index(r"\end{table}")]
    assert r"{\footnotesize not over all of the seeds" in below
    assert r"my\_method, encoder gray a\_b \& 50\% (0)" in below
    assert not re.search(r"(?<!\\)[_%#&]", below)
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1


def test_marked_runs_stand_apart(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"m{seed}", "mmpareto", seed, 40.0 + seed)
    make_run(tmp_path / "again", "mmpareto", 0, 99.0)
    make_run(tmp_path / "tested", "mmpareto", 2, 90.0, selected_on="test")
    make_run(tmp_path / "longer", "mmpareto", 3, 39.0, epochs=9)
    (summary,) = summaries_of(tmp_path)
    rows = {row.label: row for row in summary.rows}
    (again,) = (run for row in summary.rows for run in row.repeated)
    assert {label: row.joint for label, row in rows.items()} == {
        "mmpareto, epochs 3": [99.0, 41.0],  # the first by path counts: 'again' before 'm0'
        "mmpareto, epochs 3, SELECTED ON TEST": [90.0],
        "mmpareto, epochs 9": [39.0],
    }
    assert again.path.name == "m0"
    assert summary.best == [row.label == "mmpareto, epochs 3" for row in summary.rows]  # not the one selected on test
    text = as_markdown([summary])
    assert "1 further run (seeds 0), left out of all means" in text
    assert "selected on the test split" in text
    said = {run.path.name: "; ".join(marks(run, summary)) for run in summary.runs}
    assert "selected on test" in said["tested"]
    assert "in no mean" in said["m0"]
    assert "epochs 9" in said["longer"]


def test_settings_unlike_those_of_other_methods_are_named(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"u{seed}", "uniform", seed, 40.0 + seed, method_options={"gamma": 1.0})
        make_run(tmp_path / f"m{seed}", "mmpareto", seed, 50.0 + seed, epochs=9, method_options={"gamma": 1.5})
    (even,) = summaries_of(tmp_path)
    assert [row.label for row in even.rows] == ["uniform, epochs 3", "mmpareto, epochs 9"]  # neither is the usual one
    make_run(tmp_path / "o", "one_joint", 0, 30.0)
    (most,) = summaries_of(tmp_path)
    assert [row.label for row in most.rows] == ["one_joint", "uniform", "mmpareto, epochs 9"]
    assert usual_settings(most.runs)["epochs"] == "3"


def test_runs_made_on_unlike_machines_are_told(tmp_path: Path) -> None:
    for seed, threads in enumerate((1, 1, 2)):
        folder = make_run(tmp_path / f"u{seed}", "uniform", seed, 40.0 + seed)
        environment = {"device": "cpu", "gpu": None, "threads": threads, "versions": {"torch": "2.11.0"}}
        environment["started"] = f"2026-11-2{4 + seed}T23:59:00+00:00"
        (folder / "environment.json").write_text(json.dumps(environment))
    (summary,) = summaries_of(tmp_path)
    (note,) = summary.notes
    assert summary.origin == "begun from 2026-11-24 to 2026-11-26; device cpu, PyTorch 2.11.0"
    assert note.endswith("the same CPU threads, which may move accuracies: 1 (2 runs), 2 (1 run)")
    (folder / "environment.json").unlink()
    notes = summaries_of(tmp_path)[0].notes
    assert [re.findall("the same (.*), which", note)[0] for note in notes] == ["device", "CPU threads", "PyTorch"]
    assert summaries_of(tmp_path)[0].origin == "begun from 2026-11-24 to 2026-11-25"
    assert "cpu (2 runs), not recorded (1 run)" in notes[0]
    assert notes[1] in as_markdown([summary, *summaries_of(tmp_path)], ["half"])
    assert "- half" in as_markdown([summary], ["half"])


def test_a_modality_that_learned_nothing_is_named(tmp_path: Path) -> None:
    """Of ten classes 15 % and less is a guess; the selected epoch is the last, in the first all heads guess."""
    for seed, colour in enumerate((11.0, 15.0, 15.1)):
        make_run(tmp_path / f"u{seed}", "uniform", seed, trained=(99.0, 98.0, colour), classes=list("0123456789"))
    make_run(tmp_path / "m", "mmpareto", 0, trained=(99.0, 50.0, 52.0), classes=["cat", "dog"])
    make_run(tmp_path / "o", "one_joint", 0, trained=(99.0, 1.0, 1.0))  # of an unknown number of classes
    (summary,) = summaries_of(tmp_path)
    (uniform, *mmpareto) = sorted((note for note in summary.notes if "learned nothing" in note), reverse=True)
    assert uniform == (
        "uniform: colour learned nothing in 2 of 3 runs: in the selected epoch its own head guesses on the training "
        "data (11.0 to 15.0 % right)"
    )
    assert [note.partition(":")[2][:40] for note in mmpareto] == [
        " gray learned nothing in 1 of 1 run: in ",
        " colour learned nothing in 1 of 1 run: i",
    ]
    marked = {run.path.name: marks(run, summary) for run in summary.runs}
    assert [bool(marked[name]) for name in ("u0", "u1", "u2", "o")] == [True, True, False, False]


def test_two_manifests_are_two_datasets(tmp_path: Path) -> None:
    for place, joint in (("here/birds", 40.0), ("here/fishes", 60.0), ("moved/birds", 42.0)):
        seed = int(place.startswith("moved"))
        make_run(tmp_path / place, "uniform", seed, joint, dataset="manifest", data_root=f"/{place}")
    for place, joint in (("a/mnist", 70.0), ("b/copy", 72.0)):  # a published set is the same in any folder
        make_run(tmp_path / place, "uniform", int(joint), joint, dataset="cgmnist", data_root=f"/{place}")
    rows = [(summary.dataset, [row.joint for row in summary.rows]) for summary in summaries(find([tmp_path])[0])]
    assert rows == [("cgmnist", [[70, 72]]), ("manifest birds", [[40, 42]]), ("manifest fishes", [[60]])]


def test_a_table_for_every_dataset(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "uniform", joint=10.0)
    make_run(tmp_path / "b", "mmpareto", joint=20.0, dataset="cgmnist")
    first, second = summaries_of(tmp_path)
    assert (first.dataset, second.dataset) == ("cgmnist", "digits")
    assert first.baseline is None
    assert "no baseline" in first.caption
    assert [row.label for row in second.rows] == ["uniform"]
    assert [line for line in as_markdown([first, second]).splitlines() if line.startswith("## ")] == [
        "## cgmnist",
        "## digits",
    ]


def test_rows_that_were_all_selected_on_test_are_never_bold(tmp_path: Path) -> None:
    for method, joint in (("uniform", 50.0), ("mmpareto", 80.0)):
        for seed in range(4):
            make_run(tmp_path / method / str(seed), method, seed, joint + seed * (1 + joint / 100), selected_on="test")
    (summary,) = summaries(find([tmp_path])[0])
    place = [row.method for row in summary.rows].index("mmpareto")
    assert summary.tests[place].significant
    assert summary.best[place]
    assert summary.bold == [False, False]


def test_settings_in_another_order_are_the_same_row(tmp_path: Path) -> None:
    for seed, encoder in enumerate(({"gray": "cnn", "colour": "pmr"}, {"colour": "pmr", "gray": "cnn"})):
        make_run(tmp_path / str(seed), "uniform", seed, encoder=encoder)
    (summary,) = summaries(find([tmp_path])[0])
    assert [row.seeds for row in summary.rows] == [[0, 1]]
