"""The linear probe against scikit-learn by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmpareto.evaluation import EvaluationError, probe
from mmpareto.evaluation.collected import Collected
from mmpareto.evaluation.probe import GRID, linear_probe, probes
from mmpareto.reporting.evaluation_tables import probe_table

Part = tuple[torch.Tensor, torch.Tensor]


def parts(spread: float) -> list[Part]:
    """Train, val and test: three noisy classes in ten dimensions of very different scales."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 10, generator=generator)
    scale = torch.logspace(-3, 3, 10)
    splits = []
    for samples in (60, 50, 80):
        label = torch.randint(3, (samples,), generator=generator)
        splits.append(((centres[label] + spread * torch.randn(samples, 10, generator=generator)) * scale + 5, label))
    return splits


def test_the_probe_is_standardised_logistic_regression_with_the_best_c_on_val() -> None:
    train, val, test = parts(spread=2.0)
    (x, y), (x_val, y_val), (x_test, y_test) = ((f.double().numpy(), label.numpy()) for f, label in (train, val, test))
    mean, deviation = x.mean(0), x.std(0)
    accuracies = {}
    for strength in GRID:
        fitted = LogisticRegression(C=strength, max_iter=5000).fit((x - mean) / deviation, y)
        accuracies[strength] = tuple(
            100 * np.mean(fitted.predict((part - mean) / deviation) == label)
            for part, label in ((x_val, y_val), (x_test, y_test))
        )
    assert len({val for val, _ in accuracies.values()}) > 1
    best = max(accuracies, key=lambda strength: (accuracies[strength][0], -strength))
    probe = linear_probe(train, val, test)
    assert probe["C"] == best
    assert (probe["val_accuracy"], probe["accuracy"]) == pytest.approx(accuracies[best])
    assert probe["converged"] is True


def test_of_equal_ones_the_strongest_regularisation_is_taken() -> None:
    train, val, test = parts(spread=0.01)
    probe = linear_probe(train, val, test, grid=(10.0, 1.0))
    assert (probe["val_accuracy"], probe["accuracy"], probe["C"]) == (100, 100, 1.0)


@pytest.mark.filterwarnings("error")
def test_a_fit_that_was_stopped_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MOST_STEPS", 1)
    assert probe.linear_probe(*parts(spread=2.0))["converged"] is False


def test_a_single_class_cannot_be_fitted() -> None:
    train, val, test = parts(spread=1.0)
    with pytest.raises(EvaluationError, match="single class"):
        linear_probe((train[0], torch.zeros_like(train[1])), val, test)


def test_a_modality_of_a_single_class_has_no_probe() -> None:
    torch.manual_seed(0)
    label = torch.arange(40) % 2
    features = {name: label[:, None] + 0.1 * torch.randn(40, 3) for name in ("a", "b")}
    everywhere = torch.ones(40, dtype=torch.bool)
    whole = Collected(features, {}, torch.zeros(40, 2), label, {"a": everywhere, "b": everywhere})
    for few in (label == 0, ~everywhere):
        part = Collected(features, {}, torch.zeros(40, 2), label, {"a": everywhere, "b": few})
        for splits in ((part, whole, whole), (part, part, part)):
            result = probes(*splits, partial=True)
            assert result["unimodal"]["a"]["accuracy"] == 100.0
            assert result["unimodal"]["b"] is result["concatenated"] is None
            assert "all features" not in probe_table({"split": "test", "probe": result})
            with pytest.raises(EvaluationError, match="no sample of b, or the training split a single class of them"):
                probes(*splits)
    with pytest.raises(EvaluationError, match="the training split holds a single class"):
        probes(Collected(features, {}, torch.zeros(40, 2), 0 * label, whole.present), whole, whole, partial=True)


def test_samples_without_a_modality_in_common_have_no_probe_of_all_features() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(40) % 2
    features = {name: label[:, None] + 0.1 * torch.randn(40, 3, generator=generator) for name in ("a", "b")}
    first = torch.arange(40) < 20
    part = Collected(
        features=features, unimodal=dict.fromkeys(features, torch.zeros(40, 2)), joint=torch.zeros(40, 2), label=label,
        present={"a": first, "b": ~first},
    )  # fmt: skip
    result = probes(part, part, part)
    assert {name: value["accuracy"] for name, value in result["unimodal"].items()} == {"a": 100.0, "b": 100.0}
    assert result["concatenated"] is None
    assert "all features" not in probe_table({"split": "test", "probe": result})
