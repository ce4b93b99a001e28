"""UW and IMTL-L: scalarizations whose parameters learn with the model."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from mmpareto.methods.base import METHODS, Losses, Piece
from mmpareto.methods.scalarizations import GROUP, Scalarization
from mmpareto.methods.shared import by_name, finite
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


class Learned(Scalarization):
    """A scalarization that is linear in the losses, whose parameters learn with the model by gradient descent.

    The papers give them to the model's optimiser; here they have a rate of their own, without momentum. That of a loss
    of 0 stays: no sample of the batch has the modality.
    """

    refuses: ClassVar[Mapping[str, str]] = {}  # its weights do not depend on the losses
    parameter: str  # its name in TorchJD's module

    def __init__(self, name: str, rate: float) -> None:
        super().__init__(name)
        self.rate = finite("rate", rate)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the function; its parameter is in the checkpoint."""
        self.arguments = (len(model.encoders) + 1,)
        super().setup(model, seed, epochs)
        assert isinstance(self.function, nn.Module)
        self.function.to(self.like)
        self.state[self.parameter] = getattr(self.function, self.parameter).detach()  # shares the memory

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses; collects them."""
        values = piece.losses.values() * piece.share
        self.collect(values)
        return piece.losses.weighted(self.weights(values))

    def gradients(self, model: MultimodalModel) -> None:
        """A step of the parameter."""
        losses, parameter = self.collected(), getattr(self.function, self.parameter)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.function(losses), parameter)
        self.state[self.parameter] -= torch.where(gradient.isfinite() & (losses != 0), self.rate * gradient, 0.0)

    def figures(self) -> dict[str, float]:
        """The losses' weights."""
        return by_name("weight", self.heads, self.weights(torch.ones_like(self.state[self.parameter])))


@METHODS.register("uw", group=GROUP, search={"rate": Range(0.005, 0.1)})
class UW(Learned):
    """UW (Kendall et al., CVPR 2018): weights learned as uncertainties, the sum of (exp(-s) L + s) / 2.

    Args:
        rate: of s; this project's choice. The paper learns it with the model.
    """

    parameter = "log_var"

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__("UW", rate)


@METHODS.register("imtl_l", group=GROUP, search={"rate": Range(0.005, 0.1)})
class IMTLL(Learned):
    """IMTL-L (Liu et al., ICLR 2021): learned scales, the sum of exp(s) L - s.

    Args:
        rate: of s; this project's choice. The paper learns it with the model.
    """

    parameter = "log_scale"

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__("IMTLL", rate)
