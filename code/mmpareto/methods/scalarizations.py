"""TorchJD's scalarizations: one function of the joint loss and the unimodal losses is minimised."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Boundary, Losses, Method, Piece, SharedDraws, finite, gathered, named_values
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range

GROUP = "scalarizations"
WHOLE = {"accumulate": "its weights are the whole batch's, and must be known before its first piece's backward pass"}


def _torchjd(name: str, *arguments: Any) -> Any:
    """A scalarizer of TorchJD."""
    return getattr(importlib.import_module("torchjd.scalarization"), name)(*arguments)


class Scalarization(Method):
    """Minimises a function f of all losses: each counts its derivative of f, at the losses of the whole batch.

    So the gradient is that of f over all processes, where averaging the processes' own f would be another function.
    `make(count, names)` gives f, a module that maps losses [M + 1], the joint one first, to a scalar.
    """

    refuses: ClassVar[Mapping[str, str]] = WHOLE

    def __init__(self) -> None:
        super().__init__(Uniform())
        self.function: Callable[[Tensor], Tensor] = torch.sum

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """f for losses of these names, the first of which is "joint"."""
        raise NotImplementedError

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the function."""
        super().setup(model, seed, epochs)
        self.names = ["joint", *model.encoders]
        self.like = next(model.parameters()).detach()
        self.function = self.make(self.names)

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses."""
        return piece.losses.weighted(self.weights(self.average(piece.losses.values() * piece.share)))

    def weights(self, losses: Tensor) -> Tensor:
        """The derivatives of f, [M + 1]."""
        with torch.enable_grad():
            point = losses.detach().requires_grad_()
            return torch.autograd.grad(self.function(point), point)[0].detach()

    def _vector(self, text: str, names: list[str], default: float) -> Tensor:
        """The option `weights` as a tensor [M + 1]."""
        values = named_values("weights", text, names)
        return torch.stack([self.like.new_full((), values.get(name, default)) for name in names])


@METHODS.register("gls", group=GROUP)
class GLS(Scalarization):
    """GLS (Chennupati et al., CVPR workshops 2019): the geometric mean of all losses.

    TorchJD's GeometricMean looks at the sign of the losses on the host, and so waits for the device; cross-entropies
    are never negative.
    """

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
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
        super().__init__()
        self.mu, self.text = finite("mu", mu, 1e-6), weights

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function."""
        return _torchjd("STCH", self.mu, self._vector(self.text, names, 1 / len(names)))


@METHODS.register("cosmos", group=GROUP, search={"penalty": Range(0.1, 5.0)})
class COSMOS(Scalarization):
    """COSMOS (Ruchte & Grabocka, ICDM 2021): the weighted sum minus lambda times the cosine of weights and losses.

    Args:
        penalty: lambda; the paper takes 0.01 to 8 by dataset, and this project 1.
        weights: as NAME:VALUE,NAME:VALUE, "joint" or a modality; 1 / (M + 1) for all others.
    """

    def __init__(self, penalty: float = 1.0, weights: str = "") -> None:
        super().__init__()
        self.penalty, self.text = finite("penalty", penalty), weights

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function."""
        return _torchjd("COSMOS", self.penalty, self._vector(self.text, names, 1 / len(names)))


@METHODS.register("pbi", group=GROUP, search={"theta": Range(1.0, 10.0)})
class PBI(Scalarization):
    """PBI (Zhang & Li, 2007): length of the losses along a direction, plus theta times their distance from it.

    Args:
        theta: 5 in the paper.
        weights: the direction as NAME:VALUE,NAME:VALUE, "joint" or a modality; 1 for all others.
    """

    def __init__(self, theta: float = 5.0, weights: str = "") -> None:
        super().__init__()
        self.theta, self.text = finite("theta", theta), weights

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function."""
        return _torchjd("PBI", self.theta, self._vector(self.text, names, 1.0))


