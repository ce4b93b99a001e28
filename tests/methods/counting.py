"""Methods that count, and ask their own process to end in the middle of an epoch or of an estimate."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from mmpareto.datasets import DatasetError
from mmpareto.integration import OneJoint
from mmpareto.methods import Boundary, Losses, Method, Piece
from mmpareto.methods.gblending import GBlending
from mmpareto.models import MultimodalModel


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
    """G-Blending whose process gets SIGTERM after so many batches of its copies' training; tests set and read both
    numbers.

    unreadable  in the place of the signal, the data cannot be read.
    """

    batches = stop_after = 0
    unreadable = False

    def __init__(self) -> None:
        super().__init__(estimate_epochs=3, held_out=0.3)

    def boundary(self, now: Boundary) -> dict[str, float]:
        engine: Any = now.engine
        plain_stop, plain_fit = engine.stop, engine.fit

        def stop() -> None:
            Stopped.batches += 1
            if Stopped.batches == Stopped.stop_after:
                if Stopped.unreadable:
                    raise DatasetError("a clip cannot be read")
                os.kill(os.getpid(), signal.SIGTERM)
            plain_stop()

        def fit(*arguments: Any) -> MultimodalModel:
            engine.stop = stop
            try:
                return plain_fit(*arguments)
            finally:
                engine.stop = plain_stop

        engine.fit = fit
        try:
            return super().boundary(now)
        finally:
            engine.fit = plain_fit
