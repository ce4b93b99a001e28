"""TorchJD's scalarizations: one function of the joint loss and the unimodal losses is minimised."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Losses, Method, Piece, finite, named_values
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range

GROUP = "scalarizations"


class Scalarization(Method):
    """Minimises a function f of all losses: each counts its derivative of f, at the losses of the whole batch.

    So the gradient is that of f over all processes, where averaging the processes' own f would be another function.
    f is a module of TorchJD, which maps losses [M + 1], the joint one first, to a scalar.

    Args:
        name: of TorchJD's class.
        arguments: of its constructor.
        weights: its last argument, a tensor [M + 1], as NAME:VALUE,NAME:VALUE, "joint" or a modality; None: it has
            none.
        even: all other weights are 1 / (M + 1), else 1.
    """

    changes = "weights of the losses"
    refuses: ClassVar[Mapping[str, str]] = {
        "accumulate": "its weights are the whole batch's, and must be known before its first piece's backward pass"
    }

    def __init__(self, name: str, *arguments: float, weights: str | None = None, even: bool = True) -> None:
        super().__init__(Uniform())
        self.name, self.arguments, self.text, self.even = name, arguments, weights, even
        self.function: Callable[[Tensor], Tensor] = torch.sum

    def make(self) -> Callable[[Tensor], Tensor]:
        """f for losses of `names`, the first of which is "joint"."""
        arguments: list[float | Tensor] = list(self.arguments)
        if self.text is not None:
            values = named_values("weights", self.text, self.names)
            default = 1 / len(self.names) if self.even else 1.0
            arguments.append(torch.stack([self.like.new_full((), values.get(name, default)) for name in self.names]))
        return getattr(importlib.import_module("torchjd.scalarization"), self.name)(*arguments)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the function."""
        super().setup(model, seed, epochs)
        self.names = ["joint", *model.encoders]
        self.like = next(model.parameters()).detach()
        self.function = self.make()

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses."""
        return piece.losses.weighted(self.weights(self.average(piece.losses.values() * piece.share)))

    def weights(self, losses: Tensor) -> Tensor:
        """The derivatives of f, [M + 1]."""
        with torch.enable_grad():
            point = losses.detach().requires_grad_()
            return torch.autograd.grad(self.function(point), point)[0].detach()


@METHODS.register("gls", group=GROUP)
class GLS(Scalarization):
    """GLS (Chennupati et al., CVPR workshops 2019): the geometric mean of all losses.

    TorchJD's GeometricMean looks at the sign of the losses on the host, and so waits for the device; cross-entropies
    are never negative.
    """

    def __init__(self) -> None:
        super().__init__("GeometricMean")

    def make(self) -> Callable[[Tensor], Tensor]:
        """The geometric mean."""
        return lambda losses: losses.clamp(min=torch.finfo(losses.dtype).tiny).log().mean().exp()


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
