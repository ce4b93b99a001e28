"""Training methods: what is minimised, how gradients are integrated and modulated, what happens between epochs."""

from mmpareto.methods.base import (
    METHODS,
    Boundary,
    Engine,
    Losses,
    Method,
    MethodError,
    Piece,
    build_method,
    cross_entropies,
)

__all__ = [
    "METHODS",
    "Boundary",
    "Engine",
    "Losses",
    "Method",
    "MethodError",
    "Piece",
    "build_method",
    "cross_entropies",
]
