"""DWA: losses weighted by how they fell from epoch to epoch (Liu et al., CVPR 2019)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from mmpareto.escape import counted
from mmpareto.methods.base import METHODS, Boundary, Losses, Piece
from mmpareto.methods.scalarizations import GROUP, Scalarization
from mmpareto.methods.shared import by_name, finite
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("dwa", group=GROUP, search={"temperature": Range(1.0, 5.0)})
class DWA(Scalarization):
    """DWA (Liu et al., CVPR 2019): a loss that falls slowly counts more, by the means of the last two epochs.

    A mean is over the steps in which the loss is not 0, as it is where no sample of the batch has the modality.

    Args:
        temperature: 2 in the paper; larger values make the weights more alike.
    """

    refuses: ClassVar[Mapping[str, str]] = {}  # its weights are known before the epoch

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__("DWA", finite("temperature", temperature, 1e-6))

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the function; the means of the epochs are in the checkpoint."""
        super().setup(model, seed, epochs)
        count = len(self.heads)
        self.state["weights"] = self.like.new_ones(count)
        self.state["sums"] = self.like.new_zeros(2, count)  # of this epoch: losses, steps
        self.state["means"] = self.like.new_full((2, count), math.nan)  # of the last two epochs

    def idle(self, epochs: int) -> str:
        """Where there are no two epochs before another one."""
        return "" if epochs > 2 else f"its weights change from epoch 3 on, and the run has {counted(epochs, 'epoch')}"

    def boundary(self, now: Boundary) -> dict[str, float]:
        """The weights of the epoch."""
        sums, means = self.state["sums"], self.state["means"]
        if now.epoch > 1:
            means.copy_(torch.stack((means[1], sums[0] / sums[1])))
        sums.zero_()
        if bool(means.isfinite().all()):
            function: Any = self.function
            function.reset()
            for mean in means:
                function(mean)
                function.step()
            self.state["weights"].copy_(self.weights(means[1]))
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses; collects them."""
        self.collect(piece.losses.values() * piece.share)
        return piece.losses.weighted(self.state["weights"])

    def gradients(self, model: MultimodalModel) -> None:
        """Add the step's losses to the epoch's."""
        losses = self.collected().to(self.state["sums"])
        self.state["sums"] += torch.where(losses.isfinite().all(), torch.stack((losses, (losses != 0).to(losses))), 0.0)

    def figures(self) -> dict[str, float]:
        """The losses' weights."""
        return by_name("weight", self.heads, self.state["weights"])
