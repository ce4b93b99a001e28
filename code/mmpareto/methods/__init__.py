"""Training methods: what is minimised, how gradients are integrated and modulated, what happens between epochs."""

from mmpareto.methods.base import METHODS, Boundary, Engine, Method, MethodError, Piece, Turn, build_method
from mmpareto.models import Losses, cross_entropies

__all__ = [
    "METHODS",
    "Boundary",
    "Engine",
    "Losses",
    "Method",
    "MethodError",
    "Piece",
    "Turn",
    "build_method",
    "cross_entropies",
]
