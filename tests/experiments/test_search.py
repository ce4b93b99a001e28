"""Searches: the same draws for all methods, spaces that hold, choice on validation, the same tables after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from entries.command import ROOT, inside, refused
from reporting.synthetic import make_run as finished_run
from settings import write_settings

from mmpareto.cli import experiment, train
from mmpareto.cli.running import perform
from mmpareto.cli.search import why_none
from mmpareto.errors import UsageError
from mmpareto.experiments.grid import Run, make_run
from mmpareto.experiments.launchers import Local
from mmpareto.experiments.process import Outcome, diverged
from mmpareto.experiments.search import (
    STARTUP,
    Candidate,
    Search,
    Trial,
    drawn,
)
from mmpareto.experiments.search_results import counts, shared_settings, trial_table, write_leaderboard
from mmpareto.integration import Uniform
from mmpareto.methods import METHODS, build_method
from mmpareto.registry import Range
from mmpareto.reporting import charts, leaderboard
from mmpareto.runs import DIVERGED, RESOLVED, RESULTS, RunError


def plan(tmp_path: Path, sampler: str = "random", *passed: str, **changes: Any) -> Search:
    """A search of 20 trials on the embedded dataset."""
    settings = {"trials": 20, "trial_seeds": [0], "seeds": [10], "rule": "joint", "budget": 2}
    return Search(sampler=sampler, passed=passed, output=tmp_path, root=tmp_path, **{**settings, **changes})


def test_draws_are_uniform_in_the_logarithm_within_the_range_and_the_same_everywhere() -> None:
    space = Range(1e-4, 1e-1)
    values = [drawn(space, "learning_rate", number) for number in range(2000)]
    assert min(values) >= 1e-4
    assert max(values) <= 1e-1
    share = (np.log10(values) + 4) / 3
    assert scipy.stats.kstest(share, "uniform").pvalue > 0.01
    other = [drawn(space, "weight_decay", number) for number in range(2000)]
    assert abs(scipy.stats.spearmanr(values, other).statistic) < 0.06
    assert values[:3] == [0.00513, 0.00175, 0.00408]  # results in print depend on them
    assert {drawn(Range(1, 4), "k", number) for number in range(60)} == {1, 2, 3, 4}
    assert {drawn(Range(0, 2, log=False), "k", number) for number in range(60)} == {0, 1, 2}
    assert {drawn(["a", "b"], "k", number) for number in range(30)} == {"a", "b"}


def finish(run: Run, joint: float, loss: float = 1.0, **settings: Any) -> None:
    """A run with these results, as train.py leaves it."""
    settings = {**run.config.flat(), **settings}
    made = finished_run(run.folder, seed=run.config.run.random_seed, joint=joint, **settings)
    results = json.loads((made / RESULTS).read_text())
    scores = {"joint": {"accuracy": joint, "loss": loss}, "unimodal": results["test"]["unimodal"]}
    (made / RESULTS).write_text(json.dumps(results | {"seconds": 3.0, "epochs": 1, "val": scores}))


def test_the_mean_over_trial_seeds_chooses_then_the_loss_then_the_first(tmp_path: Path) -> None:
    search = plan(tmp_path, trial_seeds=[0, 8])
    (candidate,) = search.candidates(["twoview"], ["uniform"])
    trials = [search.trial(candidate, number) for number in range(4)]
    found = [((90.0, 1.0), (50.0, 1.0)), ((75.0, 0.9), (71.0, 0.9)), ((72.0, 0.1), (74.0, 0.7)), ((73.0, 0.4),) * 2]
    for trial, results in zip(trials, found, strict=True):
        for run, (joint, loss) in zip(trial.runs, results, strict=True):
            finish(run, joint, loss)
    expected = [(70.0, 1.0), (73.0, 0.9), (73.0, 0.4), (73.0, 0.4)]
    assert [search.score(trial) for trial in trials] == [pytest.approx(pair) for pair in expected]
    assert search.best(trials) is trials[2]  # the best single run is another one's


def test_every_method_can_be_made_with_what_it_declares() -> None:
    searched = 0
    for name in METHODS:
        entry = METHODS[name]
        assert entry.search.keys() <= entry.options.keys()
        for number in range(3):
            options = {key: drawn(space, key, number) for key, space in entry.search.items()}
            build_method(name, **options)
        for key, space in entry.search.items():
            default = entry.options[key].default
            if isinstance(space, Range):
                assert space.low < space.high
                assert space.low > 0 or not space.log
                assert default == 0 or default > 50 or space.low <= default <= space.high, (name, key)
            else:
                assert default in space
        searched += bool(entry.search)
    assert searched > 30


def test_all_methods_have_the_same_rates_and_what_the_command_line_sets_stays(tmp_path: Path) -> None:
    search = plan(tmp_path)
    uniform, gamma, mmpareto = search.candidates(["twoview"], ["uniform", "uniform_gamma", "mmpareto"])
    for number in range(4):
        values = [search.trial(c, number).values for c in (uniform, gamma, mmpareto)]
        assert len({(v["learning_rate"], v["weight_decay"]) for v in values}) == 1
        assert values[1]["gamma"] == values[2]["gamma"]
        assert 0.01 <= float(values[0]["learning_rate"]) <= 1  # the recipe's 0.1, times 0.1 to 10
    (run,) = search.trial(mmpareto, 3).runs
    assert run.name == "trials/twoview/mmpareto/trial3/seed0"
    assert run.config.optim.epochs == 2
    assert run.config.method.method_options["rescale"] == values[2]["rescale"]
    fixed = plan(tmp_path, "random", "--learning_rate", "0.03", "--gamma=2")
    assert fixed.candidates(["twoview"], ["mmpareto"])[0].space.keys() == {"weight_decay", "rescale"}
    by_option = plan(tmp_path, "random", "--method_options", "momentum=0.5", "gamma=2", "--epochs", "3")
    assert by_option.candidates(["twoview"], ["mmpareto"])[0].space.keys() == {
        "learning_rate",
        "weight_decay",
        "rescale",
    }
    with pytest.raises(UsageError, match="--seeds 0 is one of --trial_seeds as well"):
        plan(tmp_path, seeds=[0, 1]).candidates(["twoview"], ["uniform"])


class OwnMomentum(Uniform):
    """An integrator with an option that has the name of a flag of train.py."""

    search = {"momentum": Range(0.1, 0.9)}

    def __init__(self, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum


def test_an_option_that_has_the_name_of_a_flag_is_searched(tmp_path: Path) -> None:
    search = plan(tmp_path, "random", "--momentum", "0.7")
    (candidate,) = search.candidates(["twoview"], [f"{__name__}:OwnMomentum"])
    assert "method_momentum" in candidate.space
    config = search.trial(candidate, 0).runs[0].config
    assert config.optim.momentum == 0.7
    assert config.method.method_options == {"momentum": float(search.values(candidate, 0)["method_momentum"])}


def test_a_name_written_in_two_ways_is_searched_once(tmp_path: Path) -> None:
    search = plan(tmp_path)
    candidates = search.candidates(["twoview", "TwoView"], ["uniform", "Uniform", "mmpareto"])
    assert [(c.dataset, c.method) for c in candidates] == [("twoview", "uniform"), ("twoview", "mmpareto")]


def test_what_is_not_searched_as_usual_is_in_the_leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "files", lambda specification: {"svg": b""})  # takes seconds

    def board(*passed: str) -> dict[str, Any]:
        search = plan(tmp_path / str(len(list(tmp_path.iterdir()))), "random", *passed, trials=1)
        trials = [search.trial(candidate, 0) for candidate in search.candidates(["twoview"], ["mmpareto"])]
        finals = search.finals(trials, recipe=False)
        for run in (*finals, *trials[0].runs):
            finish(run, 50.0)
            (run.folder / RESOLVED).write_text('{"samples": {"test": {"number": 9, "labels": "abc"}}}')
        assert write_leaderboard(search, trials, trials, finals)
        return leaderboard.read(search.output / "leaderboard.json")

    usual, other = board(), board("--learning_rate", "0.03", "--weight_decay", "0", "--gamma", "2")
    assert usual["settings"]["twoview"]["learning_rate"] == "searched from 0.01 to 1"
    assert "weight_decay" not in usual["settings"]["twoview"]
    assert usual["samples"] == {"twoview": {"test": {"number": 9, "labels": "abc"}}}
    assert usual["spaces"]["mmpareto"]["gamma"][:2] == [1.0, 4.0]
    assert {key: other["settings"]["twoview"][key] for key in ("learning_rate", "weight_decay")} == {
        "learning_rate": 0.03,
        "weight_decay": 0,
    }
    assert other["spaces"]["mmpareto"]["gamma"] == "set to 2.0"
    assert "The same for all methods: learning" in leaderboard.tables(other)
    (tmp_path / "rate.yaml").write_text("optim:\n  learning_rate: 5\n")
    around = board("--config", str(tmp_path / "rate.yaml"))
    assert around["settings"]["twoview"]["learning_rate"] == "searched from 0.5 to 50"


def test_a_trial_with_other_settings_chooses_nothing(tmp_path: Path) -> None:
    made, asked = (plan(tmp_path, budget=budget, rule="all_heads") for budget in (1, 2))
    trials = [search.trial(search.candidates(["twoview"], ["uniform"])[0], 3) for search in (made, asked)]
    finish(trials[0].runs[0], 80.0)
    with pytest.raises(RunError, match="no 'all_heads' on which --select all_heads looks"):
        made.score(trials[0])
    made.rule = asked.rule = "joint"
    assert made.score(trials[0]) == (80.0, 1.0)
    assert asked.score(trials[1]) is None
    assert asked.best([trials[1]]) is None
    (trials[0].runs[0].folder / RESULTS).write_text("{}")
    with pytest.raises(RunError, match="holds no results"):
        made.score(trials[0])


def test_a_trial_in_which_the_method_never_acts_is_not_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = plan(tmp_path, trials=3)
    (candidate,) = search.candidates(["twoview"], ["opm"])
    trials = [search.trial(candidate, number) for number in range(3)]
    for trial, joint in zip(trials, (80.0, 90.0, 70.0), strict=True):
        finish(trial.runs[0], joint)
    assert search.best(trials) is trials[1]
    file = trials[1].runs[0].folder / RESULTS
    file.write_text(json.dumps(json.loads(file.read_text()) | {"idle": "it never modulates"}))
    assert [trial.idle for trial in trials] == ["", "it never modulates", ""]
    assert search.best(trials) is trials[0]
    assert counts(trials, "idle") == {"twoview": {"opm": 1}}
    assert search.best([trials[1]]) is None
    assert why_none(search, [trials[1]]) == "no values are chosen; it never modulates"
    (tmp_path / "trials.csv").write_text(trial_table(search, trials, [trials[0]]))
    assert [line.rsplit(",", 3)[1:] for line in (tmp_path / "trials.csv").read_text().splitlines()] == [
        ["chosen", "diverged", "idle"],
        ["1", "", ""],
        ["0", "", "it never modulates"],
        ["0", "", ""],
    ]
    shutil.rmtree(trials[2].runs[0].folder)  # it failed: the budget of the method is not that of the others
    assert search.best(trials) is None
    assert "because trials failed: 2; the same command runs them again" in why_none(search, trials)


def test_tpe_learns_from_scores_and_from_what_diverged_but_not_from_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    learned: list[float] = []
    create_trial = optuna.trial.create_trial

    def record(**arguments: Any) -> Any:
        learned.append(arguments["value"])
        return create_trial(**arguments)

    monkeypatch.setattr(optuna.trial, "create_trial", record)
    search = plan(tmp_path, "tpe")
    (candidate,) = search.candidates(["twoview"], ["uniform"])
    trials = [search.trial(candidate, number) for number in range(STARTUP)]
    diverges = trials[2].runs[0]  # the second one failed: nothing is there
    diverges.folder.mkdir(parents=True)
    write_settings(diverges.folder, diverges.config.flat())
    (diverges.folder / DIVERGED).write_text('{"epoch": 1, "step": 12}')
    for number in (0, 3, 4):
        finish(trials[number].runs[0], 50.0 + number)
        file = trials[number].runs[0].folder / RESULTS
        if number == 3:
            file.write_text(json.dumps(json.loads(file.read_text()) | {"idle": "it never modulates"}))
        search.score(trials[number])
    search.values(candidate, STARTUP)
    assert learned == [50.0, 0.0, 54.0]
    other = plan(tmp_path, "tpe", rule="all_heads")
    (candidate,) = other.candidates(["twoview"], ["uniform"])
    with pytest.raises(RunError, match=r"was proposed by a search with .*'rule': 'joint'.*; name another --output"):
        other.values(candidate, STARTUP)


def test_what_tpe_proposed_stays(tmp_path: Path) -> None:
    """A trial that failed at first, and has a score by now, changes no later trial that was made without it."""
    pytest.importorskip("optuna")

    def proposed(scored: range) -> list[dict[str, Any]]:
        search = plan(tmp_path, "tpe")
        (candidate,) = search.candidates(["twoview"], ["mmpareto"])
        for number in scored:
            search.scores[candidate, number] = (90.0 - number, None)
        return [search.values(candidate, number) for number in range(STARTUP + 2)]

    first = proposed(range(STARTUP - 1))
    assert proposed(range(STARTUP + 2)) == first
    file = tmp_path / "trials" / "twoview" / "mmpareto" / f"trial{STARTUP}" / "proposed.json"
    content = json.loads(file.read_text())
    outside = content["values"] | {"gamma": 99.0}
    for damaged, message in (
        ("nothing", "cannot be read"),
        (json.dumps(content | {"values": outside}), "would not propose"),
        (json.dumps(outside), "would not propose"),  # as earlier versions wrote them
        (json.dumps(content | {"values": 3}), "would not propose"),
        (json.dumps({"gamma": 2.0}), "would not propose"),
    ):
        file.write_text(damaged)
        with pytest.raises(RunError, match=rf"{message}.*remove the folder"):
            proposed(range(STARTUP))
    file.write_text(json.dumps(content["values"]))
    assert proposed(range(STARTUP)) == first


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA out of memory"), MemoryError()])
def test_a_run_that_cannot_be_evaluated_keeps_its_place_in_the_leaderboard(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        assert error is not None
        raise error

    if error is not None:
        monkeypatch.setattr("mmpareto.api.evaluation.evaluation_of", fail)
    monkeypatch.setattr(charts, "files", lambda specification: dict.fromkeys(("svg", "pdf", "png"), b""))
    search = plan(tmp_path, trials=1)
    trial = search.trial(*search.candidates(["twoview"], ["uniform"]), 0)
    for run in (*trial.runs, *search.finals([trial], recipe=False)):
        finish(run, 50.0)  # no best.pt is there
    flags = ["--methods", "uniform", "--datasets", "twoview", "--search", "random", "--trials", "1", "--seeds", "10"]
    assert experiment.main([*flags, "--budget", "2", "--gpu_ids", "cpu", "--output", str(tmp_path)]) == 0
    assert f"no measures of balance: {error or ''}" in capsys.readouterr().err
    assert (tmp_path / "trials.csv").exists()
    rows = leaderboard.read(tmp_path / "leaderboard.json")["results"]
    assert [(row["method"], row["seed"], row["scores"]["joint"]) for row in rows] == [("uniform", 10, 50.0)]


def test_a_report_leaves_out_flags_of_a_method_of_which_no_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "files", lambda specification: dict.fromkeys(("svg", "pdf", "png"), b""))
    monkeypatch.setattr("mmpareto.cli.running.run_all", lambda todo, launcher: dict.fromkeys(todo, Outcome("killed")))
    search = plan(tmp_path, trials=1)
    uniform, ogm = (search.trial(c, 0) for c in search.candidates(["twoview"], ["uniform", "ogm"]))
    for run in (*uniform.runs, *ogm.runs, *search.finals([uniform], recipe=False)):
        finish(run, 50.0)  # and no final run of ogm, which alone has an option alpha
    flags = ["--methods", "uniform", "ogm", "--search", "random", "--trials", "1", "--seeds", "10", "--budget", "2"]
    assert experiment.main([*flags, "--gpu_ids", "cpu", "--output", str(tmp_path)]) == 1
    assert (tmp_path / "report" / "index.html").exists()


def test_probes_are_of_the_reported_runs_alone(tmp_path: Path) -> None:
    search = plan(tmp_path, "random", "--probe")
    trial = search.trial(*search.candidates(["twoview"], ["uniform"]), 0)
    assert not trial.runs[0].config.run.probe
    assert all(run.config.run.probe for run in search.finals([trial], recipe=False))


def test_another_choice_runs_beside_the_one_before(tmp_path: Path) -> None:
    search = plan(tmp_path)
    (candidate,) = search.candidates(["twoview"], ["uniform"])
    names = [run.name for k in (3, 12) for run in search.finals([search.trial(candidate, k)], recipe=False)]
    assert names == ["tuned/twoview/uniform/trial3/seed10", "tuned/twoview/uniform/trial12/seed10"]


def test_an_architecture_that_a_method_brings_is_no_setting_that_all_share(tmp_path: Path) -> None:
    search = plan(tmp_path)
    configs = [search.trial(c, 0).runs[0].config for c in search.candidates(["twoview"], ["uniform", "transformer"])]
    uniform, transformer = (shared_settings(config, {}) for config in configs)
    assert uniform == {"architecture": "late_fusion", "architecture_options": {}} | transformer


def test_a_leaderboard_holds_what_fast_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line says `--fast` alone; what that is depends on the device."""
    monkeypatch.setattr(charts, "files", lambda specification: {"svg": b""})  # takes seconds
    search = plan(tmp_path, "random", "--fast", seeds=[10, 11], trials=1)
    trials = [search.trial(candidate, 0) for candidate in search.candidates(["twoview"], ["uniform", "mmpareto"])]

    def board(*precisions: str | None) -> dict[str, Any]:
        """Of runs in these precisions, in turn; one of two steps is captured."""
        finals = search.finals(trials, recipe=False)
        for number, run in enumerate([*finals, *(run for trial in trials for run in trial.runs)]):
            shutil.rmtree(run.folder, ignore_errors=True)
            switched_on = {"amp": precisions[number % len(precisions)], "cuda_graph": number % 2 == 0}
            config = run.config.flat() | switched_on | {"channels_last": True}
            finish(run, 50.0 + number, **config)
        assert write_leaderboard(search, trials, trials, finals)
        content: dict[str, Any] = json.loads((tmp_path / "leaderboard.json").read_text())
        return content["settings"]["twoview"]

    settings = board("bf16")
    assert (settings["amp"], settings["channels_last"], settings["tf32"]) == ("bf16", True, False)
    assert "cuda_graph" not in settings
    mixed = board("bf16", "bf16", None)
    assert mixed == settings | {"amp": "differs between the runs: bf16, none"}
    assert mixed == board(None, "bf16", "bf16")
    assert board("fp16", "bf16")["amp"] == "differs between the runs: bf16, fp16"


