"""Passes through the data: training and scoring, without waiting for the device inside a pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from mmpareto.datasets import to_device
from mmpareto.evaluation.metrics import Scores
from mmpareto.integration import EncoderDiagnostics, Integrator
from mmpareto.models import MultimodalClassifier
from mmpareto.training.data import Loader
from mmpareto.training.step import losses, training_step

PER_STEP = ("cosine", "joint_norm", "unimodal_norm", "joint_weight", "conflict")


class TrainingError(Exception):
    """Training cannot go on; the message says where it broke and what to try."""


class GradientLog:
    """What integration saw in every step of an epoch; fetched from the device once, at its end."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: dict[str, list[torch.Tensor]] = {}

    def add(self, step: int, diagnostics: Mapping[str, EncoderDiagnostics]) -> None:
        """Keeps a step's diagnostics; does nothing where a one-pass method has none."""
        if diagnostics:
            self._steps.append(step)
        for encoder, seen in diagnostics.items():
            values = torch.stack([getattr(seen, name).float() for name in PER_STEP])
            self._values.setdefault(encoder, []).append(values)

    def rows(self, epoch: int) -> list[dict[str, Any]]:
        """A row per step and encoder: epoch, step, encoder and the values of PER_STEP."""
        fetched = {encoder: torch.stack(values).tolist() for encoder, values in self._values.items()}
        return [
            {"epoch": epoch, "step": step, "encoder": encoder, **dict(zip(PER_STEP, values[position], strict=True))}
            for position, step in enumerate(self._steps)
            for encoder, values in fetched.items()
        ]


def train_epoch(
    model: MultimodalClassifier,
    integrator: Integrator,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    epoch: int,
    device: torch.device,
    *,
    clip_grad: float | None,
    diagnose_interval: int,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Trains for one epoch (1, 2, ...).

    Returns the training scores ({"joint" or modality: {"loss", "accuracy"}}, running over the epoch) and the rows of
    the gradient log, their steps counted from the beginning of the run.

    Raises TrainingError where a loss is not finite.
    """
    model.train()
    modalities = loader.dataset.modalities
    scores = Scores(list(modalities), len(loader.dataset.classes), device)
    log = GradientLog()
    first = (epoch - 1) * len(loader)
    batches = tqdm(loader.epoch(epoch - 1), desc=f"epoch {epoch}", unit="batch", leave=False, disable=None)
    for step, batch in enumerate(batches, start=first):
        inputs = to_device(batch["inputs"], modalities, device)
        label = batch["label"].to(device, non_blocking=True)
        diagnose = diagnose_interval > 0 and step % diagnose_interval == 0
        done = training_step(model, integrator, optimizer, inputs, label, clip_grad, diagnose)
        scores.update(done.losses.joint, done.losses.unimodal, done.output.joint, done.output.unimodal, label)
        log.add(step, done.diagnostics)
    result = scores.compute()
    for name, score in result.items():
        if not math.isfinite(score["loss"]):
            raise TrainingError(
                f"the {name} loss is {score['loss']} in epoch {epoch}; the learning rate may be too high "
                "(--learning_rate, --clip_grad), or the data hold values that are not finite. The checkpoints of the "
                "epochs before are kept"
            )
    return result, log.rows(epoch)


@torch.inference_mode()
def score(model: MultimodalClassifier, loader: Loader, device: torch.device) -> dict[str, dict[str, float]]:
    """Mean loss and accuracy in percent of the joint head and of each modality's own, over a whole split."""
    model.eval()
    modalities = loader.dataset.modalities
    scores = Scores(list(modalities), len(loader.dataset.classes), device)
    for batch in loader.epoch(0):
        output = model(to_device(batch["inputs"], modalities, device))
        label = batch["label"].to(device, non_blocking=True)
        loss = losses(output, label)
        scores.update(loss.joint, loss.unimodal, output.joint, output.unimodal, label)
    return scores.compute()
