"""FAMO: all losses fall at one relative rate (Liu et al., NeurIPS 2023)."""

import math

import torch
from torch import Tensor, nn

from mmpareto.methods.base import METHODS
from mmpareto.methods.scalarizations import GROUP, Scalarization
from mmpareto.methods.shared import by_name, finite
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("famo", group=GROUP, search={"rate": Range(0.005, 0.1)})
class FAMO(Scalarization):
    """FAMO (Liu et al., NeurIPS 2023): all losses fall at one relative rate, c sum of z log L, z = softmax(w).

    After a step w follows, by Adam, the fall of log L. The paper looks at the same batch again for it, at the price of
    another forward pass; here the fall is that to the next batch, the same on average and noisier. A loss of 0 is left
    out: that of a modality which no sample of the batch has.

    Args:
        rate: of w, 0.025 in the paper.
        decay: weight decay of w, 1e-3 in the paper.
    """

    def __init__(self, rate: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__("FAMO")
        self.rate, self.decay = finite("rate", rate), finite("decay", decay)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the function, whose w is the state's."""
        self.arguments = (len(model.encoders) + 1,)
        super().setup(model, seed, epochs)
        assert isinstance(self.function, nn.Module)
        (self.state["w"],) = (p.detach() for p in self.function.to(self.like).parameters())  # shares the memory
        self.state |= {name: torch.zeros_like(self.state["w"]) for name in ("first_moment", "second_moment")}
        self.state["before"] = self.like.new_full((len(self.heads),), math.nan)  # the losses of the step before
        self.state["steps"] = self.like.new_zeros(())

    def weights(self, losses: Tensor) -> Tensor:
        """The derivatives of f, [M + 1], after the step of w for the step before."""
        self._follow(losses)
        weights = super().weights(torch.where(losses == 0, math.inf, losses))
        return torch.where(losses == 0, 0.0, weights)  # where all are, the others are not finite

    @torch.no_grad()
    def _follow(self, losses: Tensor) -> None:
        w, before, steps = self.state["w"], self.state["before"], self.state["steps"]
        present = (before != 0) & (losses != 0)
        fall = torch.where(present, (before + 1e-8).log() - (losses + 1e-8).log(), 0.0)
        usable = fall.isfinite().all()
        shares = torch.softmax(w, 0)
        mean = (shares * fall).sum() / (shares * present).sum()
        gradient = torch.where(present, shares * (fall - mean), 0.0) + self.decay * w
        moments = [(self.state["first_moment"], 0.9, gradient), (self.state["second_moment"], 0.999, gradient**2)]
        steps += usable
        unbiased = []
        for moment, beta, value in moments:
            moment.copy_(torch.where(usable, beta * moment + (1 - beta) * value, moment))
            unbiased.append(moment / (1 - beta ** steps.clamp(min=1)))
        w -= torch.where(usable, self.rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8), 0.0)
        before.copy_(torch.where(losses.isfinite().all() & (losses != 0), losses, before))

    def figures(self) -> dict[str, float]:
        """z, the weights of the losses' logarithms."""
        return by_name("share", self.heads, torch.softmax(self.state["w"], 0))
