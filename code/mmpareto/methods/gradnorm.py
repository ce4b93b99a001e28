"""GradNorm: loss weights that make tasks learn at one pace (Chen et al., ICML 2018)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmpareto.inputs import wide
from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Losses, Method, MethodError, Piece
from mmpareto.methods.shared import by_name, finite
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("gradnorm", search={"alpha": Range(0.5, 3.0), "rate": Range(0.005, 0.1)})
class GradNorm(Method):
    """GradNorm (Chen et al., ICML 2018): loss weights that make tasks learn at one pace.

    GradNorm (Chen, Badrinarayanan, Lee & Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing
    in Deep Multitask Networks", ICML 2018, Algorithm 1) over T = M + 1 tasks, the joint loss and the unimodal ones:
    the sum of w_i L_i is minimised, and after each step

        w_i <- w_i - rate g_i sign(w_i g_i - G r_i^alpha),   r_i = (L_i / L_i(0)) / mean,   G = mean of w_i g_i,

    then all w are scaled to sum up to T. g_i is the norm of the gradient of L_i into the features that its head reads:
    no weight of an encoder is shared by all heads, so the features take the place of the paper's last shared layer.
    Of a mean over B samples it shrinks like 1 / sqrt(B), unlike that of a weight: `rate` means more at small batches.

    L_i(0) is the first loss above zero. A task whose loss is zero, as that of a modality which no sample of the batch
    has, is left out of the means, and its weight stays. Norms are those of the whole batch, over micro-batches and
    processes. They cost T backward passes through heads alone. Weights stay above 1e-3 before they are scaled; the
    paper lets them pass zero.

    Args:
        alpha: how strongly slow tasks are pulled up, 1.5 in the paper (its choice by dataset).
        rate: of the weights, 0.025 in the paper.
    """

    changes = "weights of the losses"
    requires = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {
        "compile": "it takes gradients with respect to features, which lie inside a compiled model",
        "amp fp16": "the gradients that it reads are of unscaled losses, too small for float16; take --amp bf16",
    }

    def __init__(self, alpha: float = 1.5, rate: float = 0.025) -> None:
        super().__init__(Uniform())
        self.alpha, self.rate = finite("alpha", alpha), finite("rate", rate)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """All weights are 1.

        Raises:
            MethodError: for a model with a frozen encoder.
        """
        super().setup(model, seed, epochs)
        for name, encoder in model.encoders.items():
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                raise MethodError(
                    f"gradnorm balances gradients at the features of encoders that learn; that of {name} is frozen: "
                    "let it learn, or choose another --method"
                )
        self.state["weights"] = self.like.new_ones(len(self.names) + 1)
        self.state["first"] = self.like.new_full((len(self.names) + 1,), torch.nan)  # L_i(0)

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses; collects the norms."""
        features = piece.output.features
        tasks = [(piece.losses.joint, list(features.values()))]
        tasks += [(piece.losses.unimodal[name], [features[name]]) for name in self.names]
        norms = []
        for loss, reads in tasks:
            parts = torch.autograd.grad(loss, reads, retain_graph=True)
            norms.append(torch.stack([wide(part).square().sum() for part in parts]).sum())
        self.collect(torch.stack((torch.stack(norms) * piece.share**2, piece.losses.values() * piece.share)))
        # a copy: `gradients` changes them in place, before a graph's next replay
        return piece.losses.weighted(self.state["weights"].clone())

    @torch.no_grad()
    def gradients(self, model: MultimodalModel) -> None:
        """Move the weights for the next step."""
        squares, values = self.collected().unbind()
        first, weights = self.state["first"], self.state["weights"]
        known = values.isfinite().all()
        first.copy_(torch.where(known & first.isnan() & (values > 0), values, first))
        # zero where it has no loss, in this step or yet; sign(NaN) is 0, so moved weights may be finite where it is not
        progress = torch.where((values > 0) & (first > 0), values / first, 0.0)
        moved = moved_weights(weights, (squares / self.processes).sqrt(), progress, self.alpha, self.rate)
        usable = known & progress.isfinite().all() & moved.isfinite().all()
        weights.copy_(torch.where(usable, moved, weights))

    def figures(self) -> dict[str, float]:
        """The losses' weights."""
        return by_name("weight", ("joint", *self.names), self.state["weights"])


def moved_weights(weights: Tensor, norms: Tensor, progress: Tensor, alpha: float, rate: float) -> Tensor:
    """The weights [T] after a step; norms g_i [T], progress L_i / L_i(0) [T], zero to leave out; see GradNorm."""
    known = progress > 0

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, 0.0).sum() / known.sum()

    target = mean(weights * norms) * (progress / mean(progress)) ** alpha
    moved = (weights - rate * norms * torch.sign(weights * norms - target)).clamp(min=1e-3)
    moved = torch.where(known, moved, weights)
    return moved * (len(moved) / moved.sum())
