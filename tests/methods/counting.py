"""Methods that count, and ask their own process to end in the middle of an epoch or of an estimate."""

from __future__ import annotations

import os
import signal

import torch

from mmpareto.datasets import DatasetError
from mmpareto.integration import OneJoint
from mmpareto.methods import Boundary, Losses, Method, Piece
from mmpareto.methods.gblending import GBlending


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


class Stopped(GBlending):
    """G-Blending whose process gets SIGTERM after so many batches of an estimate; tests set and read both numbers.

    unreadable  in the place of the signal, the data cannot be read.
    """

    batches = stop_after = 0
    unreadable = False

    def __init__(self) -> None:
        super().__init__(estimate_epochs=3, held_out=0.3)

    def boundary(self, now: Boundary) -> dict[str, float]:
        asked = now.trainer.stop  # type: ignore[attr-defined]

        def stop() -> None:
            Stopped.batches += 1
            if Stopped.batches == Stopped.stop_after:
                if Stopped.unreadable:
                    raise DatasetError("a clip cannot be read")
                os.kill(os.getpid(), signal.SIGTERM)
            asked()

        now.trainer.stop = stop  # type: ignore[attr-defined]
        try:
            return super().boundary(now)
        finally:
            now.trainer.stop = asked  # type: ignore[attr-defined]
