"""MCR: modalities compete for their part in the prediction (Kontras et al., NeurIPS 2025)."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from mmpareto.inputs import wide
from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Losses, Method, MethodError, Piece
from mmpareto.methods.competition import contrast, regularizer
from mmpareto.methods.shared import beside, contributions_of, finite, one_of, whole, without_effect
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range

Game = Literal["greedy", "independent", "collaborative"]
SHARED: Mapping[str, float] = {"greedy": -1.0, "independent": 0.0, "collaborative": 1.0}


@METHODS.register("mcr", search={"weight": Range(0.01, 1.0), "unimodal": Range(0.01, 1.0)})
class MCR(Method):
    """MCR (Kontras et al., NeurIPS 2025): modalities compete for their part in the prediction.

    Multimodal competition regularizer (Kontras, Strypsteen, Chatzichristos, Liang, Blaschko & De Vos, "Balancing
    Multimodal Training Through Game-Theoretic Regularization", NeurIPS 2025):

        L + unimodal sum_m L_m + weight R + contrastive NTX + bottleneck CEB.

    J_S is the Jensen-Shannon divergence of the prediction and that with the features of the modalities S exchanged
    among samples. R is the sum over modalities m of

        -sum of J_S over S with m  -  k sum of J_S over S without m,   S all subsets but none and all,

    in which the exchanged prediction's contributions of all modalities but m are constants: a game in which encoder m
    and its block of the joint head move. k = -1 in the greedy game (each modality raises its own influence and lowers
    that of the others; of two modalities R is 0, and the plain prediction gets no gradient), 0 in the independent one.
    In the collaborative game R is -sum of J_S and nothing is constant. NTX draws features of one class together across
    samples and modalities, and needs features of one width.

    CEB, the conditional entropy bottleneck, is the mean square of [f_1, ..., f_M] - h(z), z the joint logits as
    constants and h two linear layers without bias, with a ReLU between, as wide as a feature inside. h learns with the
    model. The paper finds CEB useful after large pre-training alone.

    The batch is shuffled, so samples are exchanged by shifts of its rows, another one for each modality of S. The
    public repository computes R and NTX for two modalities and returns the loss without them.

    Args:
        weight: of R; 0.1 for CREMA-D in the published scripts, 0.01 for AVE.
        unimodal: weight of the unimodal losses; 0.01 for CREMA-D there.
        contrastive: weight of NTX; 1 there.
        game: greedy, independent or collaborative.
        shifts: exchanges of samples; 32 there.
        temperature: of NTX, 0.5 there.
        bottleneck: weight of CEB; 1 for CREMA-D with Conformers there, 0 with ResNets.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"contributions", "features"})
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("accumulate", "processes"), "it compares the samples of a batch with one another, which must be in one piece"
    ) | {"missing": "it exchanges features of samples that have all modalities"}

    def __init__(
        self,
        weight: float = 0.1,
        unimodal: float = 0.01,
        contrastive: float = 1.0,
        game: Game = "greedy",
        shifts: int = 32,
        temperature: float = 0.5,
        bottleneck: float = 0.0,
    ) -> None:
        super().__init__(Uniform())
        self.weight, self.unimodal = finite("weight", weight), finite("unimodal", unimodal)
        self.contrastive, self.bottleneck = finite("contrastive", contrastive), finite("bottleneck", bottleneck)
        self.shared, self.shifts = SHARED[one_of("game", game, get_args(Game))], whole("shifts", shifts, 1)
        self.temperature = finite("temperature", temperature, 1e-6)
        without_effect(MCR, "temperature", temperature, not contrastive, "contrastive")

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make h; raise MethodError where features differ in width under NTX."""
        super().setup(model, seed, epochs)
        if self.bottleneck:
            classes, width, total = model.classes, max(model.widths.values()), sum(model.widths.values())
            layers = partial(nn.Linear, bias=False)
            self._predict = beside(
                model, seed, lambda: nn.Sequential(layers(classes, width), nn.ReLU(), layers(width, total))
            )
        if self.contrastive and len(set(model.widths.values())) > 1:
            raise MethodError(
                f"MCR's contrastive term needs features of one width, found {model.widths}; give encoders of one "
                "width, or --method_options contrastive=0"
            )

    def losses(self, piece: Piece) -> Losses:
        """The joint loss with the three terms, the weighted unimodal ones."""
        features = piece.output.features
        parts = {name: wide(value) for name, value in contributions_of(self.model)(features).items()}
        joint = piece.losses.joint + self.weight * regularizer(parts, self.shared, self.shifts)
        if self.contrastive:
            joint = joint + self.contrastive * contrast([*features.values()], piece.label, self.temperature)
        if self.bottleneck:
            predicted = wide(self._predict(piece.output.joint.detach()))
            joint = joint + self.bottleneck * F.mse_loss(predicted, wide(torch.cat([*features.values()], 1)))
        return Losses(joint, {name: self.unimodal * loss for name, loss in piece.losses.unimodal.items()})