def test_tpe_starts_as_random_does_repeats_itself_and_finds_the_better_half(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def values(sampler: str, folder: str = "first") -> list[float]:
        search = plan(tmp_path / folder, sampler)
        candidate = Candidate("twoview", "uniform", {"learning_rate": Range(1e-3, 1.0), "kind": ["a", "b"]})
        rates = []
        for number in range(20):
            chosen = search.values(candidate, number)
            rates.append(float(chosen["learning_rate"]))
            distance = abs(np.log10(rates[-1]) + 2)  # best at 0.01
            search.scores[candidate, number] = (90 - 20 * distance, None)
        return rates

    random, tpe = values("random"), values("tpe")
    assert tpe[:STARTUP] == random[:STARTUP]
    assert tpe == values("tpe", "second")
    distances = [np.abs(np.log10(rates[10:]) + 2).mean() for rates in (tpe, random)]
    assert distances[0] < 0.6 * distances[1]


def test_flags_that_contradict_a_search(tmp_path: Path) -> None:
    flags = ("--methods", "uniform", "--search", "random", "--output", tmp_path)
    assert "give one of them" in refused(experiment.main, *flags, "--vary", "gamma=1,2", "--seeds", "1")
    assert "--seeds 0 is one of --trial_seeds as well" in refused(experiment.main, *flags)
    assert "--random_seed is set by the grid; use --seeds" in refused(
        experiment.main, *flags, "--seeds", "1", "--random_seed", "3"
    )
    without = ("--methods", "uniform", "--output", tmp_path)
    for flag in (
        ("--trials", "3"),
        ("--budget", "2"),
        ("--select", "all_heads"),
        ("--recipe",),
        ("--trial_seeds", "4"),
    ):
        assert f"{flag[0]} is for --search" in refused(experiment.main, *without, *flag)
    assert "unknown method 'magic'" in refused(experiment.main, *flags, "--methods", "magic", "--seeds", "1")
    assert not list(tmp_path.iterdir())


def write_vectors(root: Path) -> None:
    """A manifest of 60 pairs of six numbers in two classes."""
    generator = np.random.default_rng(0)
    lines = ["id,split,label,left,right"]
    for name in ("left", "right"):
        (root / name).mkdir(parents=True)
    for clip in range(60):
        split = ("train", "train", "val", "test")[clip % 4]
        for name in ("left", "right"):
            np.save(root / name / f"{clip}.npy", generator.normal(clip % 2, 2, 6).astype(np.float32))
        lines.append(f"c{clip},{split},{'ab'[clip % 2]},left/{clip}.npy,right/{clip}.npy")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")


def test_a_run_that_diverges_says_where_until_it_is_trained_with_other_settings(tmp_path: Path) -> None:
    write_vectors(tmp_path / "data")
    passed = ["--data_root", str(tmp_path / "data"), "--batch_size", "8", "--epochs", "2", "--num_workers", "0"]

    def planned(rate: str) -> Run:
        return make_run("manifest", "uniform", [*passed, "--learning_rate", rate], {}, 0, ["run"], tmp_path, tmp_path)

    wild, tame = planned("1e30"), planned("0.01")
    assert diverged(wild) is None
    done = inside(train.main, *wild.argv, "--gpu_ids", "cpu")
    assert done.returncode == 2
    place = re.search(r"not finite in step (\d+) \(epoch 1\)", done.stderr)
    assert place is not None
    assert diverged(wild) == f"step {place[1]}, epoch 1"
    assert diverged(tame) is None
    trials = [
        Trial(Candidate("manifest", "uniform", {}), number, {}, (run,)) for number, run in enumerate((wild, tame))
    ]
    assert counts(trials, "diverged") == {"manifest data": {"uniform": 1}}
    done = inside(train.main, *tame.argv, "--gpu_ids", "cpu", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert not (tame.folder / "diverged.json").exists()


def test_a_trial_that_diverged_is_a_result_and_another_run_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = plan(tmp_path, trial_seeds=[0, 8])
    (candidate,) = search.candidates(["twoview"], ["uniform"])
    trial = search.trial(candidate, 3)
    finishes, diverges = trial.runs
    diverges.folder.mkdir(parents=True)
    write_settings(diverges.folder, diverges.config.flat())
    launcher = Local(Path(__file__).with_name("stand_in.py"), 2, 2)
    assert perform(trial.runs, launcher, "here", tmp_path, trials=True) == {}
    write_settings(finishes.folder, finishes.config.flat())
    printed = capsys.readouterr().out
    assert f"{diverges.name}: diverged (step 12, epoch 1)\n" in printed
    assert "FAILED" not in printed
    assert trial.diverged == "step 12, epoch 1"
    assert search.score(trial) is None
    assert perform(trial.runs, launcher, "here", tmp_path, trials=True) == {}
    assert "1 finished, 1 diverged, 0 to resume, 0 to begin\n" in capsys.readouterr().out
    assert (diverges.folder / "train.log").read_text().count("$ ") == 1
    failures = perform(trial.runs, launcher, "here", tmp_path)
    assert list(failures) == [diverges]
    assert (diverges.folder / "train.log").read_text().count("$ ") == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_search_that_was_killed_goes_on_and_ends_with_the_same_tables(tmp_path: Path) -> None:
    write_vectors(tmp_path / "data")
    flags = [
        *("--methods", "uniform", "mmpareto", "--datasets", "manifest", "--data_root", str(tmp_path / "data")),
        *("--search", "random", "--trials", "2", "--seeds", "10", "11", "--recipe", "--jobs", "2", "--gpu_ids", "cpu"),
        *("--epochs", "3", "--batch_size", "8", "--num_workers", "0", "--output"),
    ]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    done = inside(experiment.main, *flags, whole)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [sys.executable, ROOT / "code" / "experiment.py", *flags, parted],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    while not list(parted.glob("trials/*/*/*/*/results.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = inside(experiment.main, *flags, parted)
    assert done.returncode == 0, done.stderr

    def content(folder: Path) -> dict[str, Any]:
        board = json.loads((folder / "leaderboard.json").read_text())
        return {"rows": [row | {"seconds": 0} for row in board["results"]], "protocol": board["protocol"]}

    assert content(parted) == content(whole)
    assert (parted / "trials.csv").read_text() == (whole / "trials.csv").read_text()
    rows = content(whole)["rows"]
    assert [(row["method"], row["tuned"], row["seed"]) for row in rows] == [
        (method, tuned, seed) for tuned in (True, False) for seed in (10, 11) for method in ("uniform", "mmpareto")
    ]
    table = (whole / "trials.csv").read_text().splitlines()
    assert table[0] == "dataset,method,trial,values,accuracy,loss,chosen,diverged,idle"
    trials = [line.split(",") for line in table[1:]]
    for method in ("uniform", "mmpareto"):
        mine = [(float(t[4]), -float(t[5]), t[6]) for t in trials if t[1] == method]
        assert [chosen for *_, chosen in sorted(mine)] == ["0", "1"]  # the best by accuracy, then loss
    assert (whole / "report" / "index.html").exists()

    flags[flags.index("--trials") + 1] = "6"
    done = inside(experiment.main, *flags, whole)
    assert done.returncode == 0, done.stderr
    runs = {path.parent.name for path in whole.glob("tuned/*/*/*/seed10")}
    assert len(runs) > 1  # another trial was chosen for a method, which has both now
    rows = content(whole)["rows"]
    assert len(rows) == 8  # of the new choice alone
    assert content(whole)["protocol"]["trials"] == 6
