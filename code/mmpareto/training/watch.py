"""What is watched while a run trains: losses and gradients that are not finite."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpareto.datasets import Rows
from mmpareto.errors import UserError


class TrainingError(UserError):
    """Training cannot continue: losses or gradients are not finite in an epoch, from a step on where that is known."""

    def __init__(self, message: str, epoch: int, step: int | None = None) -> None:
        super().__init__(message)
        self.epoch, self.step = epoch, step


class FiniteWatch:
    """Remembers on the device the first step whose losses or gradient were not finite, without waiting for it.

    modalities  their names; the losses are the joint one and theirs.
    gradients   False: gradients may overflow, since a gradient scaler leaves such steps out; but not in PATIENCE steps
                on end, after which the scale is too small to be the cause.
    """

    PATIENCE = 50

    def __init__(self, modalities: Sequence[str], device: torch.device, gradients: bool = True) -> None:
        self._names = ["joint loss", *(f"{name} loss" for name in modalities), "gradient"]
        self._gradients = gradients
        self._first = torch.full((len(self._names),), -1, dtype=torch.int64, device=device)
        self._overflows = torch.zeros((), dtype=torch.int64, device=device)  # on end, up to now
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._ids: dict[int, Sequence[str] | Rows] = {}

    def begin(self, step: int) -> None:
        """Count steps from this number on."""
        self._step.fill_(step)

    def update(self, losses: Sequence[Tensor], norm: Tensor) -> None:
        """Take in a step: its losses in the order of the modalities, its gradient's norm. On the device alone."""
        values = torch.stack([*(loss.detach().float() for loss in losses), norm.float()])
        broken = ~torch.isfinite(values)
        if not self._gradients:
            self._overflows.copy_(torch.where(broken[-1], self._overflows + 1, 0))
            broken[-1] = False
        self._first.copy_(torch.where((self._first < 0) & broken, self._step, self._first))
        self._step += 1

    def note(self, step: int, ids: Sequence[str] | Rows) -> None:
        """Remember a step's clips, for messages."""
        self._ids[step] = ids

    def check(self, epoch: int) -> None:
        """Raise TrainingError where a step since the last check was not finite. Waits for the device."""
        *first, overflows = torch.cat((self._first, self._overflows.unsqueeze(0))).tolist()
        broken = [step for step in first if step >= 0]
        if broken:
            step = min(broken)
            names = [name for name, at in zip(self._names, first, strict=True) if at == step]
            kept = self._ids.get(step, [])
            ids = kept.ids() if isinstance(kept, Rows) else kept
            clips = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
            raise TrainingError(
                f"not finite in step {step} (epoch {epoch}): {', '.join(names)}; the batch held {clips}. The learning "
                "rate may be too high (--learning_rate, --clip_grad, --warmup_epochs), or these clips hold values that "
                "are not finite. The last checkpoint, where there is one, is from before; --resume continues from it",
                epoch,
                step,
            )
        if overflows >= self.PATIENCE:
            raise TrainingError(
                f"the gradient was not finite in the last {overflows} steps (epoch {epoch}), at any scale of the loss: "
                "float16 is not the cause; look for it without --amp. The last checkpoint, where there is one, may "
                "hold such steps, which were left out; --resume continues from it",
                epoch,
            )
        self._ids.clear()
