"""PMR: prototypes that rebalance how fast modalities learn (Fan et al., CVPR 2023)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.inputs import wide
from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Boundary, Losses, Method, Piece
from mmpareto.methods.shared import finite, whole, without_effect
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("pmr", search={"alpha": Range(0.1, 3.0), "mu": Range(0.001, 0.1)})
class PMR(Method):
    """PMR (Fan et al., CVPR 2023): prototypes that pull slow modalities.

    Prototypical modal rebalance (Fan, Xu, Wang, Wang & Guo, "PMR: Prototypical Modal Rebalance for Multimodal
    Learning", CVPR 2023, Equations 9 to 13). With a prototype per class and modality, distances d_m [B, C] of a
    batch's features to them, q_m = softmax(-d_m) and s_m the mean of q_m[label], the joint loss is

        L + alpha sum_m beta_m CE(-d_m, label) - mu sum_m gamma_m H(q_m),
        beta_m = clip(s_max / s_m - 1, 0, 1),   gamma_m = clip(s_m / s_min - 1, 0, 1):

    slow modalities are drawn to their prototypes, and, in the first epochs, a fast one is kept undecided (H, entropy).
    Of two modalities these are the paper's coefficients; of more this project's reading. The published code switches
    alpha on and off instead of clipping, has no entropy term, and gives NaN for a class that was not among the samples
    (here its prototype stays; one that was never seen is the mean of all features).

    Args:
        alpha: weight of the prototypes' cross-entropy, 1 in the published code.
        mu: weight of the entropy term; 0 leaves it out, as the published code does.
        entropy_epochs: epochs with the entropy term; this project's choice, the paper says only "the first".
        modulation_epochs: epochs with any of it; 101 in the published code.
        momentum: of the prototypes: c <- momentum c + (1 - momentum) class mean, 0.2 in the published code.
        fraction: of the training samples, drawn before every epoch, for the class means; 0.1 there.
    """

    refuses: ClassVar[Mapping[str, str]] = {
        "missing": "its coefficients compare the modalities on the same samples",
        "accumulate": "its coefficients are the whole batch's, and are needed before the first piece's backward pass",
    }

    def __init__(
        self,
        alpha: float = 1.0,
        mu: float = 0.0,
        entropy_epochs: int = 10,
        modulation_epochs: int = 101,
        momentum: float = 0.2,
        fraction: float = 0.1,
    ) -> None:
        super().__init__(OneJoint())
        if not 0 <= momentum < 1 or not 0 < fraction <= 1:
            raise ValueError(f"momentum must be in [0, 1) and fraction in (0, 1], found {momentum} and {fraction}")
        self.alpha, self.mu, self.momentum, self.fraction = (
            finite("alpha", alpha),
            finite("mu", mu),
            momentum,
            float(fraction),
        )
        self.entropy_epochs = whole("entropy_epochs", entropy_epochs)
        without_effect(PMR, "entropy_epochs", entropy_epochs, not mu, "mu")
        self.modulation_epochs = whole("modulation_epochs", modulation_epochs)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make room for the prototypes."""
        super().setup(model, seed, epochs)
        for name in self.names:
            self.state[f"prototypes_{name}"] = self.like.new_zeros(model.classes, model.widths[name])
        self.state["known"] = self.like.new_zeros(model.classes, dtype=torch.bool)
        self.state["weights"] = self.like.new_zeros(2, dtype=torch.float32)  # alpha and mu in this epoch

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Move the prototypes to where the features are now."""
        alpha = self.alpha if now.epoch <= self.modulation_epochs else 0.0
        mu = self.mu if now.epoch <= min(self.entropy_epochs, self.modulation_epochs) else 0.0
        self.state["weights"].copy_(torch.tensor((alpha, mu)))
        if not alpha and not mu:
            return {}
        known = self.state["known"]
        counts = torch.zeros(len(known), device=known.device)
        sums = {name: torch.zeros_like(self.state[f"prototypes_{name}"]) for name in self.names}
        for output, label in now.engine.outputs(self.fraction):
            counts.index_add_(0, label, counts.new_ones(len(label)))
            for name in self.names:
                sums[name].index_add_(0, label, output.features[name].to(sums[name]))
        counts = now.engine.total(counts)
        present = counts > 0
        for name in self.names:
            total, old = now.engine.total(sums[name]), self.state[f"prototypes_{name}"]
            mean = total / counts.clamp(min=1)[:, None].to(total)
            moved = torch.where(known[:, None], self.momentum * old + (1 - self.momentum) * mean, mean)
            # a class that was never seen stands where all features do on average, neither near nor far
            middle = total.sum(0) / counts.sum().clamp(min=1)
            old.copy_(torch.where(present[:, None], moved, torch.where(known[:, None], old, middle)))
        known |= present
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The joint loss with the prototypes' terms, the unimodal ones as they are."""
        logits = torch.stack(
            [-distances(wide(piece.output.features[m]), self.state[f"prototypes_{m}"]) for m in self.names]
        )  # [M, B, C]
        logs = F.log_softmax(logits, -1)
        right = logs.gather(-1, piece.label.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)  # [M, B]
        slow, fast = coefficients(self.average(right.detach().exp().mean(1) * piece.share))
        alpha, mu = self.state["weights"].unbind()
        entropy = -(logs.exp() * logs).sum(-1).mean(1)
        extra = alpha * (slow * -right.mean(1)).sum() - mu * (fast * entropy).sum()
        return Losses(piece.losses.joint + extra, piece.losses.unimodal)


def distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """[B, C], of [B, D] to [C, D]; as |a - b|, since |a|^2 + |b|^2 - 2 a b loses all digits far from the origin."""
    return torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")


def coefficients(scores: Tensor) -> tuple[Tensor, Tensor]:
    """beta_m and gamma_m, [M] each, from the scores s_m [M]; see PMR."""
    scores = scores.clamp(min=torch.finfo(scores.dtype).tiny)
    return (scores.max() / scores - 1).clamp(0, 1), (scores / scores.min() - 1).clamp(0, 1)
