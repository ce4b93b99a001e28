"""Train, evaluate and compare from Python: the numbers of the commands, as tables."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from entries.command import run
from matplotlib.figure import Figure
from PIL import Image

import mmpareto
from mmpareto.arguments import parse, parse_settings
from mmpareto.errors import UsageError, UserError
from mmpareto.reporting import figures
from mmpareto.reporting.rendering import plt
from mmpareto.runs import RunError
from mmpareto.training import run as training
from mmpareto.training.signals import Interrupted

SMALL = {"dataset": "digits", "epochs": 1, "gpu_ids": "cpu", "batch_size": 256}


@pytest.fixture(autouse=True, scope="module")
def _no_figures() -> Iterator[None]:
    """Small pictures in the place of figures, which take as long as an epoch."""

    def save(figure: Figure, path: Path) -> None:
        plt.close(figure)
        Image.new("RGB", (8, 8)).save(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", save)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[mmpareto.TrainedRun]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        mmpareto.train({"data": SMALL}, method=method, random_seed=seed, ckpt_path=folder / method / str(seed))
        for method in ("uniform", "mmpareto")
        for seed in (0, 1)
    ]


def test_a_run_has_tables(trained: list[mmpareto.TrainedRun]) -> None:
    run = trained[2]
    results = json.loads((run.path / "results.json").read_text())
    assert run.results == results
    assert run.table.loc["gray", "test"] == results["test"]["unimodal"]["gray"]["accuracy"]
    assert run.table.loc["joint", "val"] == results["val"]["joint"]["accuracy"]
    assert list(run.history.index) == [1]
    assert run.history["val_accuracy_joint"].dtype == float
    assert set(run.gradients["encoder"]) == {"gray", "colour"}
    assert run.gradients["cosine"].between(-1, 1).all()
    assert "joint" in repr(run)
    assert "<table" in (run._repr_html_() or "")
    none = mmpareto.TrainedRun(run.path / "none")
    assert "not finished" in repr(none)
    with pytest.raises(RunError, match="no epoch is finished"):
        _ = none.history


def test_an_evaluation_has_the_scores_of_the_run(trained: list[mmpareto.TrainedRun]) -> None:
    run = trained[0]
    before = {path.name for path in run.path.iterdir()}
    evaluation = run.evaluate(device="cpu", missing_rates=())
    assert evaluation.table.loc["joint", "accuracy"] == run.table.loc["joint", "test"]
    assert evaluation.confusion.to_numpy().sum() == 400
    assert evaluation.per_class["samples"].sum() == 400
    assert evaluation.subsets.loc["gray + colour", "accuracy"] == run.table.loc["joint", "test"]
    assert set(evaluation.contributions.index) == {"gray", "colour"}
    assert "400 samples of test" in repr(evaluation)
    assert "<table" in evaluation._repr_html_()
    assert evaluation.notes == []
    assert run.evaluate(device="cpu", missing_rates=(), batch_size=7, num_workers=0).table.equals(evaluation.table)
    for rate in (50, -0.1, float("nan")):
        with pytest.raises(UserError, match="missing_rates must be fractions"):
            run.evaluate(device="cpu", missing_rates=[rate])
    assert {path.name for path in run.path.iterdir()} == before
    assert run.load("cpu").classes == evaluation.classes


def test_a_comparison_has_means_tests_and_a_verdict(trained: list[mmpareto.TrainedRun], tmp_path: Path) -> None:
    comparison = mmpareto.compare(trained)
    assert len(comparison.runs) == 4
    means = comparison.runs.groupby("method")["joint"].mean()
    for method, mean in means.items():
        assert comparison.table.loc[("digits", method), "joint"] == pytest.approx(mean)
    difference = means["mmpareto"] - means["uniform"]
    assert comparison.table.loc[("digits", "mmpareto"), "difference"] == pytest.approx(difference)
    assert comparison.table.loc[("digits", "uniform"), "seeds"] == 2
    assert "highest joint mean" in comparison.verdicts["digits"]
    assert comparison.verdicts["digits"] in repr(comparison)
    by_folder = mmpareto.compare(trained[0].path.parents[1])
    assert by_folder.table.equals(comparison.table)
    with pytest.raises(RunError):
        mmpareto.compare(tmp_path)


def test_settings_are_those_of_the_flags(tmp_path: Path) -> None:
    flags = ["--method", "mmpareto", "--gamma", "2.0", "--encoder", "gray=cnn", "--fast", "--variance", "0.5"]
    flags += ["--dataset", "digits", "--missing", "gray=0.5", "--clip_grad", "1"]
    settings = {
        "method": "mmpareto", "gamma": 2.0, "encoder": {"gray": "cnn"}, "fast": True, "variance": 0.5,
        "dataset": "digits", "missing": {"gray": 0.5}, "clip_grad": 1, "model": None,
    }  # fmt: skip
    assert parse_settings(settings, tmp_path) == parse(flags, tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"optim": {"epochs": 3}, "method": {"method": "uniform"}}))
    config = parse_settings({"epochs": 4}, tmp_path, file)
    assert (config.optim.epochs, config.method.method) == (4, "uniform")
    with pytest.raises(UsageError, match=r"unknown flag --epoch for the dataset .*; did you mean --epochs"):
        parse_settings({"epoch": 3}, tmp_path)


def test_a_finished_run_is_not_overwritten_unasked(trained: list[mmpareto.TrainedRun]) -> None:
    with pytest.raises(RunError, match="holds a finished run"):
        mmpareto.train(SMALL, method="uniform", ckpt_path=trained[0].path)
    resumed = mmpareto.train(SMALL, method="uniform", ckpt_path=trained[0].path, resume=True)
    assert resumed.table.equals(trained[0].table)


def test_other_threads_train_too_and_interruptions_are_keyboard_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[object] = []

    def interrupted(*_: object) -> None:
        raise Interrupted(2)

    monkeypatch.setattr("mmpareto.api.training.run_training", interrupted)

    def work() -> None:
        try:
            mmpareto.train(SMALL, ckpt_path=tmp_path / "run")
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    assert [type(error) for error in caught] == [KeyboardInterrupt, KeyboardInterrupt]
    assert "resume=True continues the run" in str(caught[0])
    assert training.run_training is not interrupted


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, mmpareto; print({'torch', 'numpy', 'pandas'} & set(sys.modules), 'train' in dir(mmpareto))"
    done = run(sys.executable, "-c", code, PYTHONPATH=str(Path(mmpareto.__file__).parents[1]))
    assert done.stdout == "set() True\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        mmpareto.lode  # noqa: B018


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Python has processes that load data import the script, which would train again in each of them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import mmpareto\n"
        "print('begins')\n"
        "options = dict(dataset='digits', epochs=1, batch_size=256, num_workers=1, figures=False, gpu_ids='cpu')\n"
        f"print(mmpareto.evaluate(mmpareto.train(**options, ckpt_path={str(tmp_path / 'run')!r}).path).table)\n"
        "print(__file__, __spec__)\n"
    )
    done = run(sys.executable, script, PYTHONPATH=str(Path(mmpareto.__file__).parents[1]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begins") == 1
    assert done.stdout.rstrip().endswith(f"{script} None")
