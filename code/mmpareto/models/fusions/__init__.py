"""Fusions: the features of all modalities -> joint logits. One file per family; `FUSIONS` knows them by name."""

from mmpareto.models.fusions.additive import ConcatFusion, CosineFusion, SumFusion
from mmpareto.models.fusions.base import FUSIONS, Present, mask_of, used
from mmpareto.models.fusions.ensemble import BoostedSum, EnsembleFusion

__all__ = [
    "FUSIONS",
    "BoostedSum",
    "ConcatFusion",
    "CosineFusion",
    "EnsembleFusion",
    "Present",
    "SumFusion",
    "mask_of",
    "used",
]
