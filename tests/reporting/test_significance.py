"""Paired tests: Student's distribution in closed form, Holm's correction worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from reporting.synthetic import make_run

from mmpareto.reporting.comparison import rows_of, settings
from mmpareto.reporting.finished import find
from mmpareto.reporting.significance import PairedTest, baseline_method, holm, mean_ranks, paired_tests
from mmpareto.runs import RunError


def paired_p(differences: list[float]) -> float:
    """Two-sided p of five differences: with four degrees of freedom the distribution has a closed form
    (Abramowitz & Stegun, 26.7.4)."""
    n = len(differences)
    assert n == 5
    mean = sum(differences) / n
    variance = sum((value - mean) ** 2 for value in differences) / (n - 1)
    angle = math.atan(abs(mean) / math.sqrt(variance / n) / math.sqrt(n - 1))
    return 1 - math.sin(angle) * (1 + math.cos(angle) ** 2 / 2)


def paired(folder: Path, method: str | None = "uniform") -> dict[str, PairedTest]:
    rows = rows_of(find([folder])[0])
    return {row.label: test for row, test in zip(rows, paired_tests(rows, method), strict=True)}


def test_holm_by_hand() -> None:
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, the last raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.4]) == [0.9, 0.8]
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_method_with_its_own_architecture_is_compared_with_the_baseline(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"u{seed}", "uniform", seed, 40.0 + seed, architecture="late_fusion")
        make_run(tmp_path / f"t{seed}", "transformer", seed, 50.0 + 2 * seed, architecture="transformer")
        make_run(tmp_path / f"p{seed}", "pareto", seed, 50.0, architecture="mmtm")
    tests = paired(tmp_path)
    assert tests["transformer, architecture transformer"].difference == pytest.approx(10.5)
    assert tests["pareto, architecture mmtm"].reason == "no baseline rows with these settings"


def test_an_option_that_is_called_as_a_flag_is_no_other_setting(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"u{seed}", "uniform", seed, 40.0 + seed, momentum=0.9)
        make_run(tmp_path / f"p{seed}", "pmr", seed, 50.0 + 2 * seed, momentum=0.9, method_options={"momentum": 0.2})
        make_run(tmp_path / f"o{seed}", "ogm", seed, 50.0, momentum=0.5)
    tests = paired(tmp_path)
    assert tests["pmr"].difference == pytest.approx(10.5)
    assert tests["ogm, momentum 0.5"].reason == "no baseline rows with these settings"
    values = settings(find([tmp_path / "p0"])[0][0])
    assert (values["momentum"], values["method_momentum"]) == (0.9, 0.2)


def test_ranks_by_hand(tmp_path: Path) -> None:
    # of the seeds that all have, 0 and 1: places 3 and 2, 1.5 and 2, 1.5 and 2; seed 2, which one lacks, does not count
    for method, accuracies in {"a": [10.0, 30.0, 9.0], "b": [20.0, 30.0], "c": [20.0, 30.0, 99.0]}.items():
        for seed, accuracy in enumerate(accuracies):
            make_run(tmp_path / f"{method}{seed}", method, seed, accuracy)
    make_run(tmp_path / "tested", "a", 0, 100.0, selected_on="test")
    rows = rows_of(find([tmp_path])[0])
    ranks = {row.label: rank for row, rank in zip(rows, mean_ranks(rows), strict=True)}
    assert ranks == {"a": 2.5, "b": 1.75, "c": 1.75, "a, SELECTED ON TEST": None}
    assert mean_ranks(rows[:1]) == [None]
    make_run(tmp_path / "elsewhere", "d", 7, 50.0)
    assert set(mean_ranks(rows_of(find([tmp_path])[0]))) == {None}


def test_p_values_and_their_correction(tmp_path: Path) -> None:
    base = [40.0, 42.0, 39.0, 45.0, 41.0]
    other = {"mmpareto": [1.0, 2.0, 3.0, 4.0, 5.0], "pareto": [-1.0, 2.0, -3.0, 0.5, 0.0]}
    for seed, accuracy in enumerate(base):
        make_run(tmp_path / f"u{seed}", "uniform", seed, accuracy)
        for method, differences in other.items():
            make_run(tmp_path / f"{method}{seed}", method, seed, accuracy + differences[seed])
    tests = paired(tmp_path)
    low, high = paired_p(other["mmpareto"]), paired_p(other["pareto"])
    assert low == pytest.approx(0.0132356, abs=1e-6)  # t = 3 sqrt 2
    assert tests["mmpareto"].difference == pytest.approx(3.0)
    assert tests["mmpareto"].p == pytest.approx(low)
    assert tests["mmpareto"].corrected == pytest.approx(2 * low)
    assert tests["pareto"].difference == pytest.approx(-0.3)
    assert tests["pareto"].p == pytest.approx(high)
    assert tests["pareto"].corrected == pytest.approx(high)
    assert tests["uniform"].reason == "baseline"


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 40.0), (1, 41.0), (2, 45.0), (7, 99.0)):
        make_run(tmp_path / f"u{seed}", "uniform", seed, accuracy)
    for seed, accuracy in ((2, 46.0), (1, 43.0), (0, 43.0), (9, 0.0)):
        make_run(tmp_path / f"m{seed}", "mmpareto", seed, accuracy)
    test = paired(tmp_path)["mmpareto"]
    assert test.seeds == (0, 1, 2)
    assert test.difference == pytest.approx(2.0)  # of 3, 2, 1
    # two degrees of freedom: p = 1 - t / sqrt(2 + t^2), with t = 2 sqrt 3
    assert test.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_what_cannot_be_tested_says_why(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / f"u{seed}", "uniform", seed, 40.0 + seed)
        make_run(tmp_path / f"c{seed}", "pareto", seed, 41.0 + seed)  # always one point more: no variance
        make_run(tmp_path / f"l{seed}", "mmpareto", seed, 50.0, learning_rate=0.1)
    make_run(tmp_path / "one", "one_joint", 0, 10.0)
    tests = paired(tmp_path)
    assert (tests["pareto"].difference, tests["pareto"].p) == (pytest.approx(1.0), None)
    assert "same difference" in tests["pareto"].reason
    assert tests["one_joint"].reason == "1 common seed"
    assert "no baseline rows with these settings" in tests["mmpareto, learning_rate 0.1"].reason
    assert all(test.p is None for test in paired(tmp_path, None).values())


def test_options_of_the_method_are_no_other_setting(tmp_path: Path) -> None:
    for seed, more in ((0, 1.0), (1, 2.0), (2, 4.0)):
        make_run(tmp_path / f"u{seed}", "uniform", seed, 40.0 + seed, method_options={"gamma": 1.0})
        make_run(tmp_path / f"m{seed}", "mmpareto", seed, 40.0 + seed + more, method_options={"gamma": 1.5})
    assert paired(tmp_path)["mmpareto"].p is not None


def test_of_a_sweep_rows_of_equal_gamma_are_compared(tmp_path: Path) -> None:
    for gamma, gain in ((1.0, 1.0), (2.0, 3.0)):
        for seed in range(3):
            base = 10 * gamma + seed
            for method, joint, more in (
                ("uniform_gamma", base, {}),
                ("mmpareto", base + gain * (seed + 1), {"rescale": "tensor"}),
            ):
                folder = tmp_path / f"{method}{gamma}{seed}"
                make_run(folder, method, seed, joint, method_options={"gamma": gamma, **more})
    make_run(tmp_path / "o", "one_joint", 0)
    tests = paired(tmp_path, "uniform_gamma")
    for gamma, gain in ((1, 2.0), (2, 6.0)):
        test = tests[f"mmpareto, gamma {gamma}"]
        assert test.baseline is not None
        assert test.baseline.label == f"uniform_gamma, gamma {gamma}"
        assert test.difference == pytest.approx(gain)
        assert test.p == pytest.approx(1 - math.sqrt(12 / 14))  # t = 2 sqrt 3, two degrees of freedom
    assert tests["one_joint"].reason == "2 baseline rows with these settings"  # neither is nearer


def test_baseline(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "one_joint")
    make_run(tmp_path / "b", "mmpareto")
    finished = find([tmp_path])[0]
    assert baseline_method(finished, None) == "one_joint"
    assert baseline_method(finished, "mmpareto") == "mmpareto"
    with pytest.raises(RunError, match="no finished run is of the method 'nope'"):
        baseline_method(finished, "nope")
    make_run(tmp_path / "c", "uniform_gamma")
    assert baseline_method(find([tmp_path])[0], None) == "uniform_gamma"
    assert baseline_method([run for run in finished if run.method == "mmpareto"], None) is None
