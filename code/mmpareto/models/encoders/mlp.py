"""An encoder of feature vectors."""

from torch import nn

from mmpareto.models.encoders.base import ENCODERS


@ENCODERS.register("mlp")
class MLPEncoder(nn.Sequential):
    """Two linear layers with a ReLU between, for inputs that are feature vectors already, D = 512.

    [B, inputs] -> [B, 512].
    """

    takes = frozenset({"vector"})
    width = 512

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(shape[0], self.width), nn.ReLU(inplace=True), nn.Linear(self.width, self.width))
