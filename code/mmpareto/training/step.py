"""The batch step: forward, losses, integrated gradients, optimiser. It stands here and nowhere else.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.integration import EncoderDiagnostics, Integrator
from mmpareto.models import MultimodalClassifier, Output


class Losses(NamedTuple):
    """Scalar cross-entropies, means over the batch."""

    joint: Tensor
    unimodal: dict[str, Tensor]


class Step(NamedTuple):
    """What a step leaves to look at; everything stays on the device."""

    output: Output
    losses: Losses
    diagnostics: dict[str, EncoderDiagnostics]


def losses(output: Output, label: Tensor) -> Losses:
    """Joint and unimodal cross-entropy of a model's output; label int64 [B]."""
    return Losses(
        F.cross_entropy(output.joint, label),
        {name: F.cross_entropy(logits, label) for name, logits in output.unimodal.items()},
    )


def training_step(
    model: MultimodalClassifier,
    integrator: Integrator,
    optimizer: torch.optim.Optimizer,
    inputs: Mapping[str, Tensor],
    label: Tensor,
    clip_grad: float | None = None,
    diagnose: bool = False,
) -> Step:
    """One update of the model.

    inputs     {modality: [B, ...]}, label int64 [B], both on the model's device.
    clip_grad  largest norm of the integrated gradient over all parameters; None leaves it alone.
    diagnose   see `Integrator.backward`.
    """
    output = model(inputs)
    loss = losses(output, label)
    encoders, heads = model.partition()
    diagnostics = integrator.backward(loss.joint, loss.unimodal, encoders=encoders, heads=heads, diagnose=diagnose)
    if clip_grad is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
    optimizer.step()
    return Step(output, loss, diagnostics)
