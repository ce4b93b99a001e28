"""Greedy: the encoder that learns most through the others learns alone for some steps (Wu et al., ICML 2022)."""

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmpareto.inputs import wide
from mmpareto.integration import OneUnimodal
from mmpareto.methods.base import METHODS, Losses, Piece
from mmpareto.methods.shared import MeanLogits, Windowed, by_name, finite, hold_back, late, whole
from mmpareto.models import MultimodalModel
from mmpareto.models.mmtm import Excitation
from mmpareto.registry import Range


@METHODS.register("greedy", search={"epsilon": Range(0.001, 0.1), "window": Range(1, 20)})
class Greedy(Windowed, MeanLogits):
    """Greedy (Wu et al., ICML 2022): the encoder that learns most through the others learns alone for some steps.

    Wu, Jastrzebski, Cho & Geras, "Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep
    Neural Networks", ICML 2022, for encoders that scale one another's channels by gates: `--architecture mmtm`. The sum
    of the unimodal losses is minimised; the prediction is the mean of the unimodal logits. Over the plain steps

        mu(theta) += sum of g^2 / sum of theta^2,   s_m = log10(mu(gates of m) / mu(encoder m and its head)),

    the layers that all gates share counted for each modality. Where max s - min s > epsilon, the next `window` steps
    re-balance c = argmax s: the gates of c are their mean over the steps before, a constant, and only encoder c and its
    head learn: the gradients of all others are zero. Momentum and weight decay still move them, which the published
    runs, by SGD without momentum, do not have. Then plain steps go on. Of two modalities this is the published rule;
    for more it is this project's.

    In the published code all parameters learn while it re-balances (`published`), which its author calls a departure
    from the paper; the mean of the second modality's gates is taken from the first one's; and validation is run with
    constant gates. There the gates are sigmoids, without MMTM's factor of 2: `--architecture_options factor=1`.

    Args:
        epsilon: 0.01 in the published code.
        window: steps of a re-balancing, 5 there.
        warm_up_epochs: epochs without re-balancing, 1 there.
        published: all parameters learn in the steps that re-balance.
    """

    changes = "which parts learn when"
    requires: ClassVar[frozenset[str]] = frozenset({"gates"})
    architecture: ClassVar[str | None] = "mmtm"
    refuses: ClassVar[Mapping[str, str]] = {
        "missing": "it compares how fast modalities learn on the same samples",
        "compile": "it replaces gates inside the model, which a compiled one does not have",
    }

    def __init__(
        self, epsilon: float = 0.01, window: int = 5, warm_up_epochs: int = 1, published: bool = False
    ) -> None:
        super().__init__(OneUnimodal())
        self.epsilon, self.window = finite("epsilon", epsilon), whole("window", window, 1)
        self.warm_up_epochs, self.published = whole("warm_up_epochs", warm_up_epochs), bool(published)
        self.acting = range(self.warm_up_epochs + 1, sys.maxsize)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Collect all gates."""
        super().setup(model, seed, epochs)
        self.exchange = list(cast(Iterable[Excitation], model.exchange))
        like, sizes = self.like, [sum(module.widths) for module in self.exchange]
        self.state["speeds"] = like.new_zeros(2, len(self.names))  # sums of mu: of gates, of encoders
        self.state |= {"means": like.new_zeros(sum(sizes)), "steps": like.new_zeros(())}  # of all gates, so far
        self.state |= {name: like.new_zeros((), dtype=torch.int64) for name in ("chosen", "left")}  # c, steps left
        self._gates = [like] * len(sizes)  # the means of the last pass
        for number, means in enumerate(self.state["means"].split(sizes)):
            self.exchange[number].replace = partial(self._replace, number, means)

    def _replace(self, number: int, means: Tensor, gates: list[Tensor]) -> list[Tensor]:
        """The gates [B, C_m] of one exchange as they scale maps, in training; keeps their means."""
        self._gates[number] = torch.cat([wide(gate.detach()).mean(0) for gate in gates])
        parts = means.split([gate.shape[1] for gate in gates])
        constant = [(self.state["left"] > 0) & (self.state["chosen"] == position) for position in range(len(gates))]
        return [torch.where(c, m.to(gate.dtype), gate) for c, m, gate in zip(constant, parts, gates, strict=True)]

    def idle(self, epochs: int) -> str:
        """Where all epochs are warm-up."""
        return late("re-balances", "warm_up_epochs", self.warm_up_epochs, epochs)

    def losses(self, piece: Piece) -> Losses:
        """The unimodal losses; collects the means of the gates."""
        self.collect(torch.cat(self._gates) * piece.share)
        return Losses(piece.losses.joint.detach(), piece.losses.unimodal)

    @torch.no_grad()
    def gradients(self, model: MultimodalModel) -> None:
        """Add up the speeds, or hold back what does not learn; choose what the next step is."""
        state, balancing = self.state, self.state["left"] > 0
        means = self.collected().to(state["means"].dtype)
        known = means.isfinite().all()
        state["steps"] += known
        moved = state["means"].lerp(means, 1 / state["steps"].clamp(min=1))
        state["means"].copy_(torch.where(known, moved, state["means"]))
        encoders = [[*model.encoders[name].parameters(), *model.heads[name].parameters()] for name in self.names]
        shared = [p for module in self.exchange for p in module.squeeze.parameters()]
        gates = [[p for module in self.exchange for p in module.excite[k].parameters()] for k in range(len(encoders))]
        step = torch.stack([speed([*part, *shared]) for part in gates] + [speed(part) for part in encoders])
        usable = step.isfinite().all() & ~balancing
        state["speeds"] += torch.where(usable, step.view(2, -1), 0.0)
        reliance = relied(state["speeds"])
        begins = usable & state["active"] & (reliance.max() - reliance.min() > self.epsilon)
        if not self.published:
            hold_back([p for part in (shared, *gates) for p in part], ~balancing)
            for position, part in enumerate(encoders):
                hold_back(part, ~balancing | (state["chosen"] == position))
        state["chosen"].copy_(torch.where(begins, reliance.argmax(), state["chosen"]))
        state["left"].copy_(torch.where(begins, self.window, (state["left"] - 1).clamp(min=0)))

    def figures(self) -> dict[str, float]:
        """s_m of the steps so far."""
        return by_name("reliance", self.names, relied(self.state["speeds"]))


def speed(parameters: Iterable[Tensor]) -> Tensor:
    """mu of a step: the sum of squared gradients over the sum of squared parameters."""
    pairs: Any = [(parameter.grad, parameter) for parameter in parameters if parameter.grad is not None]
    squares = [torch.stack(torch._foreach_norm(tensors)).square().sum() for tensors in zip(*pairs, strict=True)]
    return squares[0] / squares[1]


def relied(speeds: Tensor) -> Tensor:
    """s_m [M] from the sums of mu of gates and encoders, [2, M]; see Greedy."""
    return torch.log10(speeds[0] / speeds[1])
