"""DGL: encoders learn from unimodal losses alone, the fusion from the joint loss alone (Wei et al., ICCV 2025)."""

from collections.abc import Mapping
from typing import ClassVar

from torch.func import functional_call

from mmpareto.integration import OneUnimodal
from mmpareto.methods.base import METHODS, Losses, Method, Piece
from mmpareto.methods.shared import detached_heads, finite
from mmpareto.models import cross_entropies
from mmpareto.registry import Range


@METHODS.register("dgl", search={"alpha": Range(1.0, 8.0)})
class DGL(Method):
    """DGL (Wei et al., ICCV 2025): encoders learn from unimodal losses alone, the fusion from the joint loss alone.

    Disentangled gradient learning (Wei, Luo & Luo, "Boosting Multimodal Learning via Disentangled Gradient Learning",
    ICCV 2025, arXiv:2507.10213). With u_m the joint logits where the features of all modalities but m are zero,

        encoders   alpha sum_m grad CE(u_m, label), through the fusion as it is,
        fusion     grad of the joint loss, on features that count as constants.

    The model's own heads learn on such features too. As in the published code the whole bias is in u_m. There the
    gradient is clipped to norm 40: `--clip_grad 40`. One backward pass; the fusion runs M times more.

    Args:
        alpha: weight of the unimodal losses, 4 to 5 for CREMA-D in the published code, 2 to 3 for Kinetics-Sounds.
    """

    changes = "which loss reaches which part"
    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "it withholds all modalities but one itself"}

    def __init__(self, alpha: float = 4.0) -> None:
        super().__init__(OneUnimodal())
        self.alpha = finite("alpha", alpha)

    def losses(self, piece: Piece) -> Losses:
        """The joint loss, which reaches the fusion alone, and those of the masked fusion, which do not reach it."""
        fusion, features = self.model.fusion, piece.output.features
        frozen = {name: parameter.detach() for name, parameter in fusion.named_parameters()}
        logits = {name: functional_call(fusion, frozen, (features,), {"present": (name,)}) for name in features}
        masked = cross_entropies(piece.output._replace(unimodal=logits), piece.label).unimodal
        heads = detached_heads(self.model, piece)
        return Losses(piece.losses.joint, {name: self.alpha * masked[name] + heads[name] for name in features})
