"""Leaderboards: what is written, merging of files of one protocol, statistics against textbooks and scipy."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from entries.command import inside, refused
from reporting.synthetic import make_run

from mmpareto.cli import report
from mmpareto.reporting import leaderboard, leaderboard_tables
from mmpareto.reporting.balance import balance_of_rows
from mmpareto.reporting.comparison import rows_of
from mmpareto.reporting.finished import find
from mmpareto.reporting.ranking import Ranking
from mmpareto.runs import RunError

PROTOCOL = {"sampler": "random", "trials": 10, "trial_seeds": [0], "budget": None, "rule": "joint"}
JOINT = {"uniform": [80.0, 82.0, 84.0, 81.0], "mmpareto": [85.0, 86.0, 90.0, 85.0], "random": [79.0, 83.0, 84.0, 80.0]}


def row(dataset: str, method: str, seed: int, joint: float, *, tuned: bool = True) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "method": method,
        "tuned": tuned,
        "seed": seed,
        "values": {"learning_rate": "0.1"},
        "scores": {"joint": joint, "best single": joint - 2.0},
        "seconds": 3.0,
    }


def board(dataset: str = "twoview", less: float = 0.0) -> dict[str, Any]:
    """Four seeds of three methods; the recipe's values give two points less."""
    rows = [
        row(dataset, method, 10 + k, value - less - (0.0 if tuned else 2.0), tuned=tuned)
        for tuned in (True, False)
        for method, values in JOINT.items()
        for k, value in enumerate(values)
    ]
    settings, spaces = {dataset: {"epochs": 5}}, {"mmpareto": {"gamma": [1.0, 4.0, True]}}
    return {"protocol": dict(PROTOCOL), "spaces": spaces, "settings": settings, "results": rows, "made": {}}


def cells(text: str, dataset: str) -> list[list[str]]:
    """The rows of a dataset's table."""
    part = text.split(f"## {dataset}\n")[1].split("##")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_table_has_means_intervals_tests_and_the_effect_of_tuning(tmp_path: Path) -> None:
    content = board()
    for result in content["results"]:
        if result["method"] == "random" and not result["tuned"]:
            result["seed"] += 100
    header, *rows = cells(leaderboard.write(tmp_path, content), "twoview")
    lines = {line[0].removesuffix(" ="): dict(zip(header, line, strict=True)) for line in rows}
    assert [line[0] for line in rows] == ["mmpareto", "uniform", "random"]  # both differ from the first one
    assert lines["mmpareto"]["joint"].startswith("86.5 ± 2.4 [85.0, ")
    assert lines["mmpareto"]["joint - best single"] == "2.0 ± 0.0"
    assert lines["uniform"]["effect of tuning"] == "+2.0"
    assert lines["random"]["effect of tuning"] == "n/a"  # no seed has both
    assert (lines["mmpareto"]["minus uniform"], lines["uniform"]["minus uniform"], lines["uniform"]["p"]) == (
        *("+4.8 [+3.2, +6.3]", "-", "-"),
    )
    gains = np.subtract(JOINT["mmpareto"], JOINT["uniform"])
    margin = scipy.stats.t.ppf(0.975, 3) * gains.std(ddof=1) / 2
    assert (f"{gains.mean() - margin:+.1f}", f"{gains.mean() + margin:+.1f}") == ("+3.2", "+6.3")
    pair = [scipy.stats.ttest_rel(JOINT[name], JOINT["uniform"]).pvalue for name in ("mmpareto", "random")]
    assert lines["mmpareto"]["p"] == f"{min(2 * min(pair), 1):.3f}"  # Holm: the smaller of two, doubled
    assert lines["random"]["p"] == f"{max(pair):.3f}"
    assert json.loads((tmp_path / "leaderboard.json").read_text())["schema"] == 1


