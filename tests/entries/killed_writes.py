"""Trains in forked processes, the k-th of them killed at its k-th write of a file and then resumed; see test_faults.py.

python killed_writes.py FOLDER FLAG ...      prints how many writes there are; FOLDER/k holds the k-th run
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import mmpareto.reporting.figures  # noqa: F401  # imported once, not in each process
import train


def status(flags: list[str], kill_at: int) -> int:
    """The exit status of train.py, killed (a negative number) just before it calls one of three functions again."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    calls = count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if next(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in ("fsync", "replace", "link"):
        setattr(os, name, counted(getattr(os, name)))
    os._exit(train.entry(flags))


if __name__ == "__main__":
    for k in count(1):
        flags = [*sys.argv[2:], "--resume", "auto", "--ckpt_path", f"{sys.argv[1]}/{k}"]
        ended = status(flags, k)
        if ended == 0:
            print(f"writes: {k - 1}", flush=True)
            break
        if ended != -signal.SIGKILL or status(flags, 0) != 0:
            sys.exit(f"write {k}: {ended}")
