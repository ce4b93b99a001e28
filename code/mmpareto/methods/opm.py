"""OPM: the features of the modality ahead are dropped at times (Wei et al., TPAMI 2024)."""

import sys
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Losses, Piece, SharedDraws
from mmpareto.methods.shared import Windowed, finite, late, part_scores, whole
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register(
    "opm", search={"base": Range(0.1, 0.8), "strength": Range(0.2, 1.0), "warm_up_epochs": Range(0, 6, log=False)}
)
class OPM(Windowed, SharedDraws):
    """OPM (Wei et al., TPAMI 2024): the features of the modality ahead are dropped at times.

    On-the-fly prediction modulation (Wei, Hu, Du & Wen, "On-the-fly Modulation for Balanced Multimodal Learning", TPAMI
    2024): one joint loss. A batch is modulated with probability p. In it each sample's feature of modality m is dropped
    with probability

        q_m = q (1 + lambda tanh(rho_m - 1)) where rho_m > 1, else 0, at most 1,
        rho_m = S_m / sum of S over the others,   S_m as in OGM,

    and all features are divided by 1 - sum_m q_m D_m / sum_m D_m. At most one modality is ahead of all others together,
    so every sample keeps a feature. As in the published code the division is by a mean over all widths D: modality m's
    features keep (1 - q_m) / (1 - theta) of their mean, not 1. Evaluation is on plain features.

    Whether a batch is modulated is drawn alike on all processes; which features are dropped is drawn on each one.

    Args:
        base: q, 0.5 in the published code.
        strength: lambda, 0.5 there.
        rate: p, 0.7 there; 0 is the joint loss.
        warm_up_epochs: epochs from the first on without modulation, 6 there.
    """

    changes = "features or joint head"
    requires: ClassVar[frozenset[str]] = frozenset({"contributions", "features"})
    refuses: ClassVar[Mapping[str, str]] = {
        **SharedDraws.refuses,
        "accumulate": "its rates are the whole batch's, and must be known before its first piece's forward pass",
        "missing": "it drops features of samples that have all modalities",
    }

    def __init__(self, base: float = 0.5, strength: float = 0.5, rate: float = 0.7, warm_up_epochs: int = 6) -> None:
        super().__init__(OneJoint())
        self.base, self.strength = finite("base", base, most=1), finite("strength", strength)
        self.rate, self.warm_up_epochs = finite("rate", rate, most=1), whole("warm_up_epochs", warm_up_epochs)
        self.acting = range(self.warm_up_epochs + 1, sys.maxsize)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Prepare the modulation."""
        super().setup(model, seed, epochs)
        self.widths = [float(model.widths[name]) for name in self.names]

    def idle(self, epochs: int) -> str:
        """Where all epochs are warm-up."""
        return late("modulates", "warm_up_epochs", self.warm_up_epochs, epochs)

    def losses(self, piece: Piece) -> Losses:
        """The joint loss on the features that are left, the unimodal ones as they are."""
        features, label = piece.output.features, piece.label
        with torch.no_grad():
            scores = self.average(part_scores(self.model, piece) * piece.share)
            rates = drop_rates(scores, self.base, self.strength)
            coin = torch.empty((), device=label.device).uniform_(generator=self._generator)
            executed = (coin < self.rate) & self.state["active"]
            kept = torch.rand(len(features), len(label), device=label.device) >= rates[:, None]
            kept = kept | ~executed
            scale = torch.where(executed, 1 / (1 - share_dropped(rates, self.widths)), 1.0)
        dropped = {
            name: value * (keep[:, None] * scale).to(value.dtype)
            for keep, (name, value) in zip(kept, features.items(), strict=True)
        }
        return Losses(F.cross_entropy(self.model.fusion(dropped), label), piece.losses.unimodal)


def drop_rates(scores: Tensor, base: float, strength: float) -> Tensor:
    """q_m [M] from the scores S_m [M]; see OPM."""
    ratios = scores / (scores.sum() - scores).clamp(min=torch.finfo(scores.dtype).tiny)
    return torch.where(ratios > 1, base * (1 + strength * torch.tanh(ratios - 1)), 0.0).clamp(max=1)


def share_dropped(rates: Tensor, widths: list[float]) -> Tensor:
    """theta, the share of all features that is dropped on average; below 1."""
    return torch.stack([rates[k] * width for k, width in enumerate(widths)]).sum() / sum(widths)
