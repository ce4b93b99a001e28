"""UMT: features stay near those of unimodal teachers (Du et al., ICML 2023)."""

import torch

from mmpareto.integration import OneJoint
from mmpareto.methods.base import METHODS, Losses, Piece
from mmpareto.methods.shared import finite
from mmpareto.methods.teachers import Taught, distances
from mmpareto.registry import Range


@METHODS.register("umt", search={"weight": Range(1.0, 30.0)})
class UMT(Taught):
    """UMT (Du et al., ICML 2023): features stay near those of unimodal teachers.

    Unimodal teacher (Du, Teng, Li, Liu, Yuan, Wang, Yuan & Zhao, "On Uni-Modal Feature Learning in Supervised
    Multi-Modal Learning", ICML 2023): the joint loss and weight times the sum over modalities of the mean square of
    f_m - f_m of the teacher.

    A re-implementation leaves its teachers in training mode; here they are in evaluation mode.

    Args:
        weight: of the distance, 10 in a re-implementation; the authors' value was not found.
        teacher_epochs: of the teachers; 0: as many as the run's.
    """

    def __init__(self, weight: float = 10.0, teacher_epochs: int = 0) -> None:
        super().__init__(OneJoint(), teacher_epochs)
        self.weight = finite("weight", weight)

    def losses(self, piece: Piece) -> Losses:
        """The joint loss with the distance, the unimodal ones as they are."""
        apart = torch.stack([*distances(piece.output, self.lesson(piece)).values()]).sum()
        return Losses(piece.losses.joint + self.weight * apart, piece.losses.unimodal)
