"""Scalarizations whose parameters are fixed: GLS, STCH, COSMOS, PBI and constant weights."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmpareto.methods.base import METHODS, Losses, Piece
from mmpareto.methods.scalarizations import GROUP, Scalarization
from mmpareto.methods.shared import finite
from mmpareto.registry import Range


@METHODS.register("gls", group=GROUP)
class GLS(Scalarization):
    """GLS (Chennupati et al., CVPR workshops 2019): the geometric mean of all losses.

    A loss of 0 is left out: that of a modality which no sample of the batch has.

    TorchJD's GeometricMean looks at the sign of the losses on the host, and so waits for the device; cross-entropies
    are never negative.
    """

    def __init__(self) -> None:
        super().__init__("GeometricMean")

    def make(self) -> Callable[[Tensor], Tensor]:
        """The geometric mean."""

        def mean(losses: Tensor) -> Tensor:
            positive = losses > 0
            return (torch.where(positive, losses, 1.0).log().sum() / positive.sum()).exp()

        return mean

    def point(self, losses: Tensor) -> Tensor:
        """The losses."""
        return losses


@METHODS.register("stch", group=GROUP, search={"mu": Range(0.03, 1.0)})
class STCH(Scalarization):
    """STCH (Lin et al., ICML 2024): a smooth maximum of weighted losses, mu log sum exp(w L / mu).

    Args:
        mu: smoothness; the paper takes 0.01 to 1, and this project 0.1.
        weights: w as NAME:VALUE,NAME:VALUE, "joint" or a modality; 1 / (M + 1) for all others.
    """

    def __init__(self, mu: float = 0.1, weights: str = "") -> None:
        super().__init__("STCH", finite("mu", mu, 1e-6), weights=weights)


@METHODS.register("cosmos", group=GROUP, search={"penalty": Range(0.1, 5.0)})
class COSMOS(Scalarization):
    """COSMOS (Ruchte & Grabocka, ICDM 2021): the weighted sum minus lambda times the cosine of weights and losses.

    Args:
        penalty: lambda; the paper takes 0.01 to 8 by dataset, and this project 1.
        weights: as NAME:VALUE,NAME:VALUE, "joint" or a modality; 1 / (M + 1) for all others.
    """

    def __init__(self, penalty: float = 1.0, weights: str = "") -> None:
        super().__init__("COSMOS", finite("penalty", penalty), weights=weights)


@METHODS.register("pbi", group=GROUP, search={"theta": Range(1.0, 10.0)})
class PBI(Scalarization):
    """PBI (Zhang & Li, 2007): length of the losses along a direction, plus theta times their distance from it.

    Args:
        theta: 5 in the paper.
        weights: the direction as NAME:VALUE,NAME:VALUE, "joint" or a modality; 1 for all others.
    """

    def __init__(self, theta: float = 5.0, weights: str = "") -> None:
        super().__init__("PBI", finite("theta", theta), weights=weights, even=False)


@METHODS.register("constant", group=GROUP)
class Constant(Scalarization):
    """Constant: a fixed weight for each loss.

    Args:
        weights: as NAME:VALUE,NAME:VALUE, "joint" or a modality; 1 for all others.
    """

    refuses: ClassVar[Mapping[str, str]] = {}  # its weights do not depend on the losses

    def __init__(self, weights: str = "") -> None:
        super().__init__("Constant", weights=weights, even=False)

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses; nothing is averaged over processes, which may have other numbers of pieces."""
        return piece.losses.weighted(self.weights(piece.losses.values()))
