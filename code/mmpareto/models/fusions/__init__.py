"""Fusions: the features of all modalities -> joint logits. One file per family; `FUSIONS` knows them by name."""

from mmpareto.models.fusions.additive import ConcatFusion as ConcatFusion
from mmpareto.models.fusions.additive import CosineFusion as CosineFusion
from mmpareto.models.fusions.base import FUSIONS as FUSIONS
from mmpareto.models.fusions.base import Present as Present
from mmpareto.models.fusions.ensemble import BoostedSum as BoostedSum
from mmpareto.models.fusions.ensemble import EnsembleFusion as EnsembleFusion
