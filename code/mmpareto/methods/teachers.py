"""UMT and G2D: unimodal models, trained before the run, teach the encoders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.integration import Integrator, OneJoint, OneUnimodal, Uniform
from mmpareto.methods.base import METHODS, Boundary, Losses, Method, Piece, certainty, finite, gathered, wide
from mmpareto.models import EnsembleFusion, MultimodalModel, Output
from mmpareto.registry import Range


class Alone(Method):
    """The unimodal losses alone."""

    def __init__(self) -> None:
        super().__init__(OneUnimodal())

    def losses(self, piece: Piece) -> Losses:
        """The unimodal losses; the joint one is a constant, since joint logits may be made of the own heads."""
        return piece.losses._replace(joint=piece.losses.joint.detach())


class Taught(Method):
    """Base of methods with teachers: a copy of the model, trained on the unimodal losses before the first epoch.

    The teachers begin from the run's first weights, see the run's training samples, optimiser and schedule, and are
    left in evaluation mode. They are in the checkpoint. A step runs them once, without gradients.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"features"})
    refuses: ClassVar[Mapping[str, str]] = {"missing": "its teachers are trained on samples that have all modalities"}

    def __init__(self, integrator: Integrator, teacher_epochs: int) -> None:
        super().__init__(integrator)
        if teacher_epochs < 0:
            raise ValueError(f"teacher_epochs must be 0 or more, found {teacher_epochs}")
        self.teacher_epochs = teacher_epochs

    @property
    def planned(self) -> bool:
        """Where the teachers train for as long as the run."""
        return not self.teacher_epochs

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make room for the teachers."""
        self._teachers = copy.deepcopy(model).requires_grad_(False).eval()
        for name, value in self._teachers.state_dict().items():
            if not name.startswith("fusion."):  # which nobody asks
                self.state[f"teacher.{name}"] = value  # shares the teachers' memory

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Trains the teachers, before the first epoch."""
        if now.epoch == 1:
            samples = torch.arange(len(now.labels))
            taught = now.engine.fit(Alone(), self.teacher_epochs or now.epochs, samples)
            self._teachers.load_state_dict(taught.state_dict())
        return {}

    def lesson(self, piece: Piece) -> Output:
        """The teachers' features and unimodal logits."""
        assert piece.inputs is not None
        with torch.no_grad():
            return self._teachers(piece.inputs)


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


@METHODS.register("g2d", search={"temperature": Range(0.5, 4.0)})
class G2D(Taught):
    """G2D (Rakib & Bagavathi, ICCV 2025): teachers' features and predictions; weak modalities learn first.

    Gradient-guided distillation (Rakib & Bagavathi, "G2D: Boosting Multimodal Learning with Gradient-Guided
    Distillation", ICCV 2025): the joint logits z are the mean of the own heads' logits, and the loss is

        CE(z, label) + sum_m T^2 KL(softmax(t_m / T) || softmax(z / T)) + sum_m mean square of f_m - teacher's f_m,

    t_m the logits of the teacher. In the first `phase` epochs only the encoder learns whose teacher is least sure of
    the right class, by the mean over the batch; in the next as many the two least sure ones, and so on; then all. The
    gradients of the others are zero. Momentum and weight decay still move them, as in the published code, which zeroes
    convolutions alone.

    Args:
        temperature: T, 1 in the published code.
        phase: epochs of each phase, 150 of 300 there.
        teacher_epochs: of the teachers; 0: as many as the run's.
    """

    def __init__(self, temperature: float = 1.0, phase: int = 150, teacher_epochs: int = 0) -> None:
        super().__init__(Uniform(), teacher_epochs)
        if phase < 0:
            raise ValueError(f"phase must be 0 or more, found {phase}")
        self.temperature, self.phase = finite("temperature", temperature, 1e-6), phase
        self._scores: Tensor | None = None  # [M], of the teachers on this step's pieces so far

    def fusion(self, widths: Mapping[str, int], classes: int, heads: nn.ModuleDict) -> nn.Module:
        """The mean of the unimodal heads' logits."""
        return EnsembleFusion(heads, "logits")

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make room for the teachers; the first phase."""
        super().setup(model, seed, epochs)
        device = next(model.parameters()).device
        self.state["learning"] = torch.ones((), dtype=torch.int64, device=device)  # encoders that learn

    def boundary(self, now: Boundary) -> dict[str, float]:
        """The phase of the epoch."""
        super().boundary(now)
        self.state["learning"].fill_(1 + (now.epoch - 1) // self.phase if self.phase else len(now.model.encoders))
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The joint loss, and for each modality its distances to the teacher."""
        lesson = self.lesson(piece)
        scores = certainty(lesson.unimodal.values(), piece.label) * piece.share
        self._scores = gathered(self._scores, scores)
        pupil = F.log_softmax(wide(piece.output.joint) / self.temperature, 1)
        apart = distances(piece.output, lesson)
        for name, logits in lesson.unimodal.items():
            teacher = F.log_softmax(wide(logits) / self.temperature, 1)
            gap = F.kl_div(pupil, teacher, reduction="batchmean", log_target=True)
            apart[name] = apart[name] + self.temperature**2 * gap
        return Losses(piece.losses.joint, apart)

    @torch.no_grad()
    def gradients(self, model: MultimodalModel) -> None:
        """Keeps the encoders back whose turn has not come."""
        assert self._scores is not None
        ranks = self.average(self._scores).argsort().argsort()
        self._scores = None
        learns = ranks < self.state["learning"]
        for encoder, learning in zip(model.encoders.values(), learns, strict=True):
            gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, learning.to(gradients[0].dtype))


def distances(output: Output, lesson: Output) -> dict[str, Tensor]:
    """{modality: the mean squared distance of its features to the teacher's}."""
    return {name: F.mse_loss(wide(value), wide(lesson.features[name])) for name, value in output.features.items()}
