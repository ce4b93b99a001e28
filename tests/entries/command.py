"""Runs the project's commands as a person does: in a process of their own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command, without a terminal, and returns what it printed; the tests' Python is the active one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def inside(entry: Callable[[list[str]], int], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs an entry in this process, which saves seconds of imports a case; as `run` otherwise."""
    printed, said = io.StringIO(), io.StringIO()
    flags = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            status = entry(flags)
        except SystemExit as ended:  # argparse
            status = int(ended.code or 0)
    return subprocess.CompletedProcess(flags, status, printed.getvalue(), said.getvalue())


def refused(entry: Callable[[list[str]], int], *arguments: str | Path) -> str:
    """What an entry says where it ends with status 2; in this process."""
    done = inside(entry, *arguments)
    assert done.returncode == 2, done.stderr
    return done.stderr


def train(*flags: str | Path, figures: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code/train.py with the given flags; it draws figures only where they are asked for."""
    more = () if figures else ("--no-figures",)
    return run(sys.executable, ROOT / "code" / "train.py", *flags, *more, **environment)
