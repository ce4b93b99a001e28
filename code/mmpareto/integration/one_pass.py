"""Routines whose coefficients do not depend on the gradients: the plain baselines, in one backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from mmpareto.integration import graph
from mmpareto.integration.diagnostics import EncoderDiagnostics
from mmpareto.integration.given import Given, check_losses
from mmpareto.integration.integrator import Integrator
from mmpareto.integration.reduction import add_gradients, filled, gradients, set_gradients, start_average


class OnePassIntegrator(Integrator):
    """Base of `OneJoint`, `OneUnimodal` and `Uniform`: one pass, or two where diagnostics are asked for, with the same
    result.
    """

    passes: ClassVar[int] = 1
    encoder_factor: float = 1.0  # of the encoders' gradients

    _sums: list[Tensor | None] | None = None  # gradients of the step's micro-batches, in the order of the partition

    @abstractmethod
    def _losses(self, joint: Tensor, unimodal: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Losses that reach only the heads, and losses that reach the encoders too."""

    def _backward(self, given: Given, diagnose: bool, loss_scale: Tensor | float) -> dict[str, EncoderDiagnostics]:
        if self._diagnosed(given, diagnose):
            return super()._backward(given, diagnose, loss_scale)
        self._run_pass(given)
        part, sums = self._partition, self._sums
        assert part is not None
        assert sums is not None
        parameters = part.all_parameters
        if self.processes > 1:
            sums = list(start_average(filled(parameters, sums), self.process_group)())
        if self.encoder_factor != 1.0:
            present = [gradient for gradient in sums[: len(part.encoder_parameters)] if gradient is not None]
            if present:
                torch._foreach_mul_(present, self.encoder_factor)
        set_gradients(parameters, sums)
        return {}

    def _accumulate(self, given: Given, diagnose: bool) -> None:
        if self._diagnosed(given, diagnose):
            super()._accumulate(given, diagnose)
        else:
            self._run_pass(given)

    def reset(self) -> None:
        """Forget the micro-batches taken in since the last `backward`."""
        super().reset()
        self._sums = None

    @property
    def _in_step(self) -> bool:
        return super()._in_step or self._sums is not None

    def _diagnosed(self, given: Given, diagnose: bool) -> bool:
        """Whether this micro-batch takes two passes: not for a joint loss that is a constant.

        The two ways gather in different places: a step goes one of them with all its micro-batches.
        """
        diagnose = diagnose and given.joint.requires_grad
        gathered_the_other_way = self._sums if diagnose else self._sets
        if gathered_the_other_way is not None:
            raise ValueError("diagnose must be the same for all micro-batches of a step")
        return diagnose

    def _run_pass(self, given: Given) -> None:
        """Add one micro-batch's gradients to the sums."""
        of_heads, of_all = self._losses(given.joint, given.unimodal)
        part, of_heads_only, _ = self._prepare(of_heads, of_all, given)
        parameters = part.all_parameters
        if self._sums is None:
            self._sums = [None] * len(parameters)
        try:
            set_gradients(parameters, self._sums)
            heads = [p for p in part.heads if id(p) not in self._between]
            if heads and of_heads:  # first, since the pass through the encoders frees the graph that both share
                add_gradients(of_heads, heads, retain_graph=True)
            add_gradients(of_all, parameters)
            self._sums = gradients(parameters)
        finally:
            set_gradients(parameters, None)
        graph.release(of_heads_only)


class OneJoint(OnePassIntegrator):
    """One joint loss: the encoders learn from the joint loss alone ("one joint loss" of Wei & Hu, ICML 2024).

    The unimodal heads still learn, on features that count as constants, so that their accuracies mean something; the
    published script leaves them untrained. One backward pass through the encoders.
    """

    between: ClassVar[tuple[bool, bool]] = (True, False)

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(1, 0) for every tensor."""
        return torch.stack((gramians.new_ones(len(gramians)), gramians.new_zeros(len(gramians))), dim=1)

    def _losses(self, joint: Tensor, unimodal: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return unimodal, [joint]


class OneUnimodal(OnePassIntegrator):
    """Unimodal training: each encoder learns from its modality's own loss alone, the unimodal baseline of the field.

    The joint head still learns, on features that count as constants, so that the joint accuracy is that of a linear
    classifier on independently trained encoders. A joint loss that needs no gradient (an ensemble has no joint head)
    is left alone. One backward pass through the encoders.
    """

    between: ClassVar[tuple[bool, bool]] = (False, True)

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(0, 1) for every tensor."""
        return torch.stack((gramians.new_zeros(len(gramians)), gramians.new_ones(len(gramians))), dim=1)

    def _check(self, joint: Tensor, unimodal: Mapping[str, Tensor]) -> None:
        constant = isinstance(joint, Tensor) and not joint.requires_grad and unimodal
        check_losses(next(iter(unimodal.values())) if constant else joint, unimodal)

    def _losses(self, joint: Tensor, unimodal: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [joint] if joint.requires_grad else [], unimodal


class Uniform(OnePassIntegrator):
    """Uniform baseline: the plain sum of the joint and all unimodal losses (Wei & Hu, ICML 2024), in one backward pass.

    Args:
        gamma: factor of the encoders' gradients; 1 is the baseline, MMPareto's gamma (1.5) the control that tells what
            of MMPareto's gain is step size.

    Raises:
        ValueError: for a gamma that is not a positive finite number.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        self.encoder_factor = self.gamma = positive(gamma, "gamma")

    def coefficients(self, gramians: Tensor) -> Tensor:
        """(gamma, gamma) for every tensor."""
        return gramians.new_full((len(gramians), 2), self.gamma)

    def _losses(self, joint: Tensor, unimodal: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [], [joint, *unimodal]


def positive(value: float, name: str) -> float:
    """`value` as a float.

    Raises:
        ValueError: where it is not a positive finite number.
    """
    if not isinstance(value, Real) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, found {value!r}")
    return float(value)
