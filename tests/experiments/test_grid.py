"""The runs that a grid holds, and what is refused before any is run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmpareto.errors import DatasetError, UsageError
from mmpareto.experiments.grid import Grid, check_runs, expand, variation
from mmpareto.runs import RESULTS

OUT = Path("/out")


def grid(
    methods: Sequence[str],
    *passed: str,
    vary: Sequence[str] = (),
    names: Sequence[str] = ("digits",),
    seeds: Sequence[int] = (0,),
) -> Grid:
    return expand(methods, names, seeds, [variation(text) for text in vary], passed, OUT, Path("/root"))


def test_data_may_be_gone_once_all_runs_are_finished(tmp_path: Path) -> None:
    runs = expand(["uniform"], ["cremad"], [0, 1], [], [], tmp_path, tmp_path).runs
    for run in runs:
        with pytest.raises(DatasetError, match=r"cremad: the folder .* is missing"):
            check_runs(runs)
        run.folder.mkdir(parents=True)
        (run.folder / RESULTS).touch()
    check_runs(runs)


def test_every_combination_once_one_seed_of_everything_first() -> None:
    expanded = grid(["mmpareto", "pareto", "pareto"], "--epochs", "3", names=["digits", "CG-MNIST"], seeds=[0, 2, 0])
    assert [run.name for run in expanded.runs] == [
        f"{dataset}/{method}/seed{seed}"
        for seed in (0, 2)
        for dataset in ("digits", "cgmnist")
        for method in ("mmpareto", "pareto")
    ]
    last = expanded.runs[-1]
    assert last.folder == OUT / "cgmnist" / "pareto" / "seed2"
    assert (last.config.data.dataset, last.config.method.method, last.config.run.random_seed) == (
        "cgmnist",
        "pareto",
        2,
    )
    assert last.config.run.ckpt_path == str(last.folder)
    assert {run.config.optim.epochs for run in expanded.runs} == {3}
    assert expanded.notes == []


def test_varied_flags_are_crossed_and_left_out_where_they_mean_nothing() -> None:
    expanded = grid(["mmpareto", "uniform"], vary=["gamma=1,1.5", "rescale=encoder", "batch_size=8,16"])
    assert [run.name for run in expanded.runs] == [
        *(
            f"digits/mmpareto/gamma={gamma}/rescale=encoder/batch_size={size}/seed0"
            for gamma in ("1", "1.5")
            for size in (8, 16)
        ),
        "digits/uniform/batch_size=8/seed0",
        "digits/uniform/batch_size=16/seed0",
    ]
    options = [run.config.method.method_options for run in expanded.runs[2:5]]
    assert [(chosen.get("gamma"), chosen.get("rescale")) for chosen in options] == [
        (1.5, "encoder"),
        (1.5, "encoder"),
        (None, None),
    ]
    assert expanded.notes == [
        f"{flag} means nothing to uniform on digits: run once without it" for flag in ("gamma", "rescale")
    ]


def test_options_of_methods_are_varied_by_their_names() -> None:
    expanded = grid(["ogm", "pmr", "uniform"], vary=["alpha=0.4,1.6"], seeds=[1])
    assert [run.name for run in expanded.runs] == [
        *(f"digits/{method}/alpha={alpha}/seed1" for method in ("ogm", "pmr") for alpha in ("0.4", "1.6")),
        "digits/uniform/seed1",
    ]
    assert [run.config.method.method_options["alpha"] for run in expanded.runs[:4]] == [0.4, 1.6, 0.4, 1.6]
    assert expanded.notes == ["alpha means nothing to uniform on digits: run once without it"]
    # beside other options, and where a flag has the same name
    expanded = grid(["pmr"], "--method_options", "mu=0.5", vary=["method_momentum=0,0.3", "momentum=0.8"])
    assert [(run.config.optim.momentum, run.config.method.method_options["momentum"]) for run in expanded.runs] == [
        (0.8, 0),
        (0.8, 0.3),
    ]
    assert {run.config.method.method_options["mu"] for run in expanded.runs} == {0.5}
    expanded = grid(["mslr"], vary=["factors=gray:0.9,colour:1.1;gray:1,colour:1"])
    assert [run.config.method.method_options["factors"] for run in expanded.runs] == [
        "gray:0.9,colour:1.1",
        "gray:1,colour:1",
    ]
    with pytest.raises(UsageError, match="alpha is given twice"):
        grid(["pmr"], "--method_options", "alpha=1", vary=["alpha=2"])


def test_flags_that_need_each_other_are_varied_together() -> None:
    expanded = grid(["uniform"], vary=["lr_decay_ratio=0.1,0.5", "lr_decay_step=7"])
    assert [(run.config.optim.lr_decay_ratio, run.config.optim.lr_decay_step) for run in expanded.runs] == [
        (0.1, 7),
        (0.5, 7),
    ]


def test_a_varied_flag_that_is_refused_has_its_reason() -> None:
    with pytest.raises(
        UsageError, match=r"together with the other flags \(--lr_decay_step belongs to --lr_schedule step"
    ):
        grid(["uniform"], vary=["lr_decay_step=5,10", "lr_schedule=constant,cosine"])
    expanded = grid(["uniform"], vary=["momentum=0.5"], names=["twoview", "utd-mhad"])
    assert expanded.notes == [
        "momentum is left out (--momentum is SGD's; Adam has none [uniform on utd-mhad]): run once without it"
    ]
    with pytest.raises(UsageError, match=r"alpha.*expected a .*\[ogm_ge on digits\]"):
        grid(["uniform", "ogm_ge"], vary=["alpha=abc"])


def test_values_of_several_words_or_with_commas() -> None:
    expanded = grid(["mmpareto"], vary=["encoder=gray=cnn colour=pmr,gray=pmr"])
    assert [run.config.model.encoder for run in expanded.runs] == [{"gray": "cnn", "colour": "pmr"}, {"gray": "pmr"}]
    assert [run.name for run in expanded.runs] == [
        "digits/mmpareto/encoder=gray=cnn_colour=pmr/seed0",
        "digits/mmpareto/encoder=gray=pmr/seed0",
    ]
    expanded = grid(["mmpareto"], names=["modelnet40"], vary=["views=0;0,6"])
    assert [run.config.data.dataset_options["views"] for run in expanded.runs] == [(0,), (0, 6)]


def test_a_method_of_ones_own_has_a_plain_folder() -> None:
    expanded = grid(["mmpareto.integration.pareto:Pareto"])
    assert expanded.runs[0].name == "digits/mmpareto.integration.pareto.Pareto/seed0"


@pytest.mark.parametrize(
    ("passed", "vary", "message"),
    [
        (["--method", "pareto"], [], "--method is set by the grid; use --methods"),
        (["--random_seed=3"], [], "use --seeds"),
        (["--resume"], [], "the same command again"),
        ([], ["ckpt_path=a,b"], "use --output"),
        (["--learningrate", "1"], [], "did you mean --learning_rate"),
        (["--epochs", "0"], [], "--epochs: expected a whole number above zero, found '0'"),
        (["--gamma", "2"], [], "--gamma means nothing to the method uniform"),
        ([], ["gamma=1,-1"], "--gamma: expected a number above zero, found '-1'"),
        ([], ["gamme=1"], "no method here has the option gamme, and train.py has no such flag; did you mean gamma?"),
        ([], ["method_options=rescale=layer"], "expected one of tensor, encoder, found 'layer' [mmpareto on digits]"),
        ([], ["alpha=2"], "--vary alpha: no method here has the option alpha"),
        ([], ["method_alpha=2"], "no method here has the option method_alpha"),
        ([], ["method_gamma=2,2.0"], "are the same run"),
        ([], ["model=cnn,vit"], "unknown encoder 'vit'"),
        (["--gamma", "1"], ["gamma=2"], "give it once"),
        ([], ["gamma=1", "gamma=2"], "give it once"),
        ([], ["gamma=1,1.0"], "gamma=1/seed0 and digits/mmpareto/gamma=1.0/seed0 are the same run"),
        ([], ["encoder=gray=mine:A/b,gray=mine:A_b"], "would share the folder"),
    ],
)
def test_refused(passed: list[str], vary: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        grid(["mmpareto", "uniform"], *passed, vary=vary)
    assert message in str(error.value)


@pytest.mark.parametrize("value", ["/elsewhere/a", "../../a", "..", "/"])
def test_values_that_are_paths_stay_below_the_output_folder(value: str) -> None:
    for run in grid(["uniform"], names=["manifest"], vary=[f"data_root={value},b"]).runs:
        manifest, uniform, named, seed = run.name.split("/")
        assert (manifest, uniform, seed) == ("manifest", "uniform", "seed0")
        assert named.startswith("data_root=")


@pytest.mark.parametrize("value", ["x" * 300, "é" * 125])
def test_values_that_are_too_long_for_a_folder_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"the value of data_root=.* is too long for the name of a folder"):
        grid(["uniform"], names=["manifest"], vary=[f"data_root={value},b"])


def test_unknown_methods_and_datasets_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown method 'magic'"):
        grid(["mmpareto", "magic"])
    with pytest.raises(UsageError, match="unknown dataset 'cifar'"):
        grid(["mmpareto"], names=["digits", "cifar"])


@pytest.mark.parametrize("text", ["gamma", "gamma=", "=1", "gamma=1,,2", "--gamma=1"])
def test_what_is_no_variation(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected FLAG=VALUE,VALUE"):
        variation(text)
