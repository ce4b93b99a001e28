"""ReconBoost: a modality at a time learns what the others get wrong (Hua et al., ICML 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.escape import counted
from mmpareto.inputs import wide
from mmpareto.integration import OneUnimodal
from mmpareto.methods.base import METHODS, Boundary, Losses, Method, Piece, Turn
from mmpareto.methods.shared import finite, share_head, whole
from mmpareto.models import BoostedSum, MultimodalModel
from mmpareto.registry import Range


@METHODS.register(
    "reconboost", search={"alone_epochs": Range(1, 4), "together_epochs": Range(1, 4), "label_weight": Range(1.0, 10.0)}
)
class ReconBoost(Method):
    """ReconBoost (Hua et al., ICML 2024): a modality at a time learns what the others get wrong.

    Hua, Xu, Bao, Yang & Huang, "ReconBoost: Boosting Can Achieve Modality Reconcilement", ICML 2024. All modalities
    have one head; the joint logits are boost sum_m u_m. Each stage of a run belongs to one modality m, in turn. In the
    first epochs of a stage encoder m and the head learn from the mean over samples and classes of

        -label_weight y log p_m + rival_weight y q log p_m,   q = softmax(boost sum of u_j over the other modalities),

    and agreement times the mean square of p_m - p_j, j the modality of the stage before (not in the first stage). Then
    all parameters, `boost` too, learn from the cross-entropy of the joint logits. Momentum begins anew in each part of
    a stage. q and p_j count as constants.

    This is the public code's rule but for one thing: there the agreement has no gradient on either side, which is
    agreement=0. `every_class` takes q log p_m over all classes, the Kullback-Leibler divergence of which the paper
    speaks. Public code begins from trained unimodal encoders; here they begin as the options of --encoder say.

    Args:
        alone_epochs: of a stage in which one modality learns, 4 in the published code.
        together_epochs: of a stage in which all learn, 4 there.
        label_weight: 5 for CREMA-D there, 4 for AVE.
        rival_weight: 1 there.
        agreement: weight of the agreement, 0.5 in the published code, where its gradient is cut.
        every_class: take q log p_m over all classes, in the place of the right one alone.
        hidden: width of the head's hidden layer, 256 there; 0: a linear head.
    """

    changes = "which parts learn when"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {
        "missing": "it compares the modalities' predictions sample by sample",
        "cuda_graph": "other parameters learn from epoch to epoch",
    }

    def __init__(
        self,
        alone_epochs: int = 4,
        together_epochs: int = 4,
        label_weight: float = 5.0,
        rival_weight: float = 1.0,
        agreement: float = 0.5,
        every_class: bool = False,
        hidden: int = 256,
    ) -> None:
        super().__init__(OneUnimodal())
        self.alone_epochs = whole("alone_epochs", alone_epochs, 1)
        self.together_epochs, self.hidden = whole("together_epochs", together_epochs), whole("hidden", hidden)
        self.weights = finite("label_weight", label_weight), finite("rival_weight", rival_weight)
        self.agreement, self.every_class = finite("agreement", agreement), bool(every_class)
        self.state["epoch"] = torch.ones((), dtype=torch.int64)  # on the CPU, read once an epoch

    def fusion(self, widths: Mapping[str, int], classes: int, heads: nn.ModuleDict) -> nn.Module:
        """The boosted sum of the logits of the one head."""
        width = next(iter(widths.values()))
        layers = (nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, classes))
        share_head("ReconBoost", widths, heads, nn.Sequential(*layers) if self.hidden else None)
        return BoostedSum(heads)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Begin the first stage."""
        super().setup(model, seed, epochs)
        self._begin(1)

    def _begin(self, epoch: int) -> None:
        self.stage, self.epoch_of_stage = divmod(epoch - 1, self.alone_epochs + self.together_epochs)
        self.learner = self.names[self.stage % len(self.names)]
        self.together = self.epoch_of_stage >= self.alone_epochs

    def idle(self, epochs: int) -> str:
        """Where the run ends before every modality has had a stage."""
        before = (len(self.names) - 1) * (self.alone_epochs + self.together_epochs)
        if epochs > before:
            return ""
        return (
            f"{self.names[-1]} never learns alone: the stages before take {before} epochs, and the run has "
            f"{counted(epochs, 'epoch')}; give fewer alone_epochs or together_epochs"
        )

    @property
    def turns(self) -> Sequence[Turn]:
        """The stage's modality, or all."""
        return (None if self.together else (f"encoders.{self.learner}.", "heads."),)

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Begin an epoch; momentum begins anew with a part of a stage."""
        self.state["epoch"].fill_(now.epoch)
        self._begin(now.epoch)
        if now.epoch > 1 and self.epoch_of_stage in (0, self.alone_epochs):
            now.optimizer.state.clear()
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The one loss of the epoch, under the name of the stage's modality."""
        loss = piece.losses.joint if self.together else self._alone(piece)
        return Losses(piece.losses.joint.detach(), {self.learner: loss})

    def _alone(self, piece: Piece) -> Tensor:
        others = [name for name in self.names if name != self.learner]
        with torch.no_grad():
            rivals = F.softmax(wide(self.model.fusion(piece.output.features, present=others)), 1)
        logs = F.log_softmax(wide(piece.output.unimodal[self.learner]), 1)
        loss = boosting(logs, rivals, piece.label, *self.weights, self.every_class)
        if self.stage and self.agreement:
            before = wide(piece.output.unimodal[self.names[(self.stage - 1) % len(self.names)]]).detach()
            loss = loss + self.agreement * F.mse_loss(logs.exp(), F.softmax(before, 1))
        return loss

    def figures(self) -> dict[str, float]:
        """The position of the stage's modality, and whether all learn."""
        return {"learner": float(self.names.index(self.learner)), "together": float(self.together)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        super().load_state_dict(state)
        self._begin(int(self.state["epoch"]))


def boosting(
    logs: Tensor, rivals: Tensor, label: Tensor, label_weight: float, rival_weight: float, every_class: bool
) -> Tensor:
    """The mean over samples and classes of the loss of log p_m and q, both [B, C]; see ReconBoost."""
    certain = logs.gather(1, label.unsqueeze(1))
    reconciled = rivals * logs if every_class else rivals.gather(1, label.unsqueeze(1)) * certain
    return (rival_weight * reconciled.sum(1) - label_weight * certain[:, 0]).mean() / rivals.shape[1]
