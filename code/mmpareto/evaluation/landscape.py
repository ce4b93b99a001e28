"""The joint loss around a fixed model: along random directions, and its sharpness.

Shapes: D directions, K points along each.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmpareto.datasets import DeviceBatch
from mmpareto.evaluation import EvaluationError
from mmpareto.models import MultimodalModel


@dataclass(frozen=True)
class Surface:
    """Joint loss and accuracy (percent) along each direction.

    alphas                 K multiples of the direction, 0 in the middle.
    losses, accuracies     D rows of K.
    """

    alphas: list[float]
    losses: list[list[float]]
    accuracies: list[list[float]]


@torch.no_grad()
def filter_normalised(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction in which every filter is as long as that of the weights.

    Filter normalisation of Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018: normal numbers,
    each filter (a slice of the first dimension: of a convolution an output channel, of a linear map a row) scaled to
    the norm of the weights' filter; biases and the parameters of batch norm, which have one dimension, do not move.

    generator  on the CPU, so that every device gets the same direction.
    """
    direction = []
    for weights in parameters:
        if weights.dim() < 2:
            direction.append(torch.zeros_like(weights))
            continue
        drawn = torch.randn(weights.shape, generator=generator, dtype=torch.float64).to(weights.device).flatten(1)
        scale = weights.double().flatten(1).norm(dim=1) / drawn.norm(dim=1)
        direction.append((drawn * scale[:, None]).view(weights.shape).to(weights.dtype))
    return direction


def surface(
    model: MultimodalModel, batches: Iterable[DeviceBatch], directions: int, distance: float, points: int, seed: int
) -> Surface:
    """The joint loss at `points` places from -distance to distance along random filter-normalised directions.

    model    in evaluation mode afterwards; its weights end as they were, bit for bit.
    batches  gone through once for every place.
    points   odd: the model itself is in the middle.

    Raises EvaluationError where the loss is not finite.
    """
    half = points // 2
    alphas = [distance * step / half for step in range(-half, half + 1)]
    parameters = list(model.parameters())
    kept = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(seed)
    here = mean_loss(model, batches)
    if not math.isfinite(here[0]):
        raise EvaluationError("the joint loss is not finite: the model diverged, or the split holds such values")
    rows: list[list[tuple[float, float]]] = []
    try:
        for _ in range(directions):
            direction = filter_normalised(kept, generator)
            rows.append([])
            for alpha in alphas:
                if alpha == 0:
                    rows[-1].append(here)
                    continue
                _move(parameters, kept, direction, alpha)
                rows[-1].append(mean_loss(model, batches))
                if not math.isfinite(rows[-1][-1][0]):
                    raise EvaluationError(
                        f"the joint loss is not finite at {alpha:g} of a random direction; give a smaller --distance"
                    )
    finally:
        _move(parameters, kept)
    return Surface(alphas, [[loss for loss, _ in row] for row in rows], [[right for _, right in row] for row in rows])


@torch.no_grad()
def mean_loss(model: MultimodalModel, batches: Iterable[DeviceBatch]) -> tuple[float, float]:
    """Joint cross-entropy and accuracy in percent of the model, in evaluation mode, over all samples."""
    model.eval()
    sums, samples = torch.zeros(2, dtype=torch.float64), 0
    for inputs, label, present in batches:
        logits = model(inputs, present).joint
        loss = F.cross_entropy(logits.double(), label, reduction="sum")
        sums = sums.to(loss.device) + torch.stack([loss, (logits.argmax(1) == label).sum().double()])
        samples += len(label)
    if not samples:
        raise EvaluationError("there are no samples to take the loss of")
    loss, right = (sums / samples).tolist()
    return loss, 100 * right


def hessian_product(model: MultimodalModel, batches: Iterable[DeviceBatch]) -> tuple[Callable[[Tensor], Tensor], int]:
    """v -> H v, both float64 [P], of the mean joint loss over all samples, and P.

    H is the Hessian with respect to all parameters that reach the joint loss, found by differentiating twice; memory is
    that of one batch. The model is in evaluation mode afterwards; its `.grad` stays as it is.

    batches  gone through once for every product.

    Raises EvaluationError where there are none.
    """
    model.eval()
    first = next(iter(batches), None)
    if first is None:
        raise EvaluationError("there are no samples to take the loss of")
    trainable = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        F.cross_entropy(model(first.inputs, first.present).joint, first.label), trainable, allow_unused=True
    )
    reached = [p for p, gradient in zip(trainable, gradients, strict=True) if gradient is not None]
    sizes = [p.numel() for p in reached]

    def product(vector: Tensor) -> Tensor:
        parts = [part.view_as(p).to(p.dtype) for part, p in zip(vector.split(sizes), reached, strict=True)]
        total, samples = torch.zeros_like(vector), 0
        for inputs, label, present in batches:
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention cannot be differentiated twice
                loss = F.cross_entropy(model(inputs, present).joint, label, reduction="sum")
            gradients = torch.autograd.grad(loss, reached, create_graph=True)
            hessian_vector_products = torch.autograd.grad(
                gradients, reached, grad_outputs=parts, materialize_grads=True
            )
            total += torch.cat([part.flatten() for part in hessian_vector_products]).double()
            samples += len(label)
        return total / samples

    return product, sum(sizes)


@torch.no_grad()
def _move(
    parameters: Sequence[Tensor], kept: Sequence[Tensor], direction: Sequence[Tensor] | None = None, alpha: float = 0.0
) -> None:
    """Weights kept + alpha * direction; without a direction the kept ones themselves."""
    for place, parameter in enumerate(parameters):
        parameter.copy_(kept[place] if direction is None else kept[place] + alpha * direction[place])
