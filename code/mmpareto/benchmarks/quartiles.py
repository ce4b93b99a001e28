"""Repeated measurements in three numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def ratio_text(value: Sequence[float] | None) -> str:
    """Quartiles as `median (lower-upper)`."""
    return "-" if value is None else f"{value[1]:.2f} ({value[0]:.2f}-{value[2]:.2f})"
