"""The run directory."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from mmpareto.runs import RunDirectory, RunError


def test_a_copy_in_another_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    """The number of a file descriptor means another file there, which `unlock` must not close."""
    directory = RunDirectory(tmp_path)
    directory.lock()
    copy = pickle.loads(pickle.dumps(directory))
    copy.unlock()
    with pytest.raises(RunError, match="another process is training"):
        RunDirectory(tmp_path).lock()
    directory.unlock()
    again = RunDirectory(tmp_path)
    again.lock()
    again.unlock()
    again.unlock()  # nothing is kept any more
    assert os.listdir(tmp_path) == []
