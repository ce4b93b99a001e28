"""Training methods: what is minimised, how gradients are integrated and modulated, what happens between epochs."""

from mmpareto.methods.base import (
    Boundary,
    Losses,
    Method,
    MethodError,
    Piece,
    Trainer,
    cross_entropies,
)
from mmpareto.methods.registry import METHODS, build_method, described_options, method_options

__all__ = [
    "METHODS",
    "Boundary",
    "Losses",
    "Method",
    "MethodError",
    "Piece",
    "Trainer",
    "build_method",
    "cross_entropies",
    "described_options",
    "method_options",
]
