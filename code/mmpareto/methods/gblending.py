"""G-Blending: loss weights from how much each network generalises and overfits (Wang et al., CVPR 2020)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmpareto.integration import OneJoint, OneUnimodal, Uniform
from mmpareto.methods.base import METHODS, Boundary, Losses, Method, MethodError, Piece
from mmpareto.methods.shared import by_name, whole, without_effect
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range

LEAST = 0.1  # of a weight, times the equal one


@METHODS.register("gblending", search={"held_out": Range(0.05, 0.3)})
class GBlending(Method):
    """G-Blending (Wang et al., CVPR 2020): loss weights from generalisation and overfitting.

    Gradient blending (Wang, Tran & Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", CVPR
    2020, Algorithms 1 and 2): the sum of w_k L_k over the joint loss and the unimodal ones is minimised, with

        w_k = (G_k / dO_k^2) / sum,   G_k = V_k - V'_k,   dO_k = (V'_k - T'_k) - (V_k - T_k),

    T and V the mean losses of network k on the samples that it is trained on and on held-out ones, before and (') after
    it was trained alone for some epochs, on a copy: the unimodal networks on their own losses, the joint network on the
    joint loss. Generalisation G counts from zero; weights are equal where nothing generalises; |dO| from 1e-4. A weight
    is raised to a tenth of the equal one before they are divided by their sum, which is this project's choice: a head
    whose loss has no weight never learns.

    The weights sum up to 1, as in the paper: with equal ones this is the uniform sum at 1 / (M + 1) of the rate.
    An estimate trains two copies, one with all unimodal networks side by side and one with the joint loss alone, so
    that a run costs about three times as much. Public code takes sums of losses over sets of different size, losses
    of training mode, or a "before" of after the first epoch; here losses are means in evaluation mode.

    Args:
        online: False: once, before the first epoch. True: before every super-epoch, from the weights at hand.
        super_epoch: with `online`, epochs of a super-epoch, 10 in BalanceBenchmark; the paper's is not known here.
        estimate_epochs: that the copies are trained; 0: as long as what follows, the run or the super-epoch.
        held_out: part of the training samples that the estimate, and it alone, does without, at least one of a class
            with two or more; this project's choice.
    """

    changes = "weights of the losses"

    def __init__(
        self, online: bool = False, super_epoch: int = 10, estimate_epochs: int = 0, held_out: float = 0.1
    ) -> None:
        super().__init__(Uniform())
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, found {held_out}")
        self.online, self.super_epoch = bool(online), whole("super_epoch", super_epoch, 1)
        without_effect(GBlending, "super_epoch", super_epoch, not online, "online=true")
        self.estimate_epochs, self.held_out = whole("estimate_epochs", estimate_epochs), held_out

    @property
    def planned(self) -> bool:
        """Where an estimate is as long as what follows."""
        return not self.estimate_epochs

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Equal weights until the first estimate."""
        super().setup(model, seed, epochs)
        self.heads, self.seed = ["joint", *model.encoders], seed
        self.state["weights"] = self.like.new_full((len(self.heads),), 1 / len(self.heads))

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Estimate the weights, where it is time."""
        first = (now.epoch - 1) % self.super_epoch == 0 if self.online else now.epoch == 1
        if not first:
            return {}
        follow = min(self.super_epoch, now.epochs - now.epoch + 1) if self.online else now.epochs
        kept, held = self._cut(now.labels)

        def losses(model: MultimodalModel) -> dict[str, tuple[float, float]]:
            trained, new = now.engine.losses(model, kept), now.engine.losses(model, held)
            return {head: (trained[head], new[head]) for head in self.heads}

        before = losses(now.model)
        epochs = self.estimate_epochs or follow
        after = losses(now.engine.fit(Method(OneUnimodal()), epochs, kept))
        after["joint"] = losses(now.engine.fit(Method(OneJoint()), epochs, kept))["joint"]
        measured = {head: (*before[head], *after[head]) for head in self.heads}
        wrong = {head: values for head, values in measured.items() if not all(map(math.isfinite, values))}
        if wrong:
            raise MethodError(
                f"G-Blending: its estimate met losses that are not finite ({wrong}); lower --learning_rate, or, where "
                "no held-out sample has a modality, give a greater --method_options held_out=X"
            )
        weights = blend([before[head] for head in self.heads], [after[head] for head in self.heads])
        self.state["weights"].copy_(torch.tensor(weights, dtype=torch.float64))
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses."""
        return piece.losses.weighted(self.state["weights"])

    def figures(self) -> dict[str, float]:
        """The losses' weights."""
        return by_name("weight", self.heads, self.state["weights"])

    def _cut(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Indices to train on and held out, stratified, the same at every estimate of a run."""
        generator = torch.Generator().manual_seed(self.seed)
        held = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique():
            samples = (labels == label).nonzero().flatten()
            number = max(int(len(samples) * self.held_out), int(len(samples) > 1))
            held[samples[torch.randperm(len(samples), generator=generator)[:number]]] = True
        if not held.any():
            raise MethodError(
                f"G-Blending holds samples out, and no class has two training samples ({len(labels)} in all)"
            )
        return (~held).nonzero().flatten(), held.nonzero().flatten()


def blend(before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]]) -> list[float]:
    """Weights from (T, V) of each network before and after; see GBlending."""
    raw = []
    for (trained, new), (trained_then, new_then) in zip(before, after, strict=True):
        overfitting = (new_then - trained_then) - (new - trained)
        raw.append(max(0.0, new - new_then) / max(overfitting**2, 1e-8))
    total, equal = sum(raw), 1 / len(raw)
    weights = [max(value / total, LEAST * equal) for value in raw] if total > 0 else [equal] * len(raw)
    return [weight / sum(weights) for weight in weights]
