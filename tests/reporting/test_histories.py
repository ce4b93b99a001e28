"""What runs wrote, averaged over runs: by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reporting.synthetic import make_run

from mmpareto.reporting.finished import find
from mmpareto.reporting.histories import History, across, history, step_edges
from mmpareto.runs import RunError


def read(folder: Path) -> History:
    return history(find([folder])[0][0])


def test_mean_over_runs_not_over_values() -> None:
    # first bin: run means 1.5 and 4; second: only the first run; third: none
    first = (np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 10.0, np.nan]))
    second = (np.array([1.0]), np.array([4.0]))
    position, mean, deviation = across([first, second], np.array([-0.5, 1.5, 3.5, 5.5]))
    assert position.tolist() == pytest.approx([2 / 3, 2.0])
    assert mean.tolist() == [2.75, 10.0]
    assert deviation[0] == pytest.approx(np.std([1.5, 4.0], ddof=1))
    assert np.isnan(deviation[1])


def test_bins_of_steps() -> None:
    assert step_edges([np.array([0.0, 1.0, 2.0])]).tolist() == [-0.5, 0.5, 1.5, 2.5]
    many = step_edges([np.arange(1000.0)])
    assert len(many) == 201
    assert (many[0], many[-1]) == (-0.5, 999.5)


def test_steps_and_epochs(tmp_path: Path) -> None:
    cosines = {"gray": [0.5, -0.5, 0.25, 0.1], "colour": [-1.0, 1.0, 0.0, 0.5]}
    run = read(make_run(tmp_path / "run", epochs=2, steps=2, joint=50.0, cosines=cosines))
    assert run.epochs["epoch"].tolist() == [1.0, 2.0]
    assert run.epochs["val_accuracy_joint"].tolist() == [25.0, 50.0]
    assert run.steps["gray"]["cosine"].tolist() == cosines["gray"]
    assert run.steps["colour"]["conflict"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert run.steps["colour"]["epoch"].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert run.layers == {}
    assert run.confusion is None


def test_conflict_of_layers_is_weighted_by_steps(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "layers.csv").write_text(
        "epoch,encoder,layer,steps,conflict_rate,mean_cosine\n"
        "1,gray,conv1.weight,30,0.5,0.1\n"
        "1,gray,conv2.weight,30,0.0,0.1\n"
        "2,gray,conv1.weight,10,1.0,-0.1\n"
        "2,gray,conv2.weight,0,nan,nan\n"
    )
    assert read(folder).layers == {"gray": {"conv1.weight": pytest.approx(25 / 40), "conv2.weight": 0.0}}


def test_confusion_of_the_selected_model(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=3)
    evaluation = {
        "finished": True,
        "selected_epoch": 3,
        "joint": {"confusion": [[3, 1], [0, 4]], "per_class": [{"class": "cat"}, {"class": "dog"}]},
    }
    path = folder / "evaluation_test.json"
    path.write_text(json.dumps(evaluation))
    confusion = read(folder).confusion
    assert confusion is not None
    assert confusion.counts.tolist() == [[3.0, 1.0], [0.0, 4.0]]
    assert confusion.classes == ("cat", "dog")
    for stale in ({"finished": False}, {"selected_epoch": 2}):
        path.write_text(json.dumps(evaluation | stale))
        assert read(folder).confusion is None
    for joint, said in (
        ({"per_class": []}, "has no confusion matrix"),
        ({"confusion": [[1, 2]], "per_class": [{"class": "cat"}]}, "of shape"),
    ):
        path.write_text(json.dumps(evaluation | {"joint": joint}))
        with pytest.raises(RunError, match=said):
            read(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", "epoch\n1\n", "has no column 'val_accuracy_joint'"),
        ("metrics.csv", "", "cannot be read as a table"),
        ("metrics.csv", "epoch,val_accuracy_joint,val_accuracy_gray,val_accuracy_colour\n1,2,3,4\n", "has 1 epochs"),
        ("gradients.csv", "epoch,step,encoder,cosine\n", "has no column"),
        ("gradients.csv", "{header}\n1,0,gray\n", "line 2 has not as many cells"),
        ("gradients.csv", "{header}\n1,0,gray,x,1,1,1,0\n", "column cosine holds what is no number"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = make_run(tmp_path / "run")
    header = (folder / "gradients.csv").read_text().splitlines()[0]
    (folder / name).write_text(content.replace("{header}", header))
    with pytest.raises(RunError, match=said) as caught:
        read(folder)
    assert str(folder / name) in str(caught.value)
