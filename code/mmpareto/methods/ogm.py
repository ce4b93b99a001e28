"""OGM and OGM-GE: the gradient of the modality that is ahead is made smaller (Peng et al., CVPR 2022)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Losses, Piece, SharedDraws
from mmpareto.methods.shared import Windowed, finite, part_scores, whole
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("ogm", search={"alpha": Range(0.1, 1.0)})
class OGM(Windowed):
    """OGM (Peng et al., CVPR 2022): the gradient of the modality ahead is made smaller.

    On-the-fly gradient modulation (Peng, Wei, Deng, Wang & Hu, "Balanced Multimodal Learning via On-the-fly Gradient
    Modulation", CVPR 2022, Equations 8 to 10): one joint loss, and in encoder m

        g <- k_m g,   k_m = 1 - tanh(alpha rho_m) where rho_m > 1, else 1,
        rho_m = S_m / S_other,   S_m = sum over the batch of softmax(u_m)[label],

    u_m the part of the joint logits that comes from modality m, with its share of the bias. Of more than two modalities
    rho_m is the mean of S_m / S_j over the others j, as the authors advise in their repository.

    Weights of two dimensions or more are modulated: in a ResNet exactly the convolutions, as in the published code.
    There the slices of the joint head take 256 of 512 columns where fusion is gated, the bias is counted once in one
    place and by halves in another, and the scores are read on the host, sample by sample. The scores are summed over
    micro-batches and processes.

    Args:
        alpha: the modulation's strength; 0.8 is what the published instructions give for CREMA-D.
        modulation_epochs: epochs from the first on that are modulated; 51 in the published code.
    """

    changes = "size of an encoder's gradient or rate"
    requires = frozenset({"contributions"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "its scores compare the modalities on the same samples"}

    def __init__(self, alpha: float = 0.8, modulation_epochs: int = 51) -> None:
        super().__init__(OneJoint())
        self.alpha = finite("alpha", alpha)
        self.acting = range(1, whole("modulation_epochs", modulation_epochs) + 1)

    def losses(self, piece: Piece) -> Losses:
        """The plain ones; collects how sure each modality alone is of the right class."""
        self.collect(part_scores(self.model, piece) * piece.share)
        return piece.losses

    @torch.no_grad()
    def gradients(self, model: MultimodalModel) -> None:
        """Modulate the encoders' weights."""
        factors = torch.where(self.state["active"], coefficients(self.collected(), self.alpha), 1.0)
        for encoder, factor in zip(model.encoders.values(), factors, strict=True):
            weights = [p.grad for p in encoder.parameters() if p.grad is not None and p.dim() > 1]
            if weights:
                self._modulate(weights, factor.to(weights[0].dtype))

    def _modulate(self, weights: list[Tensor], factor: Tensor) -> None:
        """Change the gradients of one encoder's weights."""
        torch._foreach_mul_(weights, factor)


@METHODS.register("ogm_ge", search={"alpha": Range(0.1, 1.0)})
class OGMGE(SharedDraws, OGM):
    """OGM-GE (Peng et al., CVPR 2022): OGM, and noise.

    OGM with generalisation enhancement (Peng et al., CVPR 2022, Algorithm 1): OGM, and Gaussian noise of the
    gradient's own spread, N(0, (std(g) + 1e-8)^2), added to each modulated weight tensor of every modality.

    The spread is that of the tensor's elements before modulation, as in the published code. The noise is drawn from a
    separate generator with the run's seed, so that all processes add the same.

    Args:
        alpha: the modulation's strength; 0.8 is what the published instructions give for CREMA-D.
        modulation_epochs: epochs from the first on that are modulated, with noise; 51 in the published code.
    """

    refuses: ClassVar[Mapping[str, str]] = {**OGM.refuses, **SharedDraws.refuses}

    def _modulate(self, weights: list[Tensor], factor: Tensor) -> None:
        noises = [torch.empty_like(g).normal_(generator=self._generator) for g in weights]
        # of a single number there is no spread
        spreads = [g.std(correction=min(1, g.numel() - 1)) for g in weights]
        torch._foreach_mul_(noises, [(spread + 1e-8) * self.state["active"] for spread in spreads])
        super()._modulate(weights, factor)
        torch._foreach_add_(weights, noises)


def coefficients(scores: Tensor, alpha: float) -> Tensor:
    """k_m [M] from the scores S_m [M]; see OGM."""
    ratios = scores[:, None] / scores.clamp(min=torch.finfo(scores.dtype).tiny)[None]
    ahead = (ratios.sum(1) - ratios.diagonal()) / (len(scores) - 1)
    return torch.where(ahead > 1, 1 - torch.tanh(alpha * ahead), 1.0)
