"""SynIB: no certainty where a modality is withheld (Kontras et al., 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Losses, Method, Piece, finite, wide
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("synib", search={"weight": Range(0.1, 3.0), "rate": Range(0.1, 0.5)})
class SynIB(Method):
    """SynIB (Kontras et al., 2026): no certainty where a modality is withheld.

    Synergistic information bottleneck (Kontras, Gagaleska, Strypsteen, Chatzichristos, Blaschko, De Vos & Liang,
    "SynIB: Informational Bottleneck for Maximizing Synergy in Multimodal Learning", 2026, arXiv:2606.09853):

        L + lambda sum_m KL(softmax(z_m) || uniform),

    z_m the joint logits where each coordinate of modality m's features is replaced, with probability p, by that of
    another sample of the batch. The own heads learn on features that count as constants, as in the published code.

    Followed is the paper; the code draws its targets from three other families, and its default schedule of p divides
    zero by zero. There features go through a layer norm first; here they are corrupted as the fusion reads them. The
    fusion runs M times more. With several processes the other sample is one of the same process.

    Args:
        weight: lambda, 1 for CREMA-D in the published code.
        rate: p; 0.2 is the least rate there.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "it withholds modalities itself"}

    def __init__(self, weight: float = 1.0, rate: float = 0.2) -> None:
        super().__init__(OneJoint())
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must lie between 0 and 1, found {rate}")
        self.weight, self.rate = finite("weight", weight), float(rate)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Keeps the fusion."""
        self.fuse = model.fusion

    def losses(self, piece: Piece) -> Losses:
        """The joint loss with its penalties, the unimodal ones as they are."""
        features = piece.output.features
        penalties = []
        for name, value in features.items():
            # the batch is shuffled: its next row is any other sample
            replaced = torch.where(torch.rand_like(value) < self.rate, value.roll(1, 0), value)
            penalties.append(certainty_left(self.fuse({**features, name: replaced})))
        return Losses(piece.losses.joint + self.weight * torch.stack(penalties).sum(), piece.losses.unimodal)


def certainty_left(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform), the mean over the batch of logits [B, C]."""
    logs = F.log_softmax(wide(logits), 1)
    uniform = torch.full_like(logs, 1 / logs.shape[1])
    return F.kl_div(uniform.log(), logs, reduction="batchmean", log_target=True)
