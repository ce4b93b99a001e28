"""AGM: gradients modulated by each modality's Shapley part of the logits (Li et al., ICCV 2023)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.evaluation.missing import subsets
from mmpareto.evaluation.shapley import shapley
from mmpareto.inputs import wide
from mmpareto.integration import OneJoint
from mmpareto.integration.gramian import without_autocast
from mmpareto.methods.base import METHODS, Losses, Piece
from mmpareto.methods.shared import Windowed, finite, modulated, whole
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("agm", search={"alpha": Range(0.3, 3.0)})
class AGM(Windowed):
    """AGM (Li et al., ICCV 2023): gradients modulated by each modality's Shapley part of the logits.

    Adaptive gradient modulation (Li, Li, Hu, Lei, Li & Zhang, "Boosting Multi-modal Model Performance with Adaptive
    Gradient Modulation", ICCV 2023): one joint loss, whose gradient into modality m's part of the logits counts kappa_m
    times.

        phi_m    Shapley value of modality m for the logits F(S) of the subsets S of modalities, F of none being 0
        s_m      = mean(-log softmax(phi_m)[label])
        r_m      = exp(M / (M - 1) (mean(s) - s_m));   tau_m the same of the mean of s over the steps before
        kappa_m  = exp(alpha min(tau_m - r_m, 10)), 7 for M > 2: a modality that is ahead by more than usual learns less

    A subset is made by zero features of the others, at the price of a pass through the fusion for each: 2^M - 2 more.
    The logits keep their value, kappa acts on their gradient alone; with kappa = 1 this is the joint loss. The
    published code runs the encoders again on zero inputs, one of the passes for nothing, and waits for the device at
    every sample; it also clips the whole gradient to norm 1 in some steps, which `--clip_grad 1` does in all.

    Args:
        alpha: 1 in the published code; its authors tuned 1.5 to 4 by dataset.
        modulation_epochs: epochs from the first on that are modulated; 20 in the published code.
    """

    changes = "size of an encoder's gradient or rate"
    requires = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {
        "missing": "a modality that a sample lacks has no part of its logits to be modulated by",
        "accumulate": "its coefficients are the whole batch's, and are needed before the first piece's backward pass",
    }

    def __init__(self, alpha: float = 1.0, modulation_epochs: int = 20) -> None:
        super().__init__(OneJoint())
        self.alpha = finite("alpha", alpha)
        self.acting = range(1, whole("modulation_epochs", modulation_epochs) + 1)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Begin the running means."""
        super().setup(model, seed, epochs)
        self.state["mean"] = self.like.new_zeros(len(self.names))
        self.state["steps"] = torch.zeros((), device=self.like.device)

    def losses(self, piece: Piece) -> Losses:
        """The joint cross-entropy with its gradient modulated, the unimodal ones as they are."""
        whole, fuse = piece.output.joint, self.model.fusion
        # In float32: the gradients of the subsets' logits cancel in all features but a modality's own. Their rounding
        # in half precision, times kappa, would reach the other encoders. kappa may also be too large for float16.
        with without_autocast(whole.device):
            features = {name: wide(feature) for name, feature in piece.output.features.items()}
            if whole.dtype != wide(whole).dtype:
                whole = fuse(features)
            logits = {present: fuse(features, present=present) for present in subsets(self.names)[1:-1]}
        logits |= {frozenset(): torch.zeros_like(whole), frozenset(self.names): whole}
        parts = shapley(self.names, logits)  # {modality: [B, C]}
        with torch.no_grad():
            answer = piece.label.unsqueeze(1)
            certain = torch.stack([F.log_softmax(wide(part), 1).gather(1, answer) for part in parts.values()])
            scores = self.average(-certain.clamp(min=math.log(1e-8)).mean((1, 2)) * piece.share)
            factors = kappa(scores, self.state["mean"], self.alpha)
            factors = torch.where(self.state["active"], factors, 1.0)
            usable = scores.isfinite().all()  # logits that overflowed leave the mean as it is
            self.state["steps"] += usable
            change = (scores - self.state["mean"]) / self.state["steps"]
            self.state["mean"] += torch.where(usable, change, 0.0).to(self.state["mean"])
        return Losses(F.cross_entropy(modulated(whole, parts.values(), factors), piece.label), piece.losses.unimodal)


def kappa(scores: Tensor, usual: Tensor, alpha: float) -> Tensor:
    """kappa_m [M] of the scores s_m [M] and their running means [M]; see AGM."""
    count = len(scores)

    def discrepancy(values: Tensor) -> Tensor:
        return torch.exp(count / (count - 1) * (values.mean() - values))

    most = 10.0 if count == 2 else 7.0  # of the published code
    return torch.exp((alpha * (discrepancy(usual) - discrepancy(scores)).clamp(max=most)).clamp(max=80.0))  # finite
