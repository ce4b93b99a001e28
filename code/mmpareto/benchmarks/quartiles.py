"""Measurements that take turns, and their quartiles."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def in_turns(
    ways: Mapping[str, Callable[[int], None]], repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each way's epochs, after one that warms up."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for epoch in range(1, repetitions + 2):
        for way in sorted(ways, reverse=epoch % 2 == 0):
            started = time.perf_counter()
            ways[way](epoch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[way].append(time.perf_counter() - started)
    return {way: values[1:] for way, values in seconds.items()}


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def ratio_text(value: Sequence[float] | None) -> str:
    """Quartiles as `median (lower-upper)`."""
    return "-" if value is None else f"{value[1]:.2f} ({value[0]:.2f}-{value[2]:.2f})"
