"""MIMO: the joint loss and a smooth maximum of the unimodal losses (Fernando et al., 2025)."""

import torch
from torch import Tensor

from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS
from mmpareto.methods.shared import Weighted, finite
from mmpareto.registry import Range


@METHODS.register("mimo", search={"weight": Range(0.3, 3.0), "mu": Range(0.1, 2.0)})
class MIMO(Weighted):
    """MIMO (Fernando et al., 2025): the joint loss and a smooth maximum of the unimodal losses.

    Multi-objective optimisation of multimodal learning (Fernando, Ram, Zhou, Dan, Samulowitz, Baracaldo & Chen,
    "Mitigating Modality Imbalance in Multi-modal Learning via Multi-objective Optimization", 2025, arXiv:2511.06686):

        L + lambda mu log sum_m exp(L_m / mu),   whose gradient is that of L + lambda sum_m softmax(L / mu)_m L_m.

    The modality with the largest loss counts most; with a large mu all count 1 / M. The losses in the softmax are
    those of the whole batch.

    Args:
        weight: lambda; this project's choice, the paper's was not read.
        mu: temperature of the softmax; this project's choice.
    """

    def __init__(self, weight: float = 1.0, mu: float = 0.5) -> None:
        super().__init__(Uniform())
        self.weight, self.mu = finite("weight", weight), finite("mu", mu, 1e-6)

    def weights(self, losses: Tensor) -> Tensor:
        """1, and lambda times the softmax of the unimodal losses."""
        # without a modality that no sample of the batch has, whose loss is zero
        scaled = torch.where(losses[1:] > 0, losses[1:] / self.mu, -torch.inf)
        shares = torch.softmax(scaled, 0).nan_to_num()
        return torch.cat((torch.ones_like(shares[:1]), self.weight * shares))