@pytest.mark.usefixtures("undrawn")
def test_all_heads_are_compared_with_the_joint_head_of_the_baseline(tmp_path: Path) -> None:
    gains = {"uniform": [1.0, 2.0, 1.0, 3.0], "mmpareto": [0.0, 1.0, 0.0, 0.0], "random": [2.0, 1.0, 0.0, 0.0]}
    content = board()
    for number, result in enumerate(content["results"]):
        gain = gains[result["method"]][number % 4]
        result["scores"]["all heads, logs"] = JOINT[result["method"]][number % 4] + gain
    header, *rows = cells(leaderboard.write(tmp_path, content), "twoview")
    lines = {line[0].removesuffix(" ="): dict(zip(header, line, strict=True)) for line in rows}
    differences = {
        name: [a + gain - b for a, gain, b in zip(JOINT[name], gains[name], JOINT["uniform"], strict=True)]
        for name in gains
    }
    p_values = {name: scipy.stats.ttest_1samp(values, 0).pvalue for name, values in differences.items()}
    first, second, third = sorted(p_values, key=p_values.__getitem__)
    smallest = min(3 * p_values[first], 1)
    middle = max(smallest, min(2 * p_values[second], 1))
    corrected = {first: smallest, second: middle, third: max(middle, p_values[third])}
    for name, values in differences.items():
        assert lines[name]["all heads minus uniform"].startswith(f"{np.mean(values):+.1f} [")
        assert lines[name]["p, all heads"] == f"{corrected[name]:.3f}"
    assert lines["uniform"]["p"] == "-"


@pytest.mark.usefixtures("undrawn")
def test_a_row_that_cannot_be_told_from_the_first_is_marked(tmp_path: Path) -> None:
    content = board()
    content["results"] = [r for r in content["results"] if r["method"] != "mmpareto"]
    _, *rows = cells(leaderboard.write(tmp_path, content), "twoview")
    assert [line[0] for line in rows] == ["uniform", "random ="]
    content["results"] += [row("twoview", "pareto", 10 + k, value) for k, value in enumerate(JOINT["uniform"])]
    content["results"] += [row("twoview", "mmpareto", 10, 60.0), row("twoview", "mmpareto", 99, 60.0)]
    _, *rows = cells(leaderboard.write(tmp_path, content), "twoview")
    # the same values throughout; one common seed, which no test compares
    assert [line[0] for line in rows] == ["pareto", "uniform =", "random =", "mmpareto ?"]
    content["results"] = [row("twoview", "uniform", seed, 80.0 + seed) for seed in (1, 2)]
    content["results"] += [row("twoview", "random", seed, 79.0 + seed) for seed in (1, 2)]
    header, _, line = cells(leaderboard.write(tmp_path, content), "twoview")
    shown = dict(zip(header, line, strict=True))  # the same difference for both seeds
    assert (shown["method"], shown["minus uniform"], shown["p"]) == ("random ?", "-1.0", "-")


@pytest.mark.usefixtures("undrawn")
def test_probes_are_compared_with_those_of_the_encoders_trained_alone_in_any_file(tmp_path: Path) -> None:
    probes = {"unimodal": {10: 70.0, 11: 80.0}, "uniform": {10: 68.0, 11: 79.0}, "transformer": {10: 60.0}}
    content = board()
    content["results"] = [
        row("twoview", method, seed, 90.0) | {"scores": {"joint": 90.0, "best single": 85.0, "probe, gray": value}}
        for method, values in probes.items()
        for seed, value in values.items()
    ]
    text = leaderboard.write(tmp_path, content).split("\n\n")[-1]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    gaps = {line[0]: dict(zip(header, line, strict=True))["probe less alone, gray"] for line in rows}
    assert (gaps["uniform"], gaps["unimodal"]) == ("-1.5", "n/a")  # the means of -2 and -1; the reference itself
    assert gaps["transformer"] == "n/a"  # an architecture of its own


def evaluated(folder: Path, method: str, missing: str, total: float, **config: Any) -> None:
    """A run with probes and an evaluation, in which absent modalities are replaced by `missing`."""
    make_run(folder, method, **config)
    results = json.loads((folder / "results.json").read_text())
    probed = {"unimodal": {name: {"accuracy": total} for name in ("gray", "colour")}}
    (folder / "results.json").write_text(json.dumps(results | {"seconds": 1.0, "probe": probed}))
    evaluation = {
        "finished": True,
        "selected_epoch": results["selected_epoch"],
        "missing": missing,
        "shapley": {"contributions": {"gray": total - 1.0, "colour": 1.0}, "sum": total},
        "subsets": [{"present": ["gray"], "accuracy": total}],
    }
    (folder / "evaluation_test.json").write_text(json.dumps(evaluation))


