"""Runs the project's commands as a person does: in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
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


def train(*flags: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code/train.py with the given flags."""
    return run(sys.executable, ROOT / "code" / "train.py", *flags, **environment)
