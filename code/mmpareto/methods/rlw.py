"""RLW: random loss weights (Lin et al., TMLR 2022)."""

import torch

from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Losses, Piece, SharedDraws
from mmpareto.methods.scalarizations import GROUP
from mmpareto.models import MultimodalModel


@METHODS.register("rlw", group=GROUP)
class RLW(SharedDraws):
    """RLW (Lin et al., TMLR 2022): random weights for each step, the softmax of normal numbers.

    TorchJD's Random draws from the generator of each process; here all processes have the same weights.
    """

    changes = "weights of the losses"

    def __init__(self) -> None:
        super().__init__(Uniform())

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Draw the first weights."""
        super().setup(model, seed, epochs)
        self.state["drawn"] = self.like.new_zeros(len(model.encoders) + 1)
        self.gradients(model)

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses."""
        return piece.losses.weighted(torch.softmax(self.state["drawn"], 0))

    def gradients(self, model: MultimodalModel) -> None:
        """Draw the next step's weights."""
        self.state["drawn"].normal_(generator=self._generator)
