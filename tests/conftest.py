"""What holds for all tests."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the suite in the background has it ignore SIGINT, nohup SIGHUP, and every process that tests start
# and signal would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


# the files whose tests take longest, by their beginnings
LONG = ("training/test_training_processes", "entries", "datasets/test_preparation", "api", "reporting", "integration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first: processes that share the files end together."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(here).as_posix()
        return next((number for number, start in enumerate(LONG) if name.startswith(start)), len(LONG))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Keep Python from looking for cycles in all that is imported by now, a third of a second each time."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _end_loader_processes() -> Iterator[None]:
    """End loader processes that a file's tests leave in reference cycles.

    They are not killed: PyTorch takes a loader process that dies by a signal for a fault of whatever runs then.
    """
    yield
    if multiprocessing.active_children():
        gc.collect()


@pytest.fixture(autouse=True)
def _forget_modules_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget modules that a test wrote and imported: the next test may write another of the same name."""
    before = set(sys.modules)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]
