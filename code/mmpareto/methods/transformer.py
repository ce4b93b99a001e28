"""Control: the late-fusion transformer, trained plainly."""

from typing import ClassVar

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Method, MethodError
from mmpareto.models import MultimodalModel
from mmpareto.models.transformer import Transformer


@METHODS.register("transformer")
class TransformerControl(Method):
    """Control: one joint loss, and a transformer over the tokens of all modalities for the joint head.

    The simple baseline that SimBaMM (arXiv 2512.22991) asks balancing methods to beat, by `--architecture transformer`,
    which this method brings. SimBaMM's sees one token per modality: `--architecture_options pooled=true`.
    """

    changes = "features or joint head"
    architecture: ClassVar[str | None] = "transformer"

    def __init__(self) -> None:
        super().__init__(OneJoint())

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Raise MethodError for another architecture."""
        super().setup(model, seed, epochs)
        if not isinstance(model, Transformer):
            raise MethodError(
                f"the method transformer needs the architecture of this name, found {type(model).__name__}; leave "
                "--architecture out"
            )
