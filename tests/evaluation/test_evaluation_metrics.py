"""Metrics of a head against scikit-learn and figures worked out by hand; classes that are absent."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from mmpareto.evaluation.metrics import BINS, head_metrics, reliability

NAMES = list("abcdef")


def scored(present: list[int], samples: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, 6] that know something, and labels of the given classes alone."""
    generator = torch.Generator().manual_seed(len(present))
    label = torch.tensor(present)[torch.randint(len(present), (samples,), generator=generator)]
    logits = torch.randn(samples, len(NAMES), generator=generator)
    logits[torch.arange(samples), label] += 1.0
    return logits, label


@pytest.mark.parametrize("present", [[0, 1, 2, 3, 4, 5], [0, 2, 5]])
def test_metrics_are_those_of_scikit_learn_over_the_classes_that_are_there(present: list[int]) -> None:
    logits, label = scored(present)
    logits[:, 4] -= 20  # never predicted
    metrics = head_metrics(logits, label, NAMES)
    y, guess, probability = label.numpy(), logits.argmax(1).numpy(), logits.double().softmax(1).numpy()
    assert metrics["accuracy"] == 100 * sk.accuracy_score(y, guess)
    assert metrics["confusion"] == sk.confusion_matrix(y, guess, labels=range(6)).tolist()
    named = {"labels": present, "zero_division": 0}
    assert metrics["macro_f1"] == pytest.approx(100 * sk.f1_score(y, guess, average="macro", **named), abs=1e-4)
    one_against_rest = [(y == c, probability[:, c]) for c in present]
    precision = np.mean([sk.average_precision_score(*pair) for pair in one_against_rest])
    assert metrics["mean_average_precision"] == pytest.approx(100 * precision, abs=1e-4)
    area = np.mean([sk.roc_auc_score(*pair) for pair in one_against_rest])
    assert metrics["auroc"] == pytest.approx(100 * area, abs=1e-4)

    rows = metrics["per_class"]
    assert [row["class"] for row in rows] == NAMES
    assert [row["samples"] for row in rows] == np.bincount(y, minlength=6).tolist()
    expected = sk.precision_recall_fscore_support(y, guess, labels=range(6), zero_division=0)
    for column, key in enumerate(("precision", "recall", "f1")):
        for c, row in enumerate(rows):
            undefined = c == 4 if key == "precision" else c not in present
            assert (row[key] is None) == undefined
            assert undefined or row[key] == pytest.approx(100 * expected[column][c], abs=1e-4)


def test_a_split_of_one_class_has_no_roc_curve_and_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = head_metrics(*scored([3]), NAMES)
    assert metrics["auroc"] is None
    assert metrics["mean_average_precision"] == 100


def test_calibration_by_hand() -> None:
    """Two classes: confidences 0.9, 0.9 (one right), 0.55 (right) and 1 (wrong)."""
    confidence = torch.tensor([0.9, 0.9, 0.55], dtype=torch.float64)
    logits = torch.stack([torch.log(confidence / (1 - confidence)), torch.zeros(3, dtype=torch.float64)], 1)
    logits = torch.cat([logits, torch.tensor([[1000.0, 0.0]], dtype=torch.float64)])
    label = torch.tensor([0, 1, 0, 1])
    bins = reliability(logits, label)
    filled = {index: part for index, part in enumerate(bins) if part["samples"]}
    assert {index: part["samples"] for index, part in filled.items()} == {8: 1, 13: 2, 14: 1}  # of 15: 0.53, 0.87, 0.93
    assert [part["accuracy"] for part in filled.values()] == [100, 50, 0]
    assert [part["confidence"] for part in filled.values()] == pytest.approx([55, 90, 100], abs=1e-4)
    assert (bins[8]["low"], bins[8]["high"]) == (8 / 15, 9 / 15)
    assert bins[0]["accuracy"] is None
    error = 100 * (1 * 0.45 + 2 * 0.4 + 1 * 1.0) / 4
    assert head_metrics(logits, label, ["a", "b"])["calibration_error"] == pytest.approx(error, abs=1e-3)


def test_a_bin_holds_its_lower_bound() -> None:
    bins = reliability(torch.zeros(4, 3), torch.tensor([0, 1, 2, 1]))  # confidence 1/3 = 5/15
    assert [index for index, part in enumerate(bins) if part["samples"]] == [5]
    assert bins[5]["accuracy"] == 25


def test_the_drawn_bins_are_those_of_the_calibration_error() -> None:
    logits, label = scored([0, 1, 2, 3, 4, 5])
    metrics = head_metrics(100 * logits, label, NAMES)  # some confidences are 1
    bins = [part for part in metrics["reliability"] if part["samples"]]
    assert len(metrics["reliability"]) == BINS
    error = sum(part["samples"] * abs(part["confidence"] - part["accuracy"]) for part in bins) / len(label)
    assert metrics["calibration_error"] == pytest.approx(error, abs=1e-3)


def test_the_surest_samples_keep_their_order() -> None:
    """Probabilities that float32 rounds to 1 still rank: a perfect ranking has an area of 100."""
    margin = torch.tensor([18.0, 19.0, 20.0, 21.0])
    logits = torch.stack([margin, torch.zeros(4)], 1)
    metrics = head_metrics(logits, torch.tensor([1, 1, 0, 0]), ["a", "b"])
    assert metrics["auroc"] == 100
    assert metrics["mean_average_precision"] == pytest.approx(100)
