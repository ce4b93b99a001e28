"""MLB: losses and gradients of each modality weighed by its accuracy (Kontras et al., BMVC 2024)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Losses, Method, Piece
from mmpareto.methods.shared import certainty, contributions_of, finite, modulated
from mmpareto.registry import Range


@METHODS.register("mlb", search={"alpha": Range(0.3, 1.0), "beta": Range(0.5, 5.0)})
class MLB(Method):
    """MLB (Kontras et al., BMVC 2024): slow modalities learn faster, fast ones slower.

    Multi-loss balancing (Kontras, Chatzichristos, Blaschko & De Vos, "Improving Multimodal Learning with Multi-Loss
    Gradient Modulation", BMVC 2024): the sum of the joint loss and the unimodal ones is minimised, and the gradients of
    encoder m, of its own head and of its block W_m of the joint head count kappa_m times,

        kappa_m = 1 + tanh(alpha (rho_m - 1))             where rho_m <= 1,
                  1 + (beta - 1) tanh(alpha (rho_m - 1))  else,
        rho_m   = mean of s over the other modalities / s_m,   s_m = mean over the batch of softmax(u_m)[label],

    u_m the logits of the own head. The joint head's bias is left alone. With equal scores this is the uniform sum. The
    joint logits keep their value; kappa acts on the gradient of the modality's part of them, without the bias.

    Public code has the branch of beta in one of its modes alone; with beta = 2 both branches are one rule.

    Args:
        alpha: the modulation's strength, 0.8 in the published code (0.5 to 5 by dataset).
        beta: the greatest factor; 2 in the published code (0.5 to 10 by dataset).
    """

    changes = "size of an encoder's gradient or rate"
    requires: ClassVar[frozenset[str]] = frozenset({"contributions"})
    refuses: ClassVar[Mapping[str, str]] = {
        "accumulate": "its factors are the whole batch's, and must be known before its first piece's backward pass",
        "missing": "its scores compare modalities on the same samples",
    }

    def __init__(self, alpha: float = 0.8, beta: float = 2.0) -> None:
        super().__init__(Uniform())
        self.alpha, self.beta = finite("alpha", alpha), finite("beta", beta)

    def losses(self, piece: Piece) -> Losses:
        """The plain sum, its gradients modulated."""
        output = piece.output
        with torch.no_grad():
            scores = self.average(certainty(output.unimodal.values(), piece.label) * piece.share)
            factors = coefficients(scores, self.alpha, self.beta)
        contributions = contributions_of(self.model)
        parts = contributions(output.features)
        biases = contributions({name: torch.zeros_like(value) for name, value in output.features.items()})
        joint = modulated(output.joint, [parts[name] - biases[name] for name in output.unimodal], factors)
        losses = Losses(F.cross_entropy(joint, piece.label), piece.losses.unimodal)
        return losses.weighted(torch.cat((torch.ones_like(factors[:1]), factors)))


def coefficients(scores: Tensor, alpha: float, beta: float) -> Tensor:
    """kappa_m [M] from the scores s_m [M]; see MLB."""
    others = (scores.sum() - scores) / (len(scores) - 1)
    turned = torch.tanh(alpha * (others / scores.clamp(min=torch.finfo(scores.dtype).tiny) - 1))
    return 1 + torch.where(turned > 0, beta - 1, 1.0) * turned
