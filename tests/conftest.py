"""What holds for all tests."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Iterator

import pytest

# A shell that starts the suite in the background has it ignore SIGINT, nohup SIGHUP, and every process that tests start
# and signal would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="module")
def _end_loader_processes() -> Iterator[None]:
    """End loader processes that a file's tests leave in reference cycles.

    They are not killed: PyTorch takes a loader process that dies by a signal for a fault of whatever runs then.
    """
    yield
    if multiprocessing.active_children():
        gc.collect()
