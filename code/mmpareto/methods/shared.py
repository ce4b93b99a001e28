"""What several methods compute, and how they read their options.

Shapes: B batch, C classes, D feature width of a modality, M modalities.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpareto.escape import counted
from mmpareto.inputs import wide
from mmpareto.methods.base import Boundary, Losses, Method, MethodError, Piece
from mmpareto.models import EnsembleFusion, MultimodalModel, cross_entropies


class MeanLogits(Method):
    """A method whose joint logits are the mean of the unimodal heads' logits."""

    def fusion(self, widths: Mapping[str, int], classes: int, heads: nn.ModuleDict) -> nn.Module:
        """The mean of the unimodal heads' logits."""
        return EnsembleFusion(heads, "logits")


class Windowed(Method):
    """A method that acts in the epochs `acting`; state["active"] says whether the epoch in progress is one of them."""

    acting: range

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Make `state["active"]`, for the first epoch."""
        super().setup(model, seed, epochs)
        self.state["active"] = self.like.new_full((), 1 in self.acting, dtype=torch.bool)

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Begin or end to act."""
        self.state["active"].fill_(now.epoch in self.acting)
        return {}


class Weighted(Method):
    """A method that minimises a weighted sum of all losses, by weights that follow the losses of the whole batch."""

    changes = "weights of the losses"
    refuses: ClassVar[Mapping[str, str]] = {
        "accumulate": "its weights are the whole batch's, and must be known before its first piece's backward pass"
    }

    def losses(self, piece: Piece) -> Losses:
        """The weighted losses."""
        return piece.losses.weighted(self.weights(self.average(piece.losses.values() * piece.share)))

    def weights(self, losses: Tensor) -> Tensor:
        """The weights [M + 1] for losses [M + 1], the joint one first."""
        raise NotImplementedError


def beside(model: MultimodalModel, seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """A network that learns with the model, in its checkpoints, and that evaluation does without: `model.auxiliary`.

    It is made from the seed, alike on all processes, and leaves the run's random numbers as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model.auxiliary = make().to(next(model.parameters()))
    return model.auxiliary


def contributions_of(model: MultimodalModel) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """The function {modality: [B, D]} -> {modality: [B, C]}: each modality's part of the joint logits, their sum."""
    return cast(Callable[[Mapping[str, Tensor]], dict[str, Tensor]], model.fusion.contributions)


def certainty(logits: Iterable[Tensor], label: Tensor) -> Tensor:
    """The mean probability of the right class, [M], from M logits [B, C] and the labels [B]."""
    stacked = wide(torch.stack(list(logits)))
    return F.softmax(stacked, -1).gather(-1, label.expand(len(stacked), -1).unsqueeze(-1)).mean((1, 2))


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)), the mean over the batch of logits [B, C]."""
    logs, targets = F.log_softmax(wide(logits), 1), F.log_softmax(wide(target), 1)
    return F.kl_div(logs, targets, reduction="batchmean", log_target=True)


@torch.no_grad()
def part_scores(model: MultimodalModel, piece: Piece) -> Tensor:
    """The mean probability of the right class by each modality's part of the joint logits, [M]."""
    parts = contributions_of(model)(piece.output.features)
    return certainty([parts[name] for name in piece.output.features], piece.label)


def modulated(joint: Tensor, parts: Iterable[Tensor], factors: Tensor) -> Tensor:
    """The joint logits, whose gradient into each of M parts [B, C] counts as many times as `factors` [M] say."""
    for factor, part in zip(factors.to(joint.dtype), parts, strict=True):
        joint = joint + (factor - 1) * (part - part.detach())
    return joint


def detached_heads(model: MultimodalModel, piece: Piece) -> dict[str, Tensor]:
    """{modality: its own head's cross-entropy}, on features that count as constants."""
    logits = {name: head(piece.output.features[name].detach()) for name, head in model.heads.items()}
    return cross_entropies(piece.output._replace(unimodal=logits), piece.label).unimodal


