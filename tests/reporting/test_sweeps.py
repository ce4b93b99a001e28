"""Flags that were varied: what makes a curve, and what validation chooses."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from reporting.synthetic import make_run

from mmpareto.reporting.charts import Curves
from mmpareto.reporting.comparison import rows_of
from mmpareto.reporting.comparison_figures import accuracy_over_values, figures
from mmpareto.reporting.finished import find
from mmpareto.reporting.histories import history
from mmpareto.reporting.summary import as_csv, as_markdown, summaries
from mmpareto.reporting.sweeps import sweeps, tuned
from mmpareto.runs import RunError


def test_a_curve_has_three_values_that_differ_in_nothing_else(tmp_path: Path) -> None:
    for gamma in (3.0, 1.0, 2.0):
        for seed in range(2):
            make_run(tmp_path / f"m{gamma}{seed}", "mmpareto", seed, 10 * gamma, method_options={"gamma": gamma})
    make_run(tmp_path / "other", "mmpareto", 0, 1.0, method_options={"gamma": 4.0}, epochs=9)
    make_run(tmp_path / "tested", "mmpareto", 0, 99.0, method_options={"gamma": 5.0}, selected_on="test")
    for gamma in (1.0, 2.0):
        make_run(tmp_path / f"u{gamma}", "uniform_gamma", 0, 5.0, method_options={"gamma": gamma})
    rows = rows_of(find([tmp_path])[0])
    by_option = sweeps(rows)
    assert list(by_option) == ["gamma"]
    (curve,) = by_option["gamma"].values()
    assert list(by_option["gamma"]) == ["mmpareto"]
    assert [(value, row.joint) for value, row in curve] == [(v, [10 * v, 10 * v]) for v in (1.0, 2.0, 3.0)]
    curves = [Curves(row, [history(run) for run in row.runs], place) for place, row in enumerate(rows)]
    drawn = {figure.name: figure for figure in figures("digits", curves, ("gray", "colour"))}
    lines = {line["panel"]: line["mean"] for line in drawn["over-gamma"].datasets["means"]}
    assert lines == {0: [10.0, 20.0, 30.0], 1: [60.0] * 3, 2: [40.0] * 3}
    single = drawn["over-gamma"].datasets["single"]
    assert sorted((one["x"], one["value"], one["seed"]) for one in single if one["panel"] == 0) == [
        ([value], [10 * value], seed) for value in (1.0, 2.0, 3.0) for seed in range(2)
    ]


def test_values_over_more_than_a_decade_have_a_logarithmic_axis(tmp_path: Path) -> None:
    for method, rates in (("uniform", (0.01, 0.1, 1.0)), ("pmr", (0.1, 0.2, 0.3))):
        for rate in rates:
            make_run(tmp_path / method / str(rate), method, 0, 10.0 + rate, learning_rate=rate)
    for method, scale in (("uniform", "log"), ("pmr", None)):
        (sweep,) = sweeps(rows_of(find([tmp_path / method])[0])).values()
        drawn = accuracy_over_values("digits", "learning_rate", sweep, ["gray", "colour"])
        assert {layer["encoding"]["x"]["scale"].get("type") for p in drawn.panels for layer in p.view["layer"]} == {
            scale
        }
        assert drawn.names == [method]


def test_curves_of_a_method_are_told_apart(tmp_path: Path) -> None:
    for rate in (0.1, 0.2, 0.3):
        for size in (32, 64):
            make_run(tmp_path / f"{rate}{size}", "uniform", 0, 5.0, learning_rate=rate, batch_size=size)
    curves = sweeps(rows_of(find([tmp_path])[0]))
    assert list(curves) == ["learning_rate"]
    assert list(curves["learning_rate"]) == ["uniform, batch_size 32", "uniform, batch_size 64"]


def test_validation_chooses_and_test_does_not(tmp_path: Path) -> None:
    # uniform: validation prefers 0.1, test 0.2; mmpareto: 0.2, since 0.4 lacks a seed
    for method, rate, val, test in (
        ("uniform", 0.1, 60.0, 20.0),
        ("uniform", 0.2, 50.0, 30.0),
        ("mmpareto", 0.1, 40.0, 41.0),
        ("mmpareto", 0.2, 45.0, 39.0),
        ("mmpareto", 0.4, 90.0, 10.0),
    ):
        for seed in range(1 if rate == 0.4 else 3):
            make_run(
                tmp_path / f"{method}{rate}{seed}",
                method,
                seed,
                test + (seed if method == "uniform" else 2 * seed),
                val=val + seed,
                learning_rate=rate,
            )
    finished = find([tmp_path])[0]
    kept, said = tuned(finished, ["learning_rate"])
    assert {(run.method, run.config["learning_rate"]) for run in kept} == {("uniform", 0.1), ("mmpareto", 0.2)}
    assert len(kept) == 6
    assert (
        "uniform: learning_rate 0.1, chosen by mean validation accuracy (learning_rate 0.1: 61.0; learning_rate 0.2: "
        "51.0)"
    ) in said
    assert any("not eligible, for want of seeds: learning_rate 0.4" in sentence for sentence in said)
    (summary,) = summaries(finished, tune=["learning_rate"])
    test = summary.tests[[row.label for row in summary.rows].index("mmpareto")]
    assert test.difference == pytest.approx(20.0)  # 39, 41, 43 less 20, 21, 22: paired although the rates differ
    assert test.p is not None
    assert list(summary.table["chosen"]) == ["learning_rate 0.1", "learning_rate 0.2"]
    assert said[0] in as_markdown([summary])


def test_few_seeds_choose_and_more_are_reported(tmp_path: Path) -> None:
    # over seeds 0 and 1 validation prefers 0.2; over seed 2, which 0.1 lacks, nobody asks; 0.4 lacks seed 1
    for rate, vals in ((0.1, {0: 50.0, 1: 50.0}), (0.2, {0: 60.0, 1: 50.0, 2: 1.0}), (0.4, {0: 90.0, 2: 90.0})):
        for seed, val in vals.items():
            make_run(tmp_path / f"{rate}{seed}", "uniform", seed, val=val, learning_rate=rate)
    finished = find([tmp_path])[0]
    kept, said = tuned(finished, ["learning_rate"], [0, 1])
    assert [(run.config["learning_rate"], run.seed) for run in kept] == [(0.2, 0), (0.2, 1), (0.2, 2)]
    assert said == [
        "uniform: learning_rate 0.2, chosen by mean validation accuracy over seeds 0, 1 (learning_rate 0.1: 50.0; "
        "learning_rate 0.2: 55.0; not eligible, for want of seeds: learning_rate 0.4)"
    ]
    with pytest.raises(RunError, match=r"no choice of learning_rate has all of seeds 0, 5"):
        tuned(finished, ["learning_rate"], [0, 5])


def test_what_cannot_be_chosen(tmp_path: Path) -> None:
    for seed, rate in ((0, 0.1), (1, 0.2)):
        make_run(tmp_path / f"{seed}", "uniform", seed, learning_rate=rate)
    finished = find([tmp_path])[0]
    with pytest.raises(RunError, match=r"no choice of learning_rate has all of seeds 0, 1"):
        tuned(finished, ["learning_rate"])
    with pytest.raises(RunError, match="no run has a setting 'nope'"):
        summaries(finished, tune=["nope"])
    assert tuned(finished, []) == (finished, [])
    make_run(tmp_path / "2", "uniform", 2, val=math.nan, learning_rate=0.1)
    with pytest.raises(RunError, match="no joint validation accuracy"):
        tuned(find([tmp_path])[0], ["learning_rate"], [0])


def test_choices_of_one_method_at_several_settings_are_told_apart(tmp_path: Path) -> None:
    for gamma in (1.0, 2.0):
        for rate, val in ((0.1, 50.0 + gamma), (0.2, 40.0)):
            folder = tmp_path / f"{gamma}{rate}"
            make_run(folder, "mmpareto", val=val, learning_rate=rate, method_options={"gamma": gamma})
    said = tuned(find([tmp_path])[0], ["learning_rate"])[1]
    assert [sentence.partition(":")[0] for sentence in said] == ["mmpareto (gamma 1)", "mmpareto (gamma 2)"]


def test_a_run_made_twice_counts_once_in_a_choice(tmp_path: Path) -> None:
    for rate, vals in ((0.1, (50.0, 40.0)), (0.2, (48.0, 40.0))):
        for seed, val in enumerate(vals):
            make_run(tmp_path / f"{rate}{seed}", "uniform", seed, val=val, learning_rate=rate)
    for again in range(3):
        make_run(tmp_path / f"again{again}", "uniform", 1, val=40.0, learning_rate=0.1)
    kept, said = tuned(find([tmp_path])[0], ["learning_rate"])
    assert {run.config["learning_rate"] for run in kept} == {0.1}
    assert "(learning_rate 0.1: 45.0; learning_rate 0.2: 44.0)" in said[0]


def test_one_number_is_one_value_however_it_was_given(tmp_path: Path) -> None:
    """The option 1 of a grid, and the default 1.0 of further seeds."""
    for seed, alpha in ((0, 1), (1, 1), (2, 1.0)):
        make_run(tmp_path / f"one{seed}", "pmr", seed, 50.0, method_options={"alpha": alpha})
    for seed in (0, 1):
        make_run(tmp_path / f"half{seed}", "pmr", seed, 40.0, method_options={"alpha": 0.5})
    (summary,) = summaries(find([tmp_path])[0], tune=["alpha"], tune_seeds=[0, 1])
    assert [(row.label, row.seeds) for row in summary.rows] == [("pmr", [0, 1, 2])]


def test_what_only_one_dataset_has_can_be_tuned(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "uniform", dataset="digits", learning_rate=0.1)
    for gamma, val in ((1.0, 50.0), (2.0, 60.0)):
        make_run(tmp_path / f"{gamma}", "mmpareto", val=val, dataset="cgmnist", method_options={"gamma": gamma})
    cgmnist, digits = summaries(find([tmp_path])[0], tune=["gamma"])
    assert [run.config["method_options"]["gamma"] for run in cgmnist.runs] == [2]
    assert len(digits.rows) == 1
    lines = list(csv.DictReader(io.StringIO(as_csv([cgmnist, digits]))))
    assert [(line["method"], line["chosen_gamma"]) for line in lines] == [("mmpareto", "2"), ("uniform", "")]
