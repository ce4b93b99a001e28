"""What runs wrote, averaged over runs: by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting.synthetic import make_run

from mmpareto.reporting.charts import averaged
from mmpareto.reporting.finished import find
from mmpareto.reporting.histories import History, history
from mmpareto.runs import RunError


def read(folder: Path) -> History:
    return history(find([folder])[0][0])


def test_mean_over_runs_not_over_values() -> None:
    # of two bins: run means 1.5 and 4 in the first, only the first run in the second; NaN is left out
    lines = [(0, 0.0, 1.0), (0, 1.0, 2.0), (0, 2.0, 10.0), (0, 3.0, np.nan), (1, 1.0, 4.0)]
    values = pd.DataFrame(lines, columns=["run", "x", "value"]).assign(panel="gray", place=0)
    means = averaged(values, most=2)[1].loc[("gray", 0)]
    assert means["x"].tolist() == [0.75, 2.0]
    assert means["mean"].tolist() == [2.75, 10.0]
    assert means["deviation"].iloc[0] == pytest.approx(np.std([1.5, 4.0], ddof=1))
    assert np.isnan(means["deviation"].iloc[1])


def test_bins_of_steps() -> None:
    values = pd.DataFrame({"x": np.arange(1000.0), "value": 1.0, "panel": "gray", "place": 0, "run": 0})
    assert averaged(values[:3], most=200)[1]["x"].tolist() == [0.0, 1.0, 2.0]
    many = averaged(values, most=200)[1]["x"]
    assert len(many) == 200
    assert (many.iloc[0], many.iloc[-1]) == (2.0, 997.0)


def test_steps_and_epochs(tmp_path: Path) -> None:
    cosines = {"gray": [0.5, -0.5, 0.25, 0.1], "colour": [-1.0, 1.0, 0.0, 0.5]}
    run = read(make_run(tmp_path / "run", epochs=2, steps=2, joint=50.0, cosines=cosines))
    assert run.epochs["epoch"].tolist() == [1.0, 2.0]
    assert run.epochs["val_accuracy_joint"].tolist() == [25.0, 50.0]
    gray, colour = (run.steps[run.steps["encoder"] == name] for name in ("gray", "colour"))
    assert gray["cosine"].tolist() == cosines["gray"]
    assert colour["conflict"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert colour["epoch"].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert run.layers.empty
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
    layers = read(folder).layers
    assert layers[["encoder", "layer"]].to_numpy().tolist() == [["gray", "conv1.weight"], ["gray", "conv2.weight"]]
    assert layers["rate"].tolist() == [pytest.approx(25 / 40), 0.0]


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
        ("metrics.csv", "epoch,val_accuracy_joint,val_accuracy_gray,val_accuracy_colour\n1,2,3,4\n", "has 1 epoch,"),
        ("gradients.csv", "epoch,step,encoder,cosine\n", "has no column"),
        ("gradients.csv", "{header}\n1,0,gray\n", "column cosine holds what is no number"),
        ("gradients.csv", "{header}\n1,0,gray,0.5,1,1,1,0,7\n", "more cells than the header"),
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


def test_accuracies_with_modalities_missing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=3)
    evaluation = {
        "finished": True,
        "selected_epoch": 3,
        "joint": {"confusion": [[3]], "per_class": [{"class": "cat"}]},
        "subsets": [{"present": ["gray"], "accuracy": 20.0}, {"present": ["gray", "colour"], "accuracy": 90.0}],
        "missing_rates": [
            {"modality": "gray", "rate": 0.5, "accuracy": 60.0},
            {"modality": "any", "rate": 0.5, "accuracy": 40.0},
        ],
    }
    path = folder / "evaluation_test.json"
    path.write_text(json.dumps(evaluation))
    assert read(folder).missing.to_numpy().tolist() == [
        ["gray", 0.0, 90.0],
        ["any", 0.0, 90.0],
        ["gray", 50.0, 60.0],
        ["any", 50.0, 40.0],
    ]
    path.write_text(json.dumps(evaluation | {"selected_epoch": 2}))
    assert read(folder).missing.empty
    for rows in ([{"modality": "gray", "rate": 5, "accuracy": 60.0}], [{"rate": 0.5}], 3):
        path.write_text(json.dumps(evaluation | {"missing_rates": rows}))
        with pytest.raises(RunError, match=r"evaluation_test\.json.*run evaluate\.py again"):
            read(folder)
