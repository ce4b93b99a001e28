"""What a run needs before its first step: device, seeds, optimiser."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpareto.options import Options, UsageError


def choose_device(gpu_ids: str | None) -> torch.device:
    """The device that --gpu_ids asks for; by default the first GPU where there is one.

    Raises UsageError where it cannot be had.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training in several processes is not supported; start one process, without torchrun")
    if gpu_ids is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if gpu_ids.lower() == "cpu":
        return torch.device("cpu")
    if not gpu_ids.isdecimal():
        raise UsageError(f"--gpu_ids: expected the number of one GPU, or cpu; found {gpu_ids!r}")
    count = torch.cuda.device_count()
    if count == 0:
        raise UsageError(f"--gpu_ids {gpu_ids}: PyTorch sees no GPU here; leave the flag out, or give --gpu_ids cpu")
    if int(gpu_ids) >= count:
        raise UsageError(f"--gpu_ids {gpu_ids}: PyTorch sees {count} GPU(s), numbered from 0")
    return torch.device("cuda", int(gpu_ids))


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_optimizer(
    model: nn.Module, options: Options
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimiser and learning-rate schedule (constant without --lr_decay_step) that the options ask for."""
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), momentum=options.momentum, **common)
    else:
        optimizer = getattr(torch.optim, options.optimizer)(model.parameters(), **common)
    step, ratio = (options.lr_decay_step, options.lr_decay_ratio) if options.lr_decay_step else (1, 1.0)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step, ratio)
