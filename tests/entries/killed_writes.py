"""Runs commands in forked processes, each sent a signal at its k-th write of a file.

See test_faults.py and test_kills.py.

python killed_writes.py FOLDER FLAG ...      trains; prints how many writes there are; FOLDER/k holds the k-th run
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from mmap import mmap
from typing import Any

from mmpareto import startup

MODULES = ("mmpareto.datasets.manifest", "mmpareto.reporting.figures", "torch._dynamo", "torch.utils.tensorboard")
writes = mmap(-1, 1)  # of the last command that ended by itself; shared with the processes


def status(command: str, flags: list[str], kill_at: int, number: int = signal.SIGKILL) -> int:
    """The exit status of a command, sent a signal just before it calls one of three functions for the `kill_at`th time.

    Negative where it died by a signal.
    """
    entry = importlib.import_module(f"mmpareto.cli.{command}").main
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    calls = count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            writes[0] = next(calls)
            if writes[0] == kill_at:
                os.kill(os.getpid(), number)
            return function(*arguments, **named)

        return call

    for name in ("fsync", "replace", "link"):
        setattr(os, name, counted(getattr(os, name)))
    sys.argv = [f"{command}.py", *flags]
    try:
        startup.run(entry)
    except SystemExit as ending:
        os._exit(ending.code if isinstance(ending.code, int) else 1)


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)  # once, not in each process
    for k in count(1):
        flags = [*sys.argv[2:], "--resume", "auto", "--ckpt_path", f"{sys.argv[1]}/{k}"]
        ended = status("train", flags, k)
        if ended == 0:
            print(f"writes: {k - 1}", flush=True)
            break
        if ended != -signal.SIGKILL or status("train", flags, 0) != 0:
            sys.exit(f"write {k}: {ended}")
