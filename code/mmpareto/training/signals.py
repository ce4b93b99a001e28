"""Signals that end a run. PyTorch, which takes seconds to import, is not needed to take them."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from mmpareto.startup import SIGNALS


class Interrupted(BaseException):
    """A signal asked the run to end; no error, so `except Exception` lets it pass.

    number  of the signal.
    again   whether it came a second time, and ended the run at once.
    """

    def __init__(self, number: int, again: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.again = number, again


class Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP end the run by `Interrupted`.

    At once until `defer` is called: nothing is lost by then. Afterwards a signal only sets `number`, and the trainer
    ends at the next safe point; a second one ends it at once. Signals within REPEAT seconds of the first are the same
    request: torchrun and Slurm pass on what a terminal has already sent to every process. A SIGHUP that is ignored (by
    nohup) stays ignored.
    """

    REPEAT = 2.0

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def defer(self) -> None:
        """From now on leave it to the trainer when to end.

        Raises Interrupted where a signal came before.
        """
        self._deferring = True
        if self.number is not None:
            raise Interrupted(self.number)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if not self._deferring:
                raise Interrupted(number)
        elif time.monotonic() - self._since > self.REPEAT:
            raise Interrupted(number, again=True)
