"""MLA: modalities learn in turn, through one head (Zhang et al., CVPR 2024)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from mmpareto.inputs import wide
from mmpareto.integration import OneUnimodal, float64_device, to_float64
from mmpareto.methods.base import METHODS, Boundary, Losses, Method, Piece, Turn
from mmpareto.methods.shared import one_of, share_head, without_effect
from mmpareto.models import EnsembleFusion, MultimodalModel


@METHODS.register("mla", search={"project": [True, False]})
class MLA(Method):
    """MLA (Zhang et al., CVPR 2024): modalities learn in turn, through one head.

    Multimodal learning with alternating unimodal adaptation (Zhang, Yoon, Bansal & Yao, "Multimodal Representation
    Learning by Alternating Unimodal Adaptation", CVPR 2024). All modalities have one head. In each batch modality after
    modality takes an optimiser's step on its own loss CE(head(f_m), label): encoder m and the head learn. So that the
    head keeps what it learned from the modalities before, the gradient G [C, D] of its weight is projected,

        G <- G P,   then P <- P - k k' / (a + r' k),   k = P r,   a = 0.1 ^ (1 + part of the epoch that is over),

    P [D, D] the identity at first, r the mean of f_m over the batch. The prediction is the mean of the logits,
    weighted sample by sample by softmax(-H_m), H_m the entropy of modality m's prediction.

    The head's bias is not projected, and momentum brings directions back that the projection took out: without momentum
    the head keeps its answers best. P of a step is made of the steps before. In the public code it
    contains the step's own r, and is divided by its norm (`normalise`), which shrinks the gradient to about 1 /
    sqrt(D). But a wrong parameter name switches it off there, so that published results have no projection: `project`.
    The entropy there is over the samples of a batch and not over classes; its default is the plain mean: `combine`.

    Args:
        project: project the gradient of the head.
        normalise: divide P by its Frobenius norm after each change.
        combine: "certainty": logits weighted by entropy; "logits": their mean.
    """

    changes = "which parts learn when"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {
        "accumulate": "it takes a step for each modality, on the features of the whole batch",
        "compile": "it goes back through the encoders one after the other, and a compiled model has one backward pass",
    }

    def __init__(self, project: bool = True, normalise: bool = False, combine: str = "certainty") -> None:
        super().__init__(OneUnimodal())
        self.project, self.normalise = bool(project), bool(normalise)
        without_effect(MLA, "normalise", normalise, not project, "project=true")
        self.combine = one_of("combine", combine, ("certainty", "logits"))
        self._mean: Tensor | None = None  # [D], of the features of this turn
        self._samples: Tensor | None = None  # that the batch's last turn has done with; 0 in the other turns

    def fusion(self, widths: Mapping[str, int], classes: int, heads: nn.ModuleDict) -> nn.Module:
        """The mean of the logits of the one head."""
        share_head("MLA", widths, heads)
        return EnsembleFusion(heads, self.combine)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Begin with a projection that changes nothing."""
        super().setup(model, seed, epochs)
        self.head = cast(nn.Linear, model.heads[self.names[0]])
        if self.project:
            device, width = float64_device(self.like.device), model.widths[self.names[0]]
            # in float64: rounding must not make P r oppose r
            self.state["projection"] = torch.eye(width, dtype=torch.float64, device=device)
            self.state["progress"] = torch.zeros((), dtype=torch.float64, device=device)  # in the epoch, 0 .. 1
            self.state["per_sample"] = torch.zeros((), dtype=torch.float64, device=device)  # 1 / samples of the epoch

    @property
    def turns(self) -> Sequence[Turn]:
        """Each encoder, with the head."""
        return tuple((f"encoders.{name}.", "heads.") for name in self.names)

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Begin an epoch."""
        if self.project:
            self.state["progress"].zero_()
            self.state["per_sample"].fill_(1 / len(now.labels))
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The loss of the modality whose turn it is; keeps the mean of its features."""
        name = self.names[piece.turn]
        if self.project:
            features = to_float64(wide(piece.output.features[name].detach()))
            present = piece.output.present
            rows = features.new_ones(len(features)) if present is None else present[name].to(features.device)
            totals = torch.cat((features.sum(0), torch.stack((rows.sum(), torch.ones_like(rows).sum()))))
            totals = self.average(totals * (piece.share > 0))  # a process without samples has a stand-in
            self._mean = totals[:-2] / totals[-2].clamp(min=1e-9)  # features of absent modalities are zero
            self._samples = totals[-1] * self.processes * (piece.turn == len(self.names) - 1)
        return Losses(piece.losses.joint.detach(), {name: piece.losses.unimodal[name]})

    @torch.no_grad()
    def gradients(self, model: MultimodalModel) -> None:
        """Project the head's gradient; take the features into the projection of the steps that follow."""
        if not self.project:
            return
        assert self._mean is not None
        assert self._samples is not None
        projection, gradient = self.state["projection"], self.head.weight.grad
        assert gradient is not None
        gradient.copy_(gradient @ projection.to(gradient))
        changed = without(projection, self._mean, 0.1 ** (1 + self.state["progress"]), self.normalise)
        projection.copy_(torch.where(changed.isfinite().all(), changed, projection))
        self.state["progress"] += self._samples * self.state["per_sample"]
        self._mean = self._samples = None


def without(projection: Tensor, mean: Tensor, alpha: Tensor | float, normalise: bool) -> Tensor:
    """P [D, D] after a step with features of mean r [D]; see MLA."""
    k = projection @ mean
    changed = projection - torch.outer(k, k) / (alpha + mean @ k)
    return changed / changed.norm() if normalise else changed
