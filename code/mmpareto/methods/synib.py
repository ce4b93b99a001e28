"""SynIB: no certainty where a modality is withheld (Kontras et al., 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Losses, Method, Piece
from mmpareto.methods.shared import finite
from mmpareto.models import MultimodalModel
from mmpareto.models.losses import wide
from mmpareto.registry import Range

Target = Literal["uniform", "withheld"]


@METHODS.register("synib", search={"weight": Range(0.1, 3.0), "rate": Range(0.1, 0.5)})
class SynIB(Method):
    """SynIB (Kontras et al., 2026): no certainty where a modality is withheld.

    Synergistic information bottleneck (Kontras, Gagaleska, Strypsteen, Chatzichristos, Blaschko, De Vos & Liang,
    "SynIB: Informational Bottleneck for Maximizing Synergy in Multimodal Learning", 2026, arXiv:2606.09853):

        L + lambda sum_m KL(softmax(z_m) || uniform),

    z_m the joint logits where each coordinate of modality m's features is replaced, with probability p, by that of
    another sample of the batch. The own heads learn on features that count as constants, as in the published code.

    Followed is the paper. The code draws its targets from other families: of these `target=withheld` is built, which
    takes KL(softmax(u_m) || softmax(z_m)), u_m the logits of modality m's own head on its whole features, a constant.
    Left out are a normal distribution, whose variances need a head of their own, and a Dirichlet distribution. The
    code's default schedule of p divides zero by zero. There features go through a layer norm first; here they are
    corrupted as the fusion reads them. The fusion runs M times more. With several processes the other sample is one of
    the same process.

    Args:
        weight: lambda, 1 for CREMA-D in the published code.
        rate: p; 0.2 is the least rate there.
        target: uniform or withheld.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "it withholds modalities itself"}

    def __init__(self, weight: float = 1.0, rate: float = 0.2, target: Target = "uniform") -> None:
        super().__init__(OneJoint())
        if target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}, found {target!r}")
        self.target = target
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
            logits = self.fuse({**features, name: replaced})
            if self.target == "uniform":
                penalties.append(certainty_left(logits))
            else:
                penalties.append(divergence(piece.output.unimodal[name].detach(), logits))
        return Losses(piece.losses.joint + self.weight * torch.stack(penalties).sum(), piece.losses.unimodal)


def certainty_left(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform), the mean over the batch of logits [B, C]."""
    logs = F.log_softmax(wide(logits), 1)
    uniform = torch.full_like(logs, 1 / logs.shape[1])
    return F.kl_div(uniform.log(), logs, reduction="batchmean", log_target=True)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)), the mean over the batch of logits [B, C]."""
    logs, targets = F.log_softmax(wide(logits), 1), F.log_softmax(wide(target), 1)
    return F.kl_div(logs, targets, reduction="batchmean", log_target=True)
