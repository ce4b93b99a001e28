"""Integration at the encoders' outputs: one backward pass through the encoders instead of two.

Shapes: B batch, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmpareto.integration import graph
from mmpareto.integration.diagnostics import EncoderDiagnostics, diagnose
from mmpareto.integration.given import Given
from mmpareto.integration.gramian import gramians, unscaled, without_autocast
from mmpareto.integration.integrator import Integrator
from mmpareto.integration.partition import Parameters
from mmpareto.integration.reduction import add_gradients, apart, filled, gradients, set_gradients, start_average


class OnFeatures(Integrator):
    """A routine whose Gramians come from the gradients with respect to the features, not to the parameters.

    MGDA-UB of Sener & Koltun ("Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, Section 3.3) for
    MGDA, and the same for every routine. With d_j and d_u the gradients of the joint loss and of the unimodal losses
    with respect to an encoder's features of the whole batch, and c the routine's coefficients of their Gramian,

        .grad = J^T (c_j d_j + c_u d_u),    J the Jacobian of the features,

    which is one backward pass through the encoder. d_j and d_u need the heads alone. What is given up: the coefficients
    are those of an encoder, not of each parameter tensor, and the norms that a routine compares are those of d, which
    bound those of J^T d (|J^T d| <= |J| |d|). Signs may differ too: d_j . d_u < 0 does not mean that the gradients of
    the parameters conflict.

    For late fusion, where the losses reach an encoder through its features alone: give `backward` the features. An
    encoder that learns and has none there, or that a loss reaches past them, is a ValueError, as is `accumulate`.

    Args:
        routine: whose `coefficients` are taken.
    """

    passes: ClassVar[int] = 1

    def __init__(self, routine: Integrator) -> None:
        self.routine = routine
        self.capturable, self.float64_products = routine.capturable, routine.float64_products  # type: ignore[misc]

    def coefficients(self, gramians: Tensor) -> Tensor:
        """See `Integrator.coefficients`: those of the routine."""
        return self.routine.coefficients(gramians)

    def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
        """See `Integrator.encoder_coefficients`: those of the routine."""
        self.routine.synchronise, self.routine.process_group = self.synchronise, self.process_group
        return self.routine.encoder_coefficients(encoder, gramians)

    def parameter_names(self, encoder: Parameters) -> list[str]:
        """One entry: the diagnostics are those of the features."""
        return ["features"]

    def _backward(self, given: Given, diagnose: bool, loss_scale: Tensor | float) -> dict[str, EncoderDiagnostics]:
        features = given.features
        part, first_only, _ = self._prepare([given.joint], given.unimodal, given)
        names = [name for name, parameters in part.encoders.items() if parameters]
        missing = [name for name in names if name not in features or not features[name].requires_grad]
        if missing:
            raise ValueError(f"the encoder {missing[0]} learns and has no features to integrate at")
        outputs = [features[name] for name in names]
        past = graph.leaves(graph.walk([given.joint, *given.unimodal], {output.grad_fn for output in outputs}).nodes)
        encoder_ids = {id(parameter) for parameter in part.encoder_parameters}
        if any(id(leaf) in encoder_ids for leaf in past):
            raise ValueError(
                "a loss reaches an encoder past its features, as in dense fusion: integrate at the parameters"
            )
        inputs = [*outputs, *part.heads]
        joint = torch.autograd.grad([given.joint], inputs, retain_graph=True, allow_unused=True)
        unimodal = torch.autograd.grad(given.unimodal, inputs, allow_unused=True)
        combined, diagnostics = self._combined(names, outputs, joint, unimodal, loss_scale) if names else ([], {})
        of_heads = apart([_sum(a, b) for a, b in zip(joint[len(names) :], unimodal[len(names) :], strict=True)])
        try:
            set_gradients(part.all_parameters, None)
            if names:  # else all encoders are frozen
                _through_encoders(outputs, part.encoder_parameters, combined)
            result = [*gradients(part.encoder_parameters), *of_heads]
        finally:
            set_gradients(part.all_parameters, None)
        graph.release(first_only)
        if self.processes > 1:
            result = list(start_average(filled(part.all_parameters, result), self.process_group)())
        set_gradients(part.all_parameters, result)
        return diagnostics

    def _accumulate(self, given: Given, diagnose: bool) -> None:
        # the coefficients are the whole batch's, and are needed before the first piece's backward pass
        raise ValueError("integration at the features needs the whole batch at once: leave micro-batches out")

    def state_dict(self) -> dict[str, Any]:
        """See `Integrator.state_dict`: that of the routine."""
        return self.routine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Integrator.load_state_dict`: of the routine."""
        self.routine.load_state_dict(state)

    def _combined(
        self,
        names: list[str],
        outputs: list[Tensor],
        joint: tuple[Tensor | None, ...],
        unimodal: tuple[Tensor | None, ...],
        loss_scale: Tensor | float,
    ) -> tuple[list[Tensor], dict[str, EncoderDiagnostics]]:
        """c_j d_j + c_u d_u of every encoder, and what was measured."""
        device = outputs[0].device
        with torch.no_grad(), without_autocast(device):
            grams = torch.stack(
                [gramians([joint[k]], [unimodal[k]], device, self.float64_products) for k in range(len(names))]
            )  # [encoders, 1, 2, 2]
            if self.processes > 1:
                # the batch is that of all processes, and its losses are the mean of theirs
                grams = start_average([grams], self.process_group)()[0] / self.processes
            grams = unscaled(grams, loss_scale, device)
            combined, diagnostics = [], {}
            for k, name in enumerate(names):
                weights = self._checked_coefficients(name, grams[k])
                total = torch.zeros_like(outputs[k], dtype=torch.float64, device=grams.device)
                for weight, gradient in zip(weights[0], (joint[k], unimodal[k]), strict=True):
                    if gradient is not None:
                        total = total + weight * gradient.to(total)
                combined.append(total.to(outputs[k]))
                diagnostics[name] = diagnose(grams[k], weights)
        return combined, diagnostics


def _through_encoders(features: list[Tensor], parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
    """Fill `.grad` of the encoders' parameters from the gradients of their features."""
    try:
        add_gradients(features, parameters, gradients)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise ValueError(
            "parameters listed under heads lie between an encoder's parameters and its features, and the heads' "
            "gradients have used up that part of the graph: give the features before these parameters, or list them "
            "under the encoder"
        ) from error


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
