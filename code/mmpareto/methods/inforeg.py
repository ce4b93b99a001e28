"""InfoReg: the modality ahead is slowed while it still takes in much (Huang et al., CVPR 2025)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmpareto.integration import OneJoint, Uniform
from mmpareto.methods.base import METHODS, Boundary, Losses, Method, MethodError, Piece
from mmpareto.methods.shared import (
    contributions_of,
    detached_heads,
    encoder_weights,
    finite,
    part_scores,
    without_effect,
)
from mmpareto.models import MultimodalModel, cross_entropies
from mmpareto.registry import Range


@METHODS.register("inforeg", search={"beta": Range(0.5, 1.0), "threshold": Range(0.01, 0.1)})
class InfoReg(Method):
    """InfoReg (Huang et al., CVPR 2025): the modality ahead is slowed while it still takes in much.

    Adaptive unimodal regulation (Huang, Wei, Yang & Hu, "Adaptive Unimodal Regulation for Balanced Multimodal
    Information Acquisition", CVPR 2025): one joint loss. Where modality m leads, in its prime learning window,

        g_m <- g_m + exp(beta tanh(Delta_m)) (theta_m - theta_m at the beginning of the epoch),
        Delta_m = mean of s_m - s_j over the modalities j with less,   s_m as in OGM, mean over the batch,

    the window being open while (T - T') / T > threshold, T and T' the sums of squared gradients of encoder m over the
    last epoch and the one before; it is open in the first two epochs. The paper's score has a minus sign that
    contradicts its use; it is left out. The weights at the beginning of the epoch are in the checkpoint.

    `published` takes the released code's rule, of two modalities of which the first is audio: the losses of the parts
    of the joint logits are added; the factor is 0.95 exp(tanh d) for the first modality and 0.1 exp(tanh d) for the
    second, d the gap of sums over the batch; both windows are the first one's, with T and T' the means over ten epochs,
    one epoch apart, of sums over tensors of mean squares, the added term included, and threshold 0.05.

    Args:
        beta: strength.
        threshold: of the window.
        unimodal: add the unimodal losses (InfoReg* in the paper).
        published: the released code's rule.
    """

    changes = "size of an encoder's gradient or rate"
    requires: ClassVar[frozenset[str]] = frozenset({"contributions"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "its scores compare modalities on the same samples"}

    def __init__(
        self, beta: float = 0.9, threshold: float = 0.04, unimodal: bool = False, published: bool = False
    ) -> None:
        for name, value in (("beta", beta), ("threshold", threshold), ("unimodal", unimodal)):
            without_effect(InfoReg, name, value, published, "published=false")
        super().__init__(Uniform() if unimodal or published else OneJoint())
        self.beta, self.published = finite("beta", beta), bool(published)
        self.threshold = 0.05 if published else finite("threshold", threshold)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make room for the weights at the beginning of an epoch."""
        super().setup(model, seed, epochs)
        count = len(model.encoders)
        if self.published and count != 2:
            raise MethodError(f"InfoReg: the published rule is of two modalities, found {count}")
        self.state |= {name: torch.zeros_like(p) for name, p in encoder_weights(model, "anchor").items()}
        self.state["trace"] = self.like.new_zeros(count)  # of this epoch so far
        epochs_kept = (10 if self.published else 1) + 1
        self.state["traces"] = self.like.new_zeros(epochs_kept, count)  # the oldest epoch first
        self.state["open"] = torch.ones(count, dtype=torch.bool, device=self.like.device)

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Open and close the windows; keep the weights."""
        state = self.state
        if now.epoch > 1:
            state["traces"].copy_(torch.cat((state["traces"][1:], state["trace"][None])))
            last, before = state["traces"][1:].mean(0), state["traces"][:-1].mean(0)
            is_open = last - before > self.threshold * last
            state["open"].copy_(is_open[:1] if self.published else is_open)
        state["trace"].zero_()
        for name, parameter in encoder_weights(now.model, "anchor").items():
            state[name].copy_(parameter)
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The plain ones, with those of the parts of the joint logits where the published rule is taken."""
        scores = part_scores(self.model, piece) * piece.share
        samples = len(piece.label) if piece.share else 0  # a process without samples has a stand-in of share 0
        self.collect(torch.cat((scores, scores.new_full((1,), samples))))
        if not self.published:
            return piece.losses
        parts = contributions_of(self.model)(piece.output.features)
        slices = cross_entropies(piece.output._replace(unimodal=parts), piece.label).unimodal
        heads = detached_heads(self.model, piece)
        return Losses(piece.losses.joint, {name: slices[name] + heads[name] for name in heads})

    @torch.no_grad()
    def gradients(self, model: MultimodalModel) -> None:
        """Pull the encoder of a leading modality back; add up the squared gradients."""
        totals = self.collected()
        scores, samples = totals[:-1], totals[-1] * self.processes
        strengths = pull(scores * samples if self.published else scores, self.beta, self.published)
        strengths = torch.where(self.state["open"], strengths, 0.0)
        for k, (name, encoder) in enumerate(model.encoders.items()):
            learning = {key: p for key, p in encoder.named_parameters() if p.grad is not None}
            gradients = [p.grad for p in learning.values() if p.grad is not None]
            if not gradients:
                continue
            before = squares(gradients, mean=False)
            steps = torch._foreach_sub([*learning.values()], [self.state[f"anchor.{name}.{key}"] for key in learning])
            torch._foreach_mul_(steps, strengths[k].to(steps[0].dtype))
            torch._foreach_add_(gradients, steps)
            trace = squares(gradients, mean=True) if self.published else before
            self.state["trace"][k] += torch.where(trace.isfinite(), trace, 0.0).to(self.state["trace"])


def pull(scores: Tensor, beta: float, published: bool) -> Tensor:
    """Strength of the pull on each encoder, [M], from the scores s_m [M]; zero for one that does not lead."""
    gaps = scores[:, None] - scores[None]
    ahead = gaps > 0
    lead = (gaps * ahead).sum(1) / ahead.sum(1).clamp(min=1)
    if not published:
        return torch.where(lead > 0, torch.exp(beta * torch.tanh(lead)), 0.0)
    factors = torch.where(torch.arange(len(scores), device=scores.device) == 0, 0.95, 0.1)
    return torch.where(lead > 0, factors * torch.exp(torch.tanh(lead)), 0.0)


def squares(gradients: list[Tensor], mean: bool) -> Tensor:
    """The sum over tensors of the sum (or the mean) of squared entries."""
    norms = torch._foreach_norm(gradients)
    return torch.stack([n**2 / (g.numel() if mean else 1) for n, g in zip(norms, gradients, strict=True)]).sum()