def test_measures_of_two_kinds_are_not_averaged_and_small_sums_have_no_shares(tmp_path: Path) -> None:
    for seed, (missing, total) in enumerate((("zero", 50.0), ("mean", 80.0), ("zero", 9.0))):
        evaluated(tmp_path / str(seed), "uniform", missing, total, seed=seed)
    table = balance_of_rows(rows_of(find([tmp_path])[0]))
    shown = table.set_index("method").loc["uniform"]
    assert shown["Shapley share, gray"] == "98.0"  # of the first alone: 9 points say nothing
    assert shown["Shapley share by mean, gray"] == "98.8"
    assert (shown["without colour"], shown["without colour by mean"]) == ("29.5", "80.0")


def test_a_probe_is_compared_with_one_of_the_same_encoders_and_data(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", "uniform", "zero", 60.0)
    evaluated(tmp_path / "b", "pareto", "zero", 50.0, encoder={"gray": "mlp"})
    evaluated(tmp_path / "c", "unimodal", "zero", 70.0, learning_rate=0.5)
    table = balance_of_rows(rows_of(find([tmp_path])[0]))
    assert dict(table[["method", "probe less alone, gray"]].to_numpy().tolist()) == {
        "uniform": "-10.0",
        "pareto, encoder gray mlp": "n/a",
        "unimodal, learning_rate 0.5": "n/a",
    }


def test_encoders_that_see_one_another_are_not_compared_with_any_trained_alone(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", "uniform", "zero", 60.0, architecture="mmtm")
    evaluated(tmp_path / "b", "pareto", "zero", 50.0)
    evaluated(tmp_path / "c", "unimodal", "zero", 70.0)
    table = balance_of_rows(rows_of(find([tmp_path])[0]))
    gaps = dict(table[["method", "probe less alone, gray"]].to_numpy().tolist())
    assert gaps == {"uniform, architecture mmtm": "n/a", "pareto": "-20.0", "unimodal": "n/a"}
    evaluated(tmp_path / "d", "unimodal", "zero", 30.0, seed=1, architecture="mmtm")
    evaluated(tmp_path / "e", "pareto", "zero", 50.0, seed=1)
    table = balance_of_rows(rows_of(find([tmp_path])[0]))
    assert dict(table[["method", "probe less alone, gray"]].to_numpy().tolist())["pareto"] == "-20.0"


def test_trials_of_a_search_are_in_no_report_unless_they_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "trials" / "digits" / "uniform" / "trial3" / "seed0", "uniform")
    with pytest.raises(RunError, match="holds 1 run of a search's trials, and none of chosen values"):
        find([tmp_path])
    make_run(tmp_path / "tuned" / "digits" / "uniform" / "trial3" / "seed10", "uniform", seed=10)
    assert [run.seed for run in find([tmp_path])[0]] == [10]
    assert [run.seed for run in find([tmp_path / "trials"])[0]] == [0]
    make_run(tmp_path / "others" / "trials" / "seed4", seed=4)  # no search's
    assert [run.seed for run in find([tmp_path])[0]] == [4, 10]
    shutil.rmtree(tmp_path / "others")
    assert [run.seed for run in find([tmp_path, tmp_path / "trials" / "digits"])[0]] == [10, 0]


def test_means_that_differ_by_rounding_alone_are_ties() -> None:
    ranking = Ranking(pd.DataFrame([[76.75, 76.75 * (1 + 2**-52), 50.0]] * 3, columns=list("abc")))
    assert ranking.ranks.to_dict() == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert ranking.verdict.startswith("a, b have the best mean rank")


def test_the_interval_is_that_of_the_bootstrap() -> None:
    values = pd.Series([80.0, 82.0, 84.0, 81.0])
    draws = np.random.default_rng(1).choice(values, (200_000, 4)).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    shown = leaderboard_tables.interval(values).strip("[]").split(", ")
    assert [float(text) for text in shown] == pytest.approx([low, high], abs=0.15)
    assert leaderboard_tables.interval(values[:2]) == leaderboard_tables.interval(pd.Series([5.0] * 4)) == ""


def test_friedman_s_test_is_near_its_textbook_form_for_many_datasets() -> None:
    random = np.random.default_rng(0)
    scores = pd.DataFrame(random.normal(size=(40, 4)) + np.linspace(0.0, 0.3, 4))
    ranking = Ranking(scores)
    assert ranking.p == pytest.approx(scipy.stats.friedmanchisquare(*scores.to_numpy().T).pvalue, rel=0.15)
    assert np.isnan(Ranking(pd.DataFrame(np.ones((3, 3)))).p)
    assert Ranking(pd.DataFrame([[1.0, 2.0], [1.0, 2.0], [1.0, 1.0]])).p == 0.5  # 8 orders, of which 4 are as far apart


def test_a_measure_that_not_all_seeds_have_says_how_many_do() -> None:
    lines = [
        {"method": method, "seed": seed, "joint": 90.0, "probe, a": 70.0 + seed}
        | ({"right only jointly": float(seed)} if seed < few else {})
        for method, few in (("uniform", 3), ("mmpareto", 2), ("random", 0))
        for seed in (0, 1, 2)
    ]
    table = leaderboard_tables.balance_table(pd.DataFrame(lines), {})
    _, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert sorted(rows) == [["mmpareto", "71.0", "0.5 (2)"], ["random", "71.0", "n/a"], ["uniform", "71.0", "1.0"]]


def test_the_interval_of_five_seeds_covers_the_mean_as_often_as_the_tables_say() -> None:
    assert "it covers the true mean in about 83 % of cases" in leaderboard_tables.CAPTION
    random = np.random.default_rng(0)
    accuracies = random.normal(size=(4000, 5))
    means = np.stack([accuracies[:, random.integers(0, 5, 5)].mean(1) for _ in range(1000)])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.83, abs=0.02)


