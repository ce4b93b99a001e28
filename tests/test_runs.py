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


def test_a_folder_of_runs_is_refused_with_one_of_them(tmp_path: Path) -> None:
    for seed in (1, 0):
        (tmp_path / "digits" / "mmpareto" / f"seed{seed}").mkdir(parents=True)
        (tmp_path / "digits" / "mmpareto" / f"seed{seed}" / "config.yaml").touch()
    for folder in (tmp_path, tmp_path / "digits", tmp_path / "digits" / "mmpareto"):
        with pytest.raises(RunError, match=r"give a run directory, such as .*/digits/mmpareto/seed0$"):
            RunDirectory(folder).read_config()
