"""Real data to test on, where it is at hand; it is no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real(*parts: str) -> Path:
    """A path below the folder of real data ($MMPARETO_TEST_DATA, else ../shared/data); skips the test without it."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("MMPARETO_TEST_DATA", default)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data at hand ({'/'.join(parts)}); MMPARETO_TEST_DATA says where it is")
    return path
