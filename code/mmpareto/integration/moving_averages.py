"""Moving averages of what is measured at each encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class MovingAverages:
    """Averages of one tensor per encoder: a <- share a + (1 - share) now, from zero.

    They stay where they are in memory, which a CUDA graph goes on using, and nothing waits for the device.

    Args:
        share: what remains of an average after a step, 0 up to but not including 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._averages: dict[str, Tensor] = {}

    def update(self, encoder: str, now: Tensor) -> Tensor:
        """The averages of an encoder after a step; values that are not finite leave them as they are."""
        averages = self._averages.get(encoder)
        if averages is None or averages.shape != now.shape:
            averages = self._averages[encoder] = torch.zeros_like(now)
        elif averages.device != now.device:  # restored on another one
            averages = self._averages[encoder] = averages.to(now.device)
        moved = self.share * averages + (1 - self.share) * now
        return averages.copy_(torch.where(now.isfinite().all(), moved, averages))

    def state_dict(self) -> dict[str, Any]:
        """{encoder: its averages}."""
        return {encoder: averages.clone() for encoder, averages in self._averages.items()}

    def load_state_dict(self, state: Mapping[str, Any], shape: tuple[int, ...], kept: str) -> None:
        """Restore `state_dict()`.

        Args:
            shape: of an average, after its first dimension.
            kept: what the routine keeps, for the message.

        Raises:
            ValueError: for a state of another routine.
        """
        if any(not isinstance(value, Tensor) or value.shape[1:] != shape for value in state.values()):
            raise ValueError(f"{kept} for every encoder, found {sorted(state)}")
        self._averages = {encoder: averages.clone() for encoder, averages in state.items()}
