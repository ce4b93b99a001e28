"""The base of TorchJD's scalarizations: one function of the joint loss and the unimodal losses is minimised."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from mmpareto.integration import Uniform
from mmpareto.methods.base import MethodError
from mmpareto.methods.shared import Weighted, named_values
from mmpareto.models import MultimodalModel

GROUP = "scalarizations"


class Scalarization(Weighted):
    """Minimises a function f of all losses: each counts its derivative of f, at the losses of the whole batch.

    So the gradient is that of f over all processes, where averaging the processes' own f would be another function.
    f is a module of TorchJD, which maps losses [M + 1], the joint one first, to a scalar. A loss of 0, as that of a
    modality which no sample of the batch has, counts as the mean of the others where f is derived.

    Args:
        name: of TorchJD's class.
        arguments: of its constructor.
        weights: its last argument, a tensor [M + 1], as NAME:VALUE,NAME:VALUE, "joint" or a modality; None: it has
            none.
        even: all other weights are 1 / (M + 1), else 1.
    """

    def __init__(self, name: str, *arguments: float, weights: str | None = None, even: bool = True) -> None:
        super().__init__(Uniform())
        self.name, self.arguments, self.text, self.even = name, arguments, weights, even
        self.function: Callable[[Tensor], Tensor] = torch.sum

    def make(self) -> Callable[[Tensor], Tensor]:
        """f for losses of `heads`, the first of which is "joint"."""
        arguments: list[float | Tensor] = list(self.arguments)
        if self.text is not None:
            values = named_values("weights", self.text, self.heads)
            default = 1 / len(self.heads) if self.even else 1.0
            weights = [values.get(name, default) for name in self.heads]
            if not any(weights):
                raise MethodError(f"weights={self.text}: all weights are 0, so that nothing learns; give one above 0")
            arguments.append(torch.stack([self.like.new_full((), weight) for weight in weights]))
        return getattr(importlib.import_module("torchjd.scalarization"), self.name)(*arguments)

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make the function."""
        super().setup(model, seed, epochs)
        self.heads = ["joint", *model.encoders]
        self.function = self.make()

    def point(self, losses: Tensor) -> Tensor:
        """Where f is derived: the losses [M + 1], none of which is 0."""
        present = losses != 0
        mean = torch.where(present, losses, 0.0).sum() / present.sum().clamp(min=1)
        return torch.where(present, losses, mean)

    def weights(self, losses: Tensor) -> Tensor:
        """The derivatives of f, [M + 1]; zeros where all losses are 0."""
        with torch.enable_grad():
            point = self.point(losses.detach()).requires_grad_()
            (slopes,) = torch.autograd.grad(self.function(point), point)
        return torch.where((losses != 0).any(), slopes, 0.0)
