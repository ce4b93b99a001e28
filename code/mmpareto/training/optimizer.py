"""The optimiser and the schedule of learning rates."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mmpareto.config import OptimConfig
from mmpareto.models import MultimodalModel


def make_optimizer(
    model: MultimodalModel, optim: OptimConfig, capturable: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Optimiser (fused on a GPU) and learning-rate schedule, which steps once an epoch.

    A parameter group for each encoder, named after its modality, and one for heads and fusion. Where an encoder has a
    `lr_factor`, its parameters are a group with that factor. `capturable`: its steps
    can be captured in a CUDA graph.
    """
    encoders, others = model.partition()
    groups: list[dict[str, Any]] = []
    for name, encoder in encoders.items():
        inner = model.innermost()[name]
        factor = getattr(inner, "lr_factor", 1.0)
        scaled = {id(parameter) for parameter in inner.parameters()} if factor != 1 else set()
        parameters = list(encoder.parameters())
        for part, rate in (
            ([p for p in parameters if id(p) in scaled], optim.learning_rate * factor),
            ([p for p in parameters if id(p) not in scaled], optim.learning_rate),  # of layers around the encoder
        ):
            if part:
                groups.append({"params": part, "name": name, "lr": rate})
    groups.append({"params": [parameter for _, parameter in others], "name": "heads"})
    common: dict[str, Any] = {"lr": optim.learning_rate, "weight_decay": optim.weight_decay}
    if next(model.parameters()).is_cuda:
        common["fused"] = True
    if optim.optimizer == "SGD":
        common["momentum"] = optim.momentum
    elif capturable:
        common["capturable"] = True
    optimizer: torch.optim.Optimizer = getattr(torch.optim, optim.optimizer)(groups, **common)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(optim))


def set_rates(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, factors: Mapping[str, float]
) -> None:
    """Learning rates of an epoch: the schedule's, times the factor of each group that has one."""
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate * factors.get(group["name"], 1.0)


def rate_factor(optim: OptimConfig) -> Callable[[int], float]:
    """Factor of the learning rate in epoch 0, 1, ...: constant, step or cosine, after a linear warm-up."""

    def factor(epoch: int) -> float:
        warmup = optim.warmup_epochs
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        if optim.lr_schedule == "step":
            assert optim.lr_decay_step is not None
            return optim.lr_decay_ratio ** ((epoch - warmup) // optim.lr_decay_step)
        if optim.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, optim.epochs - warmup)))
        return 1.0

    return factor