@METHODS.register("constant", group=GROUP)
class Constant(Scalarization):
    """Constant: a fixed weight for each loss.

    Args:
        weights: as NAME:VALUE,NAME:VALUE, "joint" or a modality; 1 for all others.
    """

    refuses: ClassVar[Mapping[str, str]] = {}  # its weights do not depend on the losses

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        self.text = weights

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function."""
        return _torchjd("Constant", self._vector(self.text, names, 1.0))


class Learned(Scalarization):
    """A scalarization that is linear in the losses, whose parameters learn with the model by gradient descent.

    The papers give them to the model's optimiser; here they have a rate of their own, without momentum.
    """

    refuses: ClassVar[Mapping[str, str]] = {}  # its weights do not depend on the losses
    parameter: str  # its name in TorchJD's module

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = finite("rate", rate)
        self._seen: Tensor | None = None  # [M + 1]: losses of this step's pieces so far

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the function; its parameter is in the checkpoint."""
        super().setup(model, seed, epochs)
        assert isinstance(self.function, nn.Module)
        self.function.to(self.like)
        self.state[self.parameter] = getattr(self.function, self.parameter).detach()  # shares the memory

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses; takes them down."""
        values = piece.losses.values() * piece.share
        self._seen = gathered(self._seen, values)
        return piece.losses.weighted(self.weights(values))

    def gradients(self, model: MultimodalModel) -> None:
        """A step of the parameter."""
        assert self._seen is not None
        losses = self.average(self._seen)
        self._seen = None
        parameter = getattr(self.function, self.parameter)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.function(losses), parameter)
        self.state[self.parameter] -= torch.where(gradient.isfinite(), self.rate * gradient, 0.0)

    def figures(self) -> dict[str, float]:
        """The losses' weights."""
        weights = self.weights(torch.ones_like(self.state[self.parameter]))
        return {f"weight_{name}": value for name, value in zip(self.names, weights.tolist(), strict=True)}


@METHODS.register("uw", group=GROUP, search={"rate": Range(0.005, 0.1)})
class UW(Learned):
    """UW (Kendall et al., CVPR 2018): weights learned as uncertainties, the sum of (exp(-s) L + s) / 2.

    Args:
        rate: of s; this project's choice. The paper learns it with the model.
    """

    parameter = "log_var"

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__(rate)

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function."""
        return _torchjd("UW", len(names))


@METHODS.register("imtl_l", group=GROUP, search={"rate": Range(0.005, 0.1)})
class IMTLL(Learned):
    """IMTL-L (Liu et al., ICLR 2021): learned scales, the sum of exp(s) L - s.

    Args:
        rate: of s; this project's choice. The paper learns it with the model.
    """

    parameter = "log_scale"

    def __init__(self, rate: float = 0.025) -> None:
        super().__init__(rate)

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function."""
        return _torchjd("IMTLL", len(names))


@METHODS.register("dwa", group=GROUP, search={"temperature": Range(1.0, 5.0)})
class DWA(Scalarization):
    """DWA (Liu et al., CVPR 2019): a loss that falls slowly counts more, by the means of the last two epochs.

    Args:
        temperature: 2 in the paper; larger values make the weights more alike.
    """

    refuses: ClassVar[Mapping[str, str]] = {}  # its weights are known before the epoch

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = finite("temperature", temperature, 1e-6)
        self._seen: Tensor | None = None  # [M + 1]: losses of this step's pieces so far

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function; the means of the epochs are in the checkpoint."""
        self.state["weights"] = self.like.new_ones(len(names))
        self.state["sums"] = self.like.new_zeros(len(names) + 1)  # of this epoch: losses, steps
        self.state["means"] = self.like.new_full((2, len(names)), math.nan)  # of the last two epochs
        return _torchjd("DWA", self.temperature)

    def boundary(self, now: Boundary) -> dict[str, float]:
        """The weights of the epoch."""
        sums, means = self.state["sums"], self.state["means"]
        if now.epoch > 1:
            means.copy_(torch.stack((means[1], sums[:-1] / sums[-1])))
        sums.zero_()
        if bool(means.isfinite().all()):
            function: Any = self.function
            function.reset()
            for mean in means:
                function(mean)
                function.step()
            self.state["weights"].copy_(self.weights(means[1]))
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses; takes them down."""
        self._seen = gathered(self._seen, piece.losses.values() * piece.share)
        return piece.losses.weighted(self.state["weights"])

    def gradients(self, model: MultimodalModel) -> None:
        """Adds the step's losses to the epoch's."""
        assert self._seen is not None
        seen = self.average(self._seen)
        self._seen = None
        seen = torch.cat((seen, torch.ones_like(seen[:1]))).to(self.state["sums"])
        self.state["sums"] += torch.where(seen.isfinite().all(), seen, 0.0)

    def figures(self) -> dict[str, float]:
        """The losses' weights."""
        return {f"weight_{name}": value for name, value in zip(self.names, self.state["weights"].tolist(), strict=True)}