def encoder_weights(model: MultimodalModel, prefix: str) -> dict[str, Tensor]:
    """The encoders' parameters, detached, by `prefix.modality.name`."""
    return {f"{prefix}.{name}": p.detach() for name, p in model.encoders.named_parameters()}


def share_head(method: str, widths: Mapping[str, int], heads: nn.ModuleDict, head: nn.Module | None = None) -> None:
    """Make one module the head of all modalities: the first one's, or the one that is given.

    Args:
        method: its name, for messages.
        widths: {modality: D}; heads are the unimodal ones.

    Raises:
        MethodError: for features of different widths.
    """
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise MethodError(f"{method} has one head for all modalities and needs features of one width, found {shown}")
    shared = next(iter(heads.values())) if head is None else head
    for name in widths:
        heads[name] = shared


def hold_back(parameters: Iterable[Tensor], learning: Tensor) -> None:
    """Make gradients zero unless `learning` (bool, on the device); momentum and weight decay still act."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, learning.to(gradients[0].dtype))


def by_name(prefix: str, names: Iterable[str], values: Tensor) -> dict[str, float]:
    """{"prefix_name": value} for each name, as `Method.figures` gives them."""
    return {f"{prefix}_{name}": value for name, value in zip(names, values.tolist(), strict=True)}


def finite(name: str, value: float, least: float = 0.0, most: float = math.inf) -> float:
    """The option `name` as a float.

    Raises:
        ValueError: where it is not a finite number from `least` to `most`.
    """
    if not least <= value <= most or value == math.inf:
        limits = f"{least:g} or more" if most == math.inf else f"between {least:g} and {most:g}"
        raise ValueError(f"{name} must be a finite number, {limits}, found {value}")
    return float(value)


def whole(name: str, value: int, least: int = 0) -> int:
    """The option `name`.

    Raises:
        ValueError: where it is less than `least`.
    """
    if value < least:
        raise ValueError(f"{name} must be {least} or more, found {value}")
    return value


def without_effect(method: type[Method], name: str, value: Any, unused: bool, needs: str) -> None:
    """Refuse the option `name` of a method where it is not the default, and the others leave it without effect.

    Raises:
        ValueError: that says what it needs.
    """
    if unused and value != inspect.signature(method).parameters[name].default:
        raise ValueError(f"{name}={value} has no effect without {needs}; leave it out, or set {needs}")


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """The option `name`.

    Raises:
        ValueError: where it is none of `choices`.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
    return value


def late(acts: str, option: str, begins: int, epochs: int) -> str:
    """For `Method.idle`: that the method acts after the run's last epoch; "" where it acts before.

    Args:
        acts: what it does then: "modulates".
        option: that says after how many epochs.
        begins: its value.
    """
    if epochs > begins:
        return ""
    return f"it never {acts}: {option} is {begins}, and the run has {counted(epochs, 'epoch')}; give a smaller {option}"


def named_values(option: str, text: str, names: Collection[str] | None = None) -> dict[str, float]:
    """The numbers of an option that is written NAME:VALUE,NAME:VALUE; zero or more, finite.

    Args:
        names: those that there are; None: any.

    Raises:
        ValueError: for text of another form, MethodError for an unknown name.
    """
    values = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition(":")
        try:
            values[name] = float(number)
        except ValueError:
            raise ValueError(f"{option}: expected NAME:VALUE,..., found {part!r}") from None
        if not 0 <= values[name] < float("inf"):
            raise ValueError(f"{option}: expected finite values, zero or more, found {part!r}")
    if names is not None:
        check_names(option, values, names)
    return values


def check_names(option: str, values: Iterable[str], names: Collection[str]) -> None:
    """Raise MethodError where an option has a value for a name that there is not."""
    for name in values:
        if name not in names:
            raise MethodError(f"{option}: a value is given for {name!r}; the names are {', '.join(names)}")
