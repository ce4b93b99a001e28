"""Routines whose coefficients do not depend on the gradients: the plain baselines, in one backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmpareto.integration.integrator import EncoderDiagnostics, Integrator
from mmpareto.integration.partition import Parameters, Partition
from mmpareto.integration.reduction import filled, set_gradients, start_average


class OnePassIntegrator(Integrator):
    """Base of `OneJoint` and `Uniform`: one pass, or two where diagnostics are asked for, with the same result."""

    passes: ClassVar[int] = 1
    encoder_factor: float = 1.0  # of the encoders' gradients

    _begun = False

    @abstractmethod
    def _pass(self, part: Partition, joint_loss: Tensor, unimodal_losses: Mapping[str, Tensor]) -> None:
        """Adds one micro-batch's gradients to `.grad`."""

    def backward(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        *,
        encoders: Mapping[str, Parameters],
        heads: Parameters = (),
        diagnose: bool = False,
    ) -> dict[str, EncoderDiagnostics]:
        """As `Integrator.backward`; one pass and no diagnostics unless `diagnose`.

        Raises ValueError too where `diagnose` is not what it was for the step's other micro-batches.
        """
        diagnose = diagnose and joint_loss.requires_grad  # a constant has no gradient to measure
        self._check_alike(diagnose)
        if diagnose:
            return super().backward(joint_loss, unimodal_losses, encoders=encoders, heads=heads)
        self.accumulate(joint_loss, unimodal_losses, encoders=encoders, heads=heads)
        self._begun = False
        part = self._partition
        assert part is not None
        if self._averages_over_processes():
            everything = [*part.encoder_parameters, *part.heads]
            set_gradients(
                everything, start_average(filled(everything, [p.grad for p in everything]), self.process_group)()
            )
        if self.encoder_factor != 1.0:
            present = [p.grad for p in part.encoder_parameters if p.grad is not None]
            if present:
                torch._foreach_mul_(present, self.encoder_factor)
        return {}

    def accumulate(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        *,
        encoders: Mapping[str, Parameters],
        heads: Parameters = (),
        diagnose: bool = False,
    ) -> None:
        """As `Integrator.accumulate`; `diagnose` as it will be in `backward`."""
        diagnose = diagnose and joint_loss.requires_grad  # a constant has no gradient to measure
        self._check_alike(diagnose)
        if diagnose:
            super().accumulate(joint_loss, unimodal_losses, encoders=encoders, heads=heads)
            return
        part = self._prepare(joint_loss, unimodal_losses, encoders, heads)
        if not self._begun:
            set_gradients([*part.encoder_parameters, *part.heads], None)
            self._begun = True
        try:
            self._pass(part, joint_loss, unimodal_losses)
        except BaseException:
            self.reset()
            raise

    def _check_alike(self, diagnose: bool) -> None:
        """The two ways gather in different places: a step goes one of them with all its micro-batches."""
        if self._begun if diagnose else self._joint is not None:
            self.reset()
            raise ValueError("diagnose must be the same for all micro-batches of a step")

    def reset(self) -> None:
        """Forgets the micro-batches taken in since the last `backward`."""
        super().reset()
        self._begun = False


class OneJoint(OnePassIntegrator):
    """One joint loss: the encoders learn from the joint loss alone ("one joint loss" of Wei & Hu, ICML 2024).

    The unimodal heads still learn, on features that count as constants, so that their accuracies mean something; the
    published script leaves them untrained. One backward pass through the encoders.
    """

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(1, 0) for every tensor."""
        return torch.stack((gramians.new_ones(len(gramians)), gramians.new_zeros(len(gramians))), dim=1)

    def _pass(self, part: Partition, joint_loss: Tensor, unimodal_losses: Mapping[str, Tensor]) -> None:
        if part.heads:  # never enters the encoders; before the joint loss, whose pass then frees the graph
            torch.autograd.backward(list(unimodal_losses.values()), inputs=part.heads, retain_graph=True)
        torch.autograd.backward([joint_loss], inputs=[*part.encoder_parameters, *part.heads])


class OneUnimodal(OnePassIntegrator):
    """Unimodal training: each encoder learns from its modality's own loss alone, the unimodal baseline of the field.

    The joint head still learns, on features that count as constants, so that the joint accuracy is that of a linear
    classifier on independently trained encoders. A joint loss that needs no gradient (an ensemble has no joint head)
    is left alone. One backward pass through the encoders.
    """

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(0, 1) for every tensor."""
        return torch.stack((gramians.new_zeros(len(gramians)), gramians.new_ones(len(gramians))), dim=1)

    def _prepare(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        encoders: Mapping[str, Parameters],
        heads: Parameters,
    ) -> Partition:
        checked = joint_loss if joint_loss.requires_grad else next(iter(unimodal_losses.values()))
        return super()._prepare(checked, unimodal_losses, encoders, heads)

    def _pass(self, part: Partition, joint_loss: Tensor, unimodal_losses: Mapping[str, Tensor]) -> None:
        if part.heads and joint_loss.requires_grad:  # never enters the encoders; first, the other pass frees the graph
            torch.autograd.backward([joint_loss], inputs=part.heads, retain_graph=True)
        losses = list(unimodal_losses.values())
        torch.autograd.backward(losses, inputs=[*part.encoder_parameters, *part.heads])


class Uniform(OnePassIntegrator):
    """Uniform baseline: the plain sum of the joint and all unimodal losses (Wei & Hu, ICML 2024), in one backward pass.

    gamma  factor of the encoders' gradients; 1 is the baseline, MMPareto's gamma (1.5) the control that tells what of
           MMPareto's gain is step size.

    Raises ValueError for a gamma that is not a positive finite number.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        self.encoder_factor = self.gamma = positive(gamma, "gamma")

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(gamma, gamma) for every tensor."""
        return gramians.new_full((len(gramians), 2), self.gamma)

    def _pass(self, part: Partition, joint_loss: Tensor, unimodal_losses: Mapping[str, Tensor]) -> None:
        losses = [joint_loss, *unimodal_losses.values()]
        torch.autograd.backward(losses, inputs=[*part.encoder_parameters, *part.heads])


def positive(value: float, name: str) -> float:
    """`value` as a float.

    Raises ValueError where it is not a positive finite number.
    """
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, found {value!r}")
    return float(value)
