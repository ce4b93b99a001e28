"""SynIB: no certainty where a modality is withheld (Kontras et al., 2026)."""

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from mmpareto.inputs import wide
from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Losses, Method, Piece
from mmpareto.methods.shared import beside, divergence, finite, one_of
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range

Target = Literal["uniform", "withheld", "gaussian", "dirichlet"]


@METHODS.register("synib", search={"weight": Range(0.1, 3.0), "rate": Range(0.1, 0.5)})
class SynIB(Method):
    """SynIB (Kontras et al., 2026): no certainty where a modality is withheld.

    Synergistic information bottleneck (Kontras, Gagaleska, Strypsteen, Chatzichristos, Blaschko, De Vos & Liang,
    "SynIB: Informational Bottleneck for Maximizing Synergy in Multimodal Learning", 2026, arXiv:2606.09853):

        L + lambda sum_m KL(softmax(z_m) || uniform),

    z_m the joint logits where each coordinate of modality m's features is replaced, with probability p, by that of
    another sample of the batch. The own heads learn on features that count as constants, as in the published code.

    Followed is the paper. The code puts another divergence in this place, which `target` chooses:

        withheld    KL(softmax(u_m) || softmax(z_m)), u_m the logits of modality m's own head on its whole features
        gaussian    KL(N(z_m, exp(v)) || N(0, 1)) = sum over classes of (exp(v) + z_m^2 - 1 - v) / 2
        dirichlet   KL(Dir(1 + softplus(v)) || Dir(1)), in which the joint head has no part

    u_m is a constant; v is a linear map of the corrupted features side by side, which the joint head of `concat` reads
    too, and learns with the model. The code has a layer between features and both heads, normalises features by a layer
    norm first, and its default schedule of p divides zero by zero. The fusion runs M times more. With several processes
    or micro-batches the other sample is one of the same process and micro-batch; one of a single sample has no penalty.

    Args:
        weight: lambda; 1 for CREMA-D in the published scripts, where the target is withheld; 0.001 for UR-Funny and
            MUStARD, where it is gaussian, whose exp(v) diverges with a large weight.
        rate: p; 0.2 is the least rate there.
        target: uniform, withheld, gaussian (the code's default) or dirichlet.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "it withholds modalities itself"}

    def __init__(self, weight: float = 1.0, rate: float = 0.2, target: Target = "uniform") -> None:
        super().__init__(OneJoint())
        self.target = one_of("target", target, get_args(Target))
        self.weight, self.rate = finite("weight", weight), finite("rate", rate, most=1)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the linear map v, where the target has one."""
        super().setup(model, seed, epochs)
        if self.target in ("gaussian", "dirichlet"):
            self._head = beside(model, seed, lambda: nn.Linear(sum(model.widths.values()), model.classes))

    def losses(self, piece: Piece) -> Losses:
        """The joint loss with its penalties, the unimodal ones as they are."""
        features = piece.output.features
        if len(piece.label) == 1:
            return piece.losses
        penalties = []
        for name, value in features.items():
            # the batch is shuffled: its next row is any other sample
            replaced = torch.where(torch.rand_like(value) < self.rate, value.roll(1, 0), value)
            penalties.append(self._penalty({**features, name: replaced}, piece.output.unimodal[name].detach()))
        return Losses(piece.losses.joint + self.weight * torch.stack(penalties).sum(), piece.losses.unimodal)

    def _penalty(self, features: Mapping[str, Tensor], withheld: Tensor) -> Tensor:
        """The divergence at corrupted features; `withheld` are the own head's logits on the whole ones."""
        if self.target == "dirichlet":
            return evidence(self._head(torch.cat([*features.values()], 1)))
        logits = self.model.fusion(features)
        if self.target == "gaussian":
            return spread(logits, self._head(torch.cat([*features.values()], 1)))
        if self.target == "uniform":
            return divergence(logits, torch.zeros_like(logits))
        return divergence(withheld, logits)


def spread(logits: Tensor, values: Tensor) -> Tensor:
    """KL(N(logits, exp(values)) || N(0, 1)) summed over classes, the mean over the batch; both [B, C]."""
    logits, values = wide(logits), wide(values)
    return 0.5 * (values.exp() + logits**2 - 1 - values).sum(1).mean()


def evidence(values: Tensor) -> Tensor:
    """KL(Dir(1 + softplus(values)) || Dir(1)), the mean over the batch of values [B, C]."""
    concentrations = 1 + F.softplus(wide(values))
    pair = [Dirichlet(c, validate_args=False) for c in (concentrations, torch.ones_like(concentrations))]
    return kl_divergence(*pair).mean()
