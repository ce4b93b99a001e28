"""What the figures of a report have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

__all__ = ["PANEL_HEIGHT", "WIDTH", "Drawing", "colour", "listed", "plt", "short"]

WIDTH, PANEL_HEIGHT = 9.0, 3.1  # inches


@dataclass(frozen=True)
class Drawing:
    """A figure, what it shows in words, and what each mark in it is."""

    name: str
    title: str
    figure: Figure
    alt: str
    caption: str


def colour(place: int) -> str:
    """The colour of a row of the table, by its place."""
    return f"C{place % 10}"


def short(label: str, most: int = 60) -> str:
    """A label cut to a length that a legend can hold."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