@pytest.mark.usefixtures("undrawn")
def test_ranks_over_datasets(tmp_path: Path) -> None:
    content = board()
    for dataset, less in (("b", 1.0), ("c", 2.0)):
        content["results"] += board(dataset, less)["results"]
    text = leaderboard.write(tmp_path, content)
    header, *rows = cells(text, "All datasets")
    assert header == ["method", "twoview", "b", "c", "rank"]
    assert [line[0] for line in rows] == ["mmpareto", "uniform", "random"]
    assert [line[-1] for line in rows] == ["1.00", "2.00", "3.00"]
    assert "(Friedman, p 0.028)" in text  # of 6 ** 3 orders 6 agree: 1 of 36
    assert (tmp_path / "figures" / "twoview-joint-accuracy.pdf").exists()
    written = (tmp_path / "leaderboard.md").read_text()
    assert "![c](figures/c-joint-accuracy.svg)" in written
    assert "![All datasets](figures/All-datasets-critical-difference.svg)" in written
    table = pd.DataFrame([{**row, **row["scores"]} for row in content["results"]])
    fewer = table[(table["dataset"] != "b") | (table["method"] != "random")]
    assert "Not on all datasets, and left out: random." in leaderboard_tables.over_datasets(fewer)


@pytest.mark.slow
def test_figures_show_all_methods() -> None:
    content = board() | {"diverged": {}}
    content["results"] += board("b", 3.0)["results"]
    drawn = leaderboard.figures(content)
    assert list(drawn) == ["twoview", "b", "All datasets"]
    for _, files in drawn.values():
        assert all(method in files["svg"].decode() for method in JOINT)