@METHODS.register("famo", group=GROUP, search={"rate": Range(0.005, 0.1)})
class FAMO(Scalarization):
    """FAMO (Liu et al., NeurIPS 2023): all losses fall at one relative rate, c sum of z log L, z = softmax(w).

    After a step w follows, by Adam, the fall of log L. The paper looks at the same batch again for it, at the price of
    another forward pass; here the fall is that to the next batch, the same on average and noisier.

    Args:
        rate: of w, 0.025 in the paper.
        decay: weight decay of w, 1e-3 in the paper.
    """

    def __init__(self, rate: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__()
        self.rate, self.decay = finite("rate", rate), finite("decay", decay)

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """TorchJD's function, whose w is the state's."""
        function = _torchjd("FAMO", len(names)).to(self.like)
        (self.state["w"],) = (parameter.detach() for parameter in function.parameters())  # shares the memory
        self.state |= {name: torch.zeros_like(self.state["w"]) for name in ("first_moment", "second_moment")}
        self.state["before"] = self.like.new_full((len(names),), math.nan)  # the losses of the step before
        self.state["steps"] = self.like.new_zeros(())
        return function

    def weights(self, losses: Tensor) -> Tensor:
        """The derivatives of f, [M + 1], after the step of w for the step before."""
        self._follow(losses)
        return super().weights(losses)

    @torch.no_grad()
    def _follow(self, losses: Tensor) -> None:
        w, before, steps = self.state["w"], self.state["before"], self.state["steps"]
        fall = (before + 1e-8).log() - (losses + 1e-8).log()
        usable = fall.isfinite().all()
        shares = torch.softmax(w, 0)
        gradient = shares * (fall - (shares * fall).sum()) + self.decay * w
        moments = [(self.state["first_moment"], 0.9, gradient), (self.state["second_moment"], 0.999, gradient**2)]
        steps += usable
        unbiased = []
        for moment, beta, value in moments:
            moment.copy_(torch.where(usable, beta * moment + (1 - beta) * value, moment))
            unbiased.append(moment / (1 - beta ** steps.clamp(min=1)))
        w -= torch.where(usable, self.rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8), 0.0)
        before.copy_(torch.where(losses.isfinite().all(), losses, before))

    def figures(self) -> dict[str, float]:
        """z, the weights of the losses' logarithms."""
        shares = torch.softmax(self.state["w"], 0).tolist()
        return {f"share_{name}": value for name, value in zip(self.names, shares, strict=True)}


@METHODS.register("rlw", group=GROUP)
class RLW(SharedDraws, Scalarization):
    """RLW (Lin et al., TMLR 2022): weights drawn anew for each step, the softmax of normal numbers.

    TorchJD's Random draws from the generator of each process; here all processes have the same weights.
    """

    refuses: ClassVar[Mapping[str, str]] = SharedDraws.refuses

    def make(self, names: list[str]) -> Callable[[Tensor], Tensor]:
        """The first weights."""
        self.state["drawn"] = self.like.new_zeros(len(names))
        return torch.sum

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Draw the first weights."""
        super().setup(model, seed, epochs)
        self.gradients(model)

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses."""
        return piece.losses.weighted(torch.softmax(self.state["drawn"], 0))

    def gradients(self, model: MultimodalModel) -> None:
        """Draw the next step's weights."""
        self.state["drawn"].normal_(generator=self._generator)
