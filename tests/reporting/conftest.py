"""What holds for the tests of reports."""

from __future__ import annotations

import pytest

from mmpareto.reporting import charts


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files in the place of a report's figures, and no library in its page: both take seconds."""
    monkeypatch.setattr(charts, "files", lambda specification: dict.fromkeys(("svg", "pdf", "png"), b""))
    monkeypatch.setattr(charts, "script", lambda: "")