@pytest.mark.usefixtures("undrawn")
def test_files_of_one_protocol_are_merged_and_others_refused(tmp_path: Path) -> None:
    ours, theirs = board(), board("avmnist")
    for content in (ours, theirs):
        content["results"] = [result for result in content["results"] if result["seed"] < 12]
    theirs["results"] += [row("twoview", "theirs", seed, 70.0 + seed) for seed in (10, 11)]
    theirs["settings"]["twoview"] = {"epochs": 5}
    for name, content in (("ours", ours), ("theirs", theirs)):
        (tmp_path / name).mkdir()
        leaderboard.write(tmp_path / name, content)
    files = [tmp_path / name / "leaderboard.json" for name in ("ours", "theirs")]
    done = inside(report.main, "--leaderboard", *files, "--output", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert "| theirs" in done.stdout
    both = json.loads((tmp_path / "both" / "leaderboard.json").read_text())
    assert len(both["results"]) == 12 + 12 + 2

    # the default, of a version that has this setting, and what changes results by rounding alone
    theirs["settings"]["twoview"] |= {"augment": "workers", "cuda_graph": True}
    files[1].write_text(json.dumps({"schema": 1, **theirs}))
    assert len(leaderboard.merged(files)["results"]) == 12 + 12 + 2
    assert len(leaderboard.merged(files[::-1])["results"]) == 12 + 12 + 2

    ours["diverged"], theirs["diverged"] = {"twoview": {"uniform": 3}}, {"twoview": {"theirs": 10}}
    for file, content in zip(files, (ours, theirs), strict=True):
        file.write_text(json.dumps({"schema": 1, **content}))
    theirs["idle"] = {"twoview": {"theirs": 2}}
    ours["samples"] = {"twoview": {"test": {"number": 3, "ids": "abc"}}}
    theirs["samples"] = {"avmnist": {"test": {"number": 4}}, "twoview": {"test": {"number": 3}}}  # ids are not known
    ours["made"], theirs["made"] = {"device": "cpu"}, [{"device": "cpu"}, {"device": "cuda"}]
    ours["settings"]["twoview"]["learning_rate"] = "searched from 0.01 to 1"  # which earlier versions did not write
    for file, content in zip(files, (ours, theirs), strict=True):
        file.write_text(json.dumps({"schema": 1, **content}))
    merged = leaderboard.merged(files)
    assert merged["made"] == [{"device": "cpu"}, {"device": "cuda"}]
    assert merged["samples"] == {"twoview": {"test": {"number": 3, "ids": "abc"}}, "avmnist": {"test": {"number": 4}}}
    text = leaderboard.tables(merged)
    assert "Trials that ended before the method acted, of which none is chosen: theirs 2 of 10." in text
    assert "Diverged trials (a loss or gradient was not finite): uniform 3 of 10, theirs 10 of 10." in text

    def refuse(change: Any) -> str:
        content = copy.deepcopy(theirs)
        change(content)
        files[1].write_text(json.dumps({"schema": 1, **content}))
        return refused(report.main, "--leaderboard", *files)

    assert "another protocol than" in refuse(lambda c: c["protocol"].update(trials=50))
    assert "(trials: 50, not 10)" in refuse(lambda c: c["protocol"].update(trials=50))
    assert "leave one of the files out, or run its search again" in refuse(lambda c: c["protocol"].update(trials=50))
    assert "other samples of twoview" in refuse(lambda c: c["samples"].update(twoview={"test": {"number": 9}}))
    range_of = {"learning_rate": "searched from 0.1 to 10"}
    assert "(learning_rate: 'searched from 0.1 to 10', not 'searched from 0.01 to 1')" in refuse(
        lambda c: c["settings"]["twoview"].update(range_of)
    )
    assert "(learning_rate: 0.1, not " in refuse(lambda c: c["settings"]["twoview"].update(learning_rate=0.1))
    assert "other settings of twoview" in refuse(lambda c: c["settings"]["twoview"].update(epochs=6))
    assert "(augment: 'none', not 'workers')" in refuse(lambda c: c["settings"]["twoview"].update(augment="none"))
    assert "(cutmix: 0.5, not None)" in refuse(lambda c: c["settings"]["twoview"].update(cutmix=0.5))
    assert "other spaces of mmpareto" in refuse(lambda c: c["spaces"]["mmpareto"].update(gamma=[1.0, 9.0, True]))
    for damage in ({"rule": "luck"}, {"rule": []}, {"trial_seeds": 0}):
        assert "its protocol is damaged" in refuse(lambda c, damage=damage: c["protocol"].update(damage))
    assert "its protocol is damaged" in refuse(lambda c: c["protocol"].pop("budget"))
    for damage in (3, {"twoview": 3}, {"twoview": {"uniform": "3"}}):
        assert "diverged trials are damaged" in refuse(lambda c, damage=damage: c.update(diverged=damage))
    assert "settings or spaces are damaged" in refuse(lambda c: c["settings"].update(avmnist=3))
    assert "no result with chosen values" in refuse(lambda c: c["results"].clear())
    for damage in ({"budget": "x"}, {"budget": True}, {"trials": None}):
        assert "its protocol is damaged" in refuse(lambda c, damage=damage: c["protocol"].update(damage))
    for damage in ({"method": 1.0}, {"joint": True}, {"joint": float("inf")}):
        assert "result 1 is damaged" in refuse(lambda c, damage=damage: c["results"][0]["scores"].update(damage))
    assert "result 1 is damaged" in refuse(lambda c: c["results"][0].update(seconds=float("inf")))
    assert "theirs on twoview with seed 10 is there twice" in refuse(
        lambda c: c["results"].append(theirs["results"][-2])
    )
    chosen = row("twoview", "uniform", 30, 80.0) | {"values": {"learning_rate": "5"}}
    said = refuse(lambda c: c["results"].append(chosen))
    assert "uniform on twoview with seed 30 has other values than in another file ({'learning_rate': '5'}" in said
    for baseline in (("--baseline", "uniform"), ("--tune", "gamma")):
        assert f"{baseline[0]} is for run directories" in refused(report.main, "--leaderboard", *files, *baseline)

    # the same run with measures of balance in one file alone
    with_measures = copy.deepcopy(ours["results"][0])
    with_measures["scores"]["probe, rotated"] = 71.0
    files[1].write_text(json.dumps({"schema": 1, **theirs, "results": [*theirs["results"], with_measures]}))
    for order in (files, files[::-1]):
        (whole,) = (r for r in leaderboard.merged(order)["results"] if r["scores"].get("probe, rotated"))
        assert whole["scores"] == with_measures["scores"]

    same = row("twoview", "uniform", 10, 99.0)
    assert "in another file, with other scores" in refuse(lambda c: c["results"].append(same))
    files[1].write_text(json.dumps({"schema": 1, **theirs, "results": [same | {"scores": {"joint": "high"}}]}))
    assert "result 1 is damaged" in refused(report.main, "--leaderboard", *files)
    files[1].write_text(json.dumps({"schema": 2}))
    assert "its schema is 2, expected 1" in refused(report.main, "--leaderboard", *files)
    files[1].write_text("nothing")
    assert "cannot be read as a leaderboard" in refused(report.main, "--leaderboard", *files)
    assert "give run directories, or --leaderboard with files" in refused(report.main)


@pytest.mark.usefixtures("undrawn")
def test_a_result_is_what_the_run_scored(tmp_path: Path) -> None:
    make_run(tmp_path / "run", joint=70.0, alone=(60.0, 40.0), seed=7)
    probe = {name: {"accuracy": value} for name, value in (("gray", 80.0), ("colour", 50.0))}
    alone = {name: {"accuracy": value} for name, value in (("gray", 84.0), ("colour", 49.0))}
    evaluation = {
        "finished": True,
        "selected_epoch": json.loads((tmp_path / "run" / "results.json").read_text())["selected_epoch"],
        "joint": {"confusion": [[1]], "per_class": [{"class": "a"}]},
        "shapley": {"contributions": {"gray": 45.0, "colour": 15.0}, "sum": 60.0},
        "subsets": [
            {"present": present, "accuracy": value}
            for present, value in (([], 10.0), (["gray"], 55.0), (["colour"], 25.0), (["gray", "colour"], 70.0))
        ],
        "synergy": {"joint_only": 9.0, "single_only": 3.0},
    }
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rates = {"gray": {"conflict_rate": 0.25}, "colour": {"conflict_rate": None}}
    more = {"seconds": 4.5, "probe": {"unimodal": probe, "alone": {"unimodal": alone}}, "integration": rates}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results | more))
    (tmp_path / "run" / "evaluation_test.json").write_text(json.dumps(evaluation))
    (run,) = find([tmp_path / "run"])[0]
    row_of_run = leaderboard.result(run, tuned=True, values={"gamma": "2"})
    assert row_of_run["scores"] == {
        "joint": 70.0,
        "best single": 60.0,
        "gray alone": 60.0,
        "colour alone": 40.0,
        "conflict, gray": 25.0,
        "probe, gray": 80.0,
        "probe less alone, gray": -4.0,
        "probe, colour": 50.0,
        "probe less alone, colour": 1.0,
        "Shapley share, gray": 75.0,
        "Shapley share, colour": 25.0,
        "without gray": 25.0,
        "without colour": 55.0,
        "right only jointly": 9.0,
    }
    assert (row_of_run["values"], row_of_run["seconds"], row_of_run["tuned"]) == ({"gamma": "2"}, 4.5, True)
    content = board()
    content["results"] = [row_of_run, row_of_run | {"seed": 8, "tuned": False}]
    (_, balance), (header, line) = [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("| ")]
        for table in leaderboard.write(tmp_path, content).split("## digits")[1].strip().split("\n\n")
    ]
    assert balance[0] == "mmpareto"
    shown = dict(zip(header, line, strict=True))
    assert (shown["probe less alone, gray"], shown["without colour"], shown["conflict, gray"]) == (
        "-4.0",
        "55.0",
        "25.0",
    )


