"""MMCosine: a joint head that sees directions only (Xu et al., ICASSP 2023)."""

from collections.abc import Mapping

from torch import nn

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Method
from mmpareto.methods.shared import finite
from mmpareto.models import CosineFusion
from mmpareto.registry import Range


@METHODS.register("mmcosine", search={"scale": Range(3.0, 30.0)})
class MMCosine(Method):
    """MMCosine (Xu et al., ICASSP 2023): a joint head of directions.

    MMCosine (Xu, Feng, Zhang & Hu, "MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained
    Learning", ICASSP 2023): one joint loss, on joint logits of features and weights of length one,

        z_c = s sum_m cos(f_m, W_mc),   without a bias.

    The same logits are used in evaluation, where the published code goes back to the raw linear ones.

    Args:
        scale: s; 10 in the published code.
    """

    changes = "features or joint head"

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__(OneJoint())
        self.scale = finite("scale", scale, 1e-6)

    def fusion(self, widths: Mapping[str, int], classes: int, heads: nn.ModuleDict) -> nn.Module:
        """The cosine head."""
        return CosineFusion(widths, classes, self.scale)
