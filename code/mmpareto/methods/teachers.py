"""Unimodal models that are trained before the run, and teach the encoders: the base of UMT and G2D."""

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpareto.inputs import wide
from mmpareto.integration import Integrator, OneUnimodal
from mmpareto.methods.base import Boundary, Losses, Method, Piece
from mmpareto.methods.shared import whole
from mmpareto.models import MultimodalModel, Output


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
        self.teacher_epochs = whole("teacher_epochs", teacher_epochs)

    @property
    def planned(self) -> bool:
        """Where the teachers train for as long as the run."""
        return not self.teacher_epochs

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make room for the teachers."""
        super().setup(model, seed, epochs)
        self._teachers = copy.deepcopy(model).requires_grad_(False).eval()
        for name, value in self._teachers.state_dict().items():
            if not name.startswith("fusion."):  # which nobody asks
                self.state[f"teacher.{name}"] = value  # shares the teachers' memory

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Train the teachers, before the first epoch."""
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


def distances(output: Output, lesson: Output) -> dict[str, Tensor]:
    """{modality: the mean squared distance of its features to the teacher's}."""
    return {name: F.mse_loss(wide(value), wide(lesson.features[name])) for name, value in output.features.items()}
