"""A method that counts its boundaries, and asks its own process to end in the middle of an epoch."""

from __future__ import annotations

import os
import signal

import torch

from mmpareto.integration import OneJoint
from mmpareto.methods import Boundary, Losses, Method, Piece


class Counting(Method):
    """One joint loss.

    stop_after  batches in this process; then SIGTERM.
    """

    def __init__(self, stop_after: int = 0) -> None:
        super().__init__(OneJoint())
        self.stop_after, self.batches = stop_after, 0
        self.state["calls"] = torch.zeros((), dtype=torch.int64)

    def boundary(self, now: Boundary) -> dict[str, float]:
        self.state["calls"] += 1
        return {}

    def losses(self, piece: Piece) -> Losses:
        self.batches += 1
        if self.batches == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return piece.losses

    def figures(self) -> dict[str, float]:
        return {"calls": float(self.state["calls"])}
