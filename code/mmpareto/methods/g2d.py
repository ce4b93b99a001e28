"""G2D: teachers' features and predictions; weak modalities learn first (Rakib & Bagavathi, ICCV 2025)."""

import torch

from mmpareto.inputs import wide
from mmpareto.integration import Uniform
from mmpareto.methods.base import METHODS, Boundary, Losses, Piece
from mmpareto.methods.shared import MeanLogits, certainty, divergence, finite, hold_back
from mmpareto.methods.teachers import Taught, distances
from mmpareto.models import MultimodalModel
from mmpareto.registry import Range


@METHODS.register("g2d", search={"temperature": Range(0.5, 4.0), "held_back": [0.0, 0.25, 0.5]})
class G2D(MeanLogits, Taught):
    """G2D (Rakib & Bagavathi, ICCV 2025): teachers' features and predictions; weak modalities learn first.

    Gradient-guided distillation (Rakib & Bagavathi, "G2D: Boosting Multimodal Learning with Gradient-Guided
    Distillation", ICCV 2025): the joint logits z are the mean of the own heads' logits, and the loss is

        CE(z, label) + sum_m T^2 KL(softmax(t_m / T) || softmax(z / T)) + sum_m mean square of f_m - teacher's f_m,

    t_m the logits of the teacher. At first only the encoder learns whose teacher is least sure of the right class, by
    the mean over the batch; then the two least sure ones, and so on, for as many epochs each; then all. The gradients
    of the others are zero. Momentum and weight decay still move them, as in the published code, which zeroes
    convolutions alone.

    Args:
        temperature: T, 1 in the published code.
        held_back: share of the run's epochs before all learn, 0 to 1; 150 of 300 there.
        teacher_epochs: of the teachers; 0: as many as the run's.
    """

    def __init__(self, temperature: float = 1.0, held_back: float = 0.5, teacher_epochs: int = 0) -> None:
        super().__init__(Uniform(), teacher_epochs)
        self.temperature = finite("temperature", temperature, 1e-6)
        self.held_back = finite("held_back", held_back, most=1)

    @property
    def planned(self) -> bool:
        """Where the phases are parts of the run, or the teachers train for as long."""
        return self.held_back > 0 or super().planned

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make room for the teachers; the first phase."""
        super().setup(model, seed, epochs)
        device = self.like.device
        self.state["learning"] = torch.ones((), dtype=torch.int64, device=device)  # encoders that learn

    def boundary(self, now: Boundary) -> dict[str, float]:
        """The phase of the epoch."""
        super().boundary(now)
        phases = len(now.model.encoders) - 1
        ends = [round(self.held_back * now.epochs * number / phases) for number in range(1, phases + 1)]
        self.state["learning"].fill_(1 + sum(now.epoch > end for end in ends))
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The joint loss, and for each modality its distances to the teacher."""
        lesson = self.lesson(piece)
        self.collect(certainty(lesson.unimodal.values(), piece.label) * piece.share)
        student = wide(piece.output.joint) / self.temperature
        apart = distances(piece.output, lesson)
        for name, logits in lesson.unimodal.items():
            gap = divergence(wide(logits) / self.temperature, student)
            apart[name] = apart[name] + self.temperature**2 * gap
        return Losses(piece.losses.joint, apart)

    @torch.no_grad()
    def gradients(self, model: MultimodalModel) -> None:
        """Keep the encoders back whose turn has not come."""
        ranks = self.collected().argsort().argsort()
        learns = ranks < self.state["learning"]
        for encoder, learning in zip(model.encoders.values(), learns, strict=True):
            hold_back(encoder.parameters(), learning)
