"""Tables and evaluation_<split>.json of evaluate.py for many classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpareto.cli.evaluate import evaluation_json
from mmpareto.json_files import read_object
from mmpareto.reporting.evaluation_tables import class_table, missing_curves


@pytest.mark.parametrize(("count", "shown"), [(50, 50), (51, 50), (1000, 50)])
def test_of_many_classes_those_with_the_lowest_f1_are_shown(count: int, shown: int) -> None:
    rows = [
        {"class": f"c{index:04d}", "samples": 2, "recall": 0.0, "precision": None, "f1": 100.0 - index / 20}
        for index in range(count)
    ]
    lines = class_table({"split": "test", "joint": {"per_class": rows}}).splitlines()
    names = [line.split()[0] for line in lines if line.startswith("c0")]
    assert sorted(names) == [f"c{index:04d}" for index in range(count - shown, count)]
    note = f"the 50 classes with the lowest F1 of {count}; all are in evaluation_test.json"
    assert (lines[-1] == note) == (count > shown)


def test_curves_of_missing_modalities_begin_with_all_of_them() -> None:
    subsets = [{"present": ["a"], "accuracy": 40.0}, {"present": ["a", "b"], "accuracy": 90.0}]
    rates = [
        {"modality": "b", "rate": 1.0, "accuracy": 40.0},
        {"modality": "b", "rate": 0.5, "accuracy": 66.0},
        {"modality": "any", "rate": 0.5, "accuracy": 55.0},
    ]
    assert missing_curves({"subsets": subsets, "missing_rates": rates}) == {
        "b": {0.0: 90.0, 0.5: 66.0, 1.0: 40.0},
        "any": {0.0: 90.0, 0.5: 55.0},
    }


@pytest.mark.slow
def test_confusion_matrices_of_1000_classes_and_nine_heads_can_be_read_back(tmp_path: Path) -> None:
    evaluation = {f"head {head}": [[0] * 1000] * 1000 for head in range(9)}
    file = tmp_path / "evaluation_test.json"
    file.write_bytes(evaluation_json(evaluation))
    assert read_object(file) == evaluation
