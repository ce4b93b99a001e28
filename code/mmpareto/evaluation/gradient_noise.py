"""Stochastic gradients of a fixed model, encoder by encoder: how long they are, how much they vary.

Mean and covariance, over batches, of the gradients of the joint and of the unimodal losses; Wei & Hu (ICML 2024) argue
from this noise.

Shapes: P parameters of an encoder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmpareto.datasets import DeviceBatch
from mmpareto.evaluation import EvaluationError
from mmpareto.models import MultimodalModel, cross_entropies


@dataclass(frozen=True)
class Noise:
    """The gradient of one loss with respect to one encoder, over the batches.

    mean_norm         mean of its Euclidean norm.
    norm_variance     variance of its norm (unbiased).
    norm_of_mean      norm of the mean gradient.
    covariance_trace  trace of its covariance (unbiased): the mean squared distance from the mean gradient.
    norms             its norm at every batch.
    """

    mean_norm: float
    norm_variance: float
    norm_of_mean: float
    covariance_trace: float
    norms: tuple[float, ...]


@dataclass(frozen=True)
class EncoderNoise:
    """Both gradients of an encoder, and the cosine of their means (None where one of these is zero)."""

    joint: Noise
    unimodal: Noise
    cosine: float | None


class Moments:
    """Mean, scatter and norms of vectors that come one at a time, in float64 by Welford's recurrence."""

    def __init__(self) -> None:
        self.mean = torch.zeros(())  # float64 [P] from the first vector on
        self._scatter = torch.zeros(())  # sum of squared distances from the mean
        self._norms: list[Tensor] = []

    def add(self, vector: Tensor) -> None:
        """Add a vector [P], without waiting for the device."""
        vector = vector.double()
        if not self._norms:
            self.mean, self._scatter = torch.zeros_like(vector), vector.new_zeros(())
        self._norms.append(vector.norm())
        before = vector - self.mean
        self.mean = self.mean + before / len(self._norms)
        self._scatter = self._scatter + before @ (vector - self.mean)

    def noise(self) -> Noise:
        """What two or more vectors were like."""
        norms = torch.stack(self._norms)
        return Noise(
            mean_norm=float(norms.mean()),
            norm_variance=float(norms.var()),
            norm_of_mean=float(self.mean.norm()),
            covariance_trace=float(self._scatter / (len(norms) - 1)),
            norms=tuple(norms.tolist()),
        )


def gradient_noise(model: MultimodalModel, batches: Iterable[DeviceBatch]) -> dict[str, EncoderNoise]:
    """{modality: noise of its encoder}, of encoders that learn: a pass, per batch a forward and two backward passes.

    model    in evaluation mode afterwards; its weights and `.grad` stay as they are.
    batches  two or more, of equal size: else their gradients do not have the same covariance.

    Raises EvaluationError where all encoders are frozen, for fewer than two batches, and for losses or gradients that
    are not finite.
    """
    model.eval()
    trainable = {
        name: [p for p in encoder.parameters() if p.requires_grad] for name, encoder in model.partition()[0].items()
    }
    encoders = {name: parameters for name, parameters in trainable.items() if parameters}
    if not encoders:
        raise EvaluationError("all encoders of the model are frozen: they have no gradients to measure")
    everything = [p for parameters in encoders.values() for p in parameters]
    moments = {name: (Moments(), Moments()) for name in encoders}
    count = 0
    for count, (inputs, label, present) in enumerate(batches, 1):
        output = model(inputs, present)
        both = cross_entropies(output, label)
        losses = {"joint": both.joint, **both.unimodal}
        joint, unimodal = losses["joint"], torch.stack(list(both.unimodal.values())).sum()
        # one pass through the sum: with late fusion an encoder is reached by its own unimodal loss alone
        gradients = [
            _split(torch.autograd.grad(loss, everything, retain_graph=keep, materialize_grads=True), encoders)
            for loss, keep in ((joint, True), (unimodal, False))
        ]
        _check(losses, gradients, count)
        for name, pair in moments.items():
            for moment, gradient in zip(pair, gradients, strict=True):
                moment.add(gradient[name])
    if count < 2:
        raise EvaluationError(f"a covariance needs two batches or more, found {count}")
    return {name: EncoderNoise(a.noise(), b.noise(), _cosine(a.mean, b.mean)) for name, (a, b) in moments.items()}


def _split(gradients: Sequence[Tensor], encoders: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """{encoder: its gradient [P]}."""
    left = iter(gradients)
    return {name: torch.cat([next(left).flatten() for _ in parameters]) for name, parameters in encoders.items()}


def _check(losses: Mapping[str, Tensor], gradients: Sequence[Mapping[str, Tensor]], batch: int) -> None:
    """Raise EvaluationError where a loss or a gradient is not finite."""
    named = {f"the {name} loss": value for name, value in losses.items()}
    for which, by_encoder in zip(("joint", "unimodal"), gradients, strict=True):
        # in float64: the square of a finite float32 may be infinite
        named |= {f"the {which} gradient of the encoder {n}": value.double().norm() for n, value in by_encoder.items()}
    finite = torch.isfinite(torch.stack([value.detach() for value in named.values()])).tolist()
    broken = [name for name, holds in zip(named, finite, strict=True) if not holds]
    if broken:
        raise EvaluationError(
            f"{broken[0]} is not finite at batch {batch}: the model diverged, or the batch holds values that are not "
            "finite"
        )


def _cosine(first: Tensor, second: Tensor) -> float | None:
    norms = float(first.norm()), float(second.norm())
    return None if 0 in norms else float((first / norms[0]) @ (second / norms[1]))
