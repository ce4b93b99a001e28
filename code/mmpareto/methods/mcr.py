"""MCR: modalities compete for their part in the prediction (Kontras et al., NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Losses, Method, MethodError, Piece
from mmpareto.methods.competition import contrast, regularizer
from mmpareto.methods.shared import contributions_of, finite
from mmpareto.models import MultimodalModel
from mmpareto.models.losses import wide
from mmpareto.registry import Range

Game = Literal["greedy", "independent", "collaborative"]
SHARED: Mapping[str, float] = {"greedy": -1.0, "independent": 0.0, "collaborative": 1.0}


@METHODS.register("mcr", search={"weight": Range(0.01, 1.0), "unimodal": Range(0.01, 1.0)})
class MCR(Method):
    """MCR (Kontras et al., NeurIPS 2025): modalities compete for their part in the prediction.

    Multimodal competition regularizer (Kontras, Strypsteen, Chatzichristos, Liang, Blaschko & De Vos, "Balancing
    Multimodal Training Through Game-Theoretic Regularization", NeurIPS 2025):

        L + unimodal sum_m L_m + weight R + contrastive NTX.

    J_S is the Jensen-Shannon divergence of the prediction and that with the features of the modalities S exchanged
    among samples. R is the sum over modalities m of

        -sum of J_S over S with m  -  k sum of J_S over S without m,   S all subsets but none and all,

    in which the exchanged prediction's contributions of all modalities but m are constants: a game in which encoder m
    and its block of the joint head move. k = -1 in the greedy game (each modality raises its own influence and lowers
    that of the others; of two modalities R is 0, and the plain prediction gets no gradient), 0 in the independent one.
    In the collaborative game R is -sum of J_S and nothing is constant. NTX draws features of one class together across
    samples and modalities, and needs features of one width.

    The batch is shuffled, so samples are exchanged by shifts of its rows, another one for each modality of S. The
    public repository computes R and NTX for two modalities and returns the loss without them. Not built: the term that
    predicts features from logits by a network of its own, which would be no part of the model that is saved; the paper
    finds it useful after large pre-training alone.

    Args:
        weight: of R; 0.1 for CREMA-D in the published scripts, 0.01 for AVE.
        unimodal: weight of the unimodal losses; 0.01 for CREMA-D there.
        contrastive: weight of NTX; 1 there.
        game: greedy, independent or collaborative.
        shifts: exchanges of samples; 32 there.
        temperature: of NTX, 0.5 there.
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
    ) -> None:
        super().__init__(Uniform())
        if game not in get_args(Game):
            raise ValueError(f"game must be one of {', '.join(get_args(Game))}, found {game!r}")
        if shifts < 1:
            raise ValueError(f"shifts must be 1 or more, found {shifts}")
        self.weight, self.unimodal = finite("weight", weight), finite("unimodal", unimodal)
        self.contrastive, self.shared, self.shifts = finite("contrastive", contrastive), SHARED[game], shifts
        self.temperature = finite("temperature", temperature, 1e-6)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Raises MethodError where features differ in width under NTX."""
        self._contributions = contributions_of(model)
        if self.contrastive and len(set(model.widths.values())) > 1:
            raise MethodError(
                f"MCR's contrastive term needs features of one width, found {model.widths}; give encoders of one "
                "width, or --method_options contrastive=0"
            )

    def losses(self, piece: Piece) -> Losses:
        """The joint loss with both terms, the weighted unimodal ones."""
        features = piece.output.features
        parts = {name: wide(value) for name, value in self._contributions(features).items()}
        joint = piece.losses.joint + self.weight * regularizer(parts, self.shared, self.shifts)
        if self.contrastive:
            joint = joint + self.contrastive * contrast([*features.values()], piece.label, self.temperature)
        return Losses(joint, {name: self.unimodal * loss for name, loss in piece.losses.unimodal.items()})