@pytest.mark.usefixtures("undrawn")
def test_selection_on_test_is_marked_and_names_are_harmless(tmp_path: Path) -> None:
    content = board("a|b") | {"samples": {}, "diverged": {}, "idle": {}}
    assert "SELECTED ON TEST" not in leaderboard.tables(content)
    content["settings"]["a|b"]["selected_on"] = "test"
    text = leaderboard.tables(content)
    assert "## a\\|b\n\n**SELECTED ON TEST**: the checkpoints of all runs were selected on the test split" in text
    both = board("x") | {"samples": {}, "diverged": {}, "idle": {}}
    for result in both["results"] + content["results"]:
        result["method"] = result["method"].replace("random", "r|m")
    both["results"] += content["results"]
    assert "| r\\|m " in leaderboard.tables(both).split("## All datasets")[1]


def test_files_are_merged_alike_in_any_order(tmp_path: Path) -> None:
    def file(name: str, **changes: Any) -> Path:
        content = {"schema": 1, **board()} | changes
        content["results"] = [row("twoview", name, seed, 80.0) for seed in (10, 11)]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path / f"{name}.json"

    def samples(**about: Any) -> dict[str, Any]:
        return {"twoview": {"test": {"number": 3, **about}}}

    def ranged(low: int) -> dict[str, Any]:
        return {"twoview": {"epochs": 5, "learning_rate": f"searched from {low} to 1"}}

    a, b, c = file("a", samples=samples()), file("b", samples=samples(ids="x")), file("c", samples=samples(ids="y"))
    for order in itertools.permutations((a, b, c)):
        with pytest.raises(RunError, match="other samples of twoview"):
            leaderboard.merged(order)
    a, b, c = file("a", settings=ranged(0)), file("b"), file("c", settings=ranged(9))
    for order in itertools.permutations((a, b)):
        assert "learning_rate" in leaderboard.merged(order)["settings"]["twoview"]
    for order in itertools.permutations((a, b, c)):
        with pytest.raises(RunError, match="other settings of twoview"):
            leaderboard.merged(order)
    a, b = (file(name, diverged={"twoview": {"uniform": number}}) for name, number in (("a", 1), ("b", 2)))
    with pytest.raises(RunError, match="another number of diverged trials on twoview"):
        leaderboard.merged([a, b])
    with pytest.raises(RunError, match="its samples are damaged"):
        leaderboard.merged([file("a", samples=[])])
