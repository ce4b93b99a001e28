"""Gradient noise against NumPy on the gradients of every batch, one loss and one encoder at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation.small_model import SIZES, Encoder, batches, flat, joined, make_model
from torch import Tensor

from mmpareto.datasets import DeviceBatch
from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.gradient_noise import Moments, gradient_noise
from mmpareto.models import LateFusion, MultimodalModel


def gradients(model: MultimodalModel, encoder: str, joint: bool) -> np.ndarray:
    """[batches, P] by `backward` into `.grad`, one loss at a time."""
    rows = []
    for inputs, label, _ in batches():
        model.zero_grad()
        output = model(inputs)
        F.cross_entropy(output.joint if joint else output.unimodal[encoder], label).backward()
        rows.append(flat([p.grad for p in model.encoders[encoder].parameters() if p.grad is not None]).numpy().copy())
    model.zero_grad()
    return np.stack(rows)


@pytest.mark.parametrize("encoder", SIZES)
def test_means_and_covariances_are_those_of_the_batches_gradients(encoder: str) -> None:
    model = make_model()
    result = gradient_noise(model, batches())[encoder]
    means = []
    for noise, joint in ((result.joint, True), (result.unimodal, False)):
        rows = gradients(model, encoder, joint)
        norms = np.linalg.norm(rows, axis=1)
        means.append(rows.mean(0))
        assert noise.norms == pytest.approx(norms.tolist())
        assert noise.mean_norm == pytest.approx(norms.mean())
        assert noise.norm_variance == pytest.approx(norms.var(ddof=1))
        assert noise.norm_of_mean == pytest.approx(np.linalg.norm(means[-1]))
        assert noise.covariance_trace == pytest.approx(np.trace(np.cov(rows, rowvar=False)))
    expected = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    assert result.cosine == pytest.approx(expected)


def test_the_mean_over_equal_batches_is_the_gradient_of_all_samples() -> None:
    model = make_model()
    inputs, label, _ = joined(batches())
    whole = torch.autograd.grad(F.cross_entropy(model(inputs).joint, label), list(model.encoders["x"].parameters()))
    assert gradient_noise(model, batches())["x"].joint.norm_of_mean == pytest.approx(float(flat(list(whole)).norm()))


def test_the_model_stays_as_it_was() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient_noise(model.train(), batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_small_variance_beside_a_large_mean_is_not_lost() -> None:
    """Sums of squares in float64 would give 0 or less here."""
    moments = Moments()
    for step in (0.0, 1.0, 2.0):
        moments.add(torch.tensor([1e9 + step, 1e9 - step], dtype=torch.float64))
    assert moments.noise().covariance_trace == pytest.approx(2.0)


def test_frozen_encoders_are_left_out() -> None:
    model = make_model()
    whole = gradient_noise(model, batches())["y"]
    model.encoders["x"].requires_grad_(False)
    assert gradient_noise(model, batches()) == {"y": whole}
    model.encoders["y"].requires_grad_(False)
    with pytest.raises(EvaluationError, match="all encoders of the model are frozen"):
        gradient_noise(model, batches())


def test_an_encoder_that_a_loss_does_not_reach_has_a_gradient_of_zero() -> None:
    model = make_model()
    with torch.no_grad():
        model.fusion.head.weight[:, :3] = 0  # the features of x
    result = gradient_noise(model, batches())["x"]
    assert (result.joint.mean_norm, result.joint.covariance_trace, result.cosine) == (0.0, 0.0, None)
    assert result.unimodal.mean_norm > 0


@pytest.mark.parametrize("factor", [1e25, 1e-25])
def test_gradients_whose_squares_leave_float32(factor: float) -> None:
    class Scaled(torch.autograd.Function):
        """Passes values on, and gradients times `factor`."""

        @staticmethod
        def forward(context: object, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(context: object, *gradients: Tensor) -> Tensor:
            return gradients[0] * factor

    class ScaledEncoder(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return Scaled.apply(super().forward(x))

    parts = [
        DeviceBatch({name: value.float() for name, value in part.inputs.items()}, part.label) for part in batches()
    ]
    results = []
    for kind in (Encoder, ScaledEncoder):
        torch.manual_seed(0)
        results.append(gradient_noise(LateFusion({"x": kind(4), "y": kind(3)}, 3), parts)["x"])
    plain, scaled = results
    assert scaled.joint.mean_norm == pytest.approx(factor * plain.joint.mean_norm, rel=1e-4)
    assert scaled.joint.covariance_trace == pytest.approx(factor**2 * plain.joint.covariance_trace, rel=1e-4)
    assert scaled.cosine == pytest.approx(plain.cosine, abs=1e-4)


def test_what_cannot_be_measured_is_refused() -> None:
    model = make_model()
    for count in (0, 1):
        with pytest.raises(EvaluationError, match=f"two batches or more, found {count}"):
            gradient_noise(model, batches(count))
    broken = batches()
    broken[2].inputs["y"][0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="the joint loss is not finite at batch 3"):
        gradient_noise(model, broken)

    class Steep(torch.autograd.Function):
        """Finite, with an infinite slope."""

        @staticmethod
        def forward(context: object, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(context: object, *slopes: Tensor) -> Tensor:
            return slopes[0] / 0

    class SteepEncoder(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return Steep.apply(super().forward(x))

    steep = LateFusion({"x": Encoder(4), "y": SteepEncoder(3)}, 3).double()
    with pytest.raises(EvaluationError, match="the joint gradient of the encoder y is not finite at batch 1"):
        gradient_noise(steep, batches())
