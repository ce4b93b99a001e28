"""What a training method is: the points at which it may act on the training of a multimodal classifier.

Shapes: B batch, C classes, D feature width of a modality, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from mmpareto import registries
from mmpareto.errors import UserError
from mmpareto.inputs import Inputs
from mmpareto.integration import Integrator
from mmpareto.integration.reduction import start_average
from mmpareto.models import Losses, MultimodalModel, Output
from mmpareto.registry import Registry


class MethodError(UserError, ValueError):
    """A method cannot train this model or this run."""


# The beginnings of the names of the parameters that learn in an optimiser's step; None: all of them.
Turn = tuple[str, ...] | None


class Piece(NamedTuple):
    """A batch, or one of the micro-batches that it is cut into, after the forward pass.

    Attributes:
        share: factor of its losses in the step's average: over its pieces the sum, over the processes the mean.
        inputs: of the model, for methods that run another one beside it.
        turn: position in `Method.turns`.
    """

    output: Output
    label: Tensor  # int64 [B]
    losses: Losses  # the cross-entropies
    share: float
    inputs: Inputs | None = None
    turn: int = 0


class Engine(Protocol):
    """What a method may request of the engine between two epochs; all processes must request the same, together."""

    def outputs(
        self, part: float, split: str = "train", shared: bool = True, gradients: bool = False
    ) -> Iterator[tuple[Output, Tensor]]:
        """Outputs and labels of a random part of a split's samples ("train" or "val"), by batches.

        In evaluation mode. Each process gets its share, which may be nothing; all samples, where they are not `shared`.

        Args:
            part: a fraction of the samples, a float, or their number, an int.
            gradients: whether outputs have gradients; they are then computed without mixed precision.
        """

    def fit(self, method: Method, epochs: int, samples: Tensor) -> MultimodalModel:
        """Train a copy of the model as it is now, by another method, on these training samples alone."""

    def losses(self, model: MultimodalModel, samples: Tensor) -> dict[str, float]:
        """{"joint" or a modality: mean cross-entropy} over training samples, in evaluation mode, not augmented."""

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""

    def alike(self) -> None:
        """Give all processes the main one's weights."""


@dataclass(frozen=True)
class Boundary:
    """The moment before an epoch.

    Attributes:
        epoch: that is about to begin: 1, 2, ...
        epochs: of the run.
        validation: {"joint" or a modality: validation accuracy in percent} after the epoch before; empty before the
            first.
        labels: int64 [N] of the training samples.
    """

    epoch: int
    epochs: int
    validation: Mapping[str, float]
    labels: Tensor
    model: MultimodalModel
    optimizer: torch.optim.Optimizer
    engine: Engine


Change = Literal[
    "size of an encoder's gradient or rate",
    "weights of the losses",
    "terms of the loss",
    "which loss reaches which part",
    "features or joint head",
    "phases and resets",
    "which parts learn when",
]


class Method:
    """A training method; as it stands, the plain case: cross-entropies, and an integrator of their gradients.

    Five points, each of which does nothing unless a subclass says so, in the order in which they come:

    fusion     what makes the joint logits, in training and evaluation alike.
    setup      once, when the model is there: checks it, makes the tensors of `state`.
    boundary   before every epoch; may change the model and the optimiser, gives factors of learning rates.
    losses     what is minimised, from a batch's features, logits and labels; may fuse again without some modalities.
    gradients  after the integrator has filled `.grad` (and a gradient scaler is taken out again), before clipping and
               the optimiser.

    `turns` says which parameters learn in a step, where modalities learn alternately.

    `state` holds what is carried from step to step and from epoch to epoch, tensors by name; it is in checkpoints. It
    is changed in place, since a CUDA graph keeps using the same memory, and nothing in `losses` and `gradients` waits
    for the device.

    Args:
        integrator: how the joint loss's and the unimodal losses' gradients meet in the encoders.
    """

    # what it changes above all, for the figure in docs/methods.md
    changes: ClassVar[Change] = "terms of the loss"
    # what the method cannot work with, and the reason: flags of train.py, "processes", or "missing" (modalities)
    refuses: ClassVar[Mapping[str, str]] = {}
    # what it needs of the model: see `MultimodalModel.offers`
    requires: ClassVar[frozenset[str]] = frozenset()
    # what --architecture is unless it is given; None: the usual one
    architecture: ClassVar[str | None] = None

    model: MultimodalModel  # what `Method.setup` was given
    names: list[str]  # of its modalities
    like: Tensor  # on its device and of its type, for `like.new_zeros(...)`

    def __init__(self, integrator: Integrator) -> None:
        self.integrator = integrator
        self.state: dict[str, Tensor] = {}
        self._sums: Tensor | None = None  # see `collect`

    @property
    def selectable(self) -> bool:
        """Whether the model after the epoch in progress may be the selected one."""
        return True

    @property
    def turns(self) -> Sequence[Turn]:
        """The optimiser's steps that a batch takes, in order.

        One step of all parameters, unless modalities learn alternately. Parameters that are not named keep their value,
        and momentum and weight decay leave them alone. Encoders run once a batch; before each step but the first the
        heads run again, as they are then. So an encoder may be named once, the model must offer "features", and a
        method with several steps refuses `accumulate` and `compile`.
        """
        return (None,)

    @property
    def planned(self) -> bool:
        """Whether what it does depends on the number of epochs: such a run cannot be resumed with another one."""
        return False

    def idle(self, epochs: int) -> str:
        """What the method never does in a run of so many epochs, for a warning; "" where it does all. After `setup`."""
        return ""

    def fusion(self, widths: Mapping[str, int], classes: int, heads: nn.ModuleDict) -> nn.Module | None:
        """The fusion module that the method needs, see `MultimodalModel`; None: the model's own.

        Args:
            widths: {modality: D}; heads are the unimodal ones.
        """
        return None

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Prepare for a model, a seed and a number of epochs, before a run begins or a checkpoint is restored.

        Sets `model`, `names` and `like`.

        Raises:
            MethodError: where the method cannot train it.
        """
        self.model, self.names = model, list(model.encoders)
        self.like = next(model.parameters()).detach()

    def boundary(self, now: Boundary) -> dict[str, float]:
        """Acts before an epoch; {modality: factor of its encoder's learning rate}, 1 where none is given."""
        return {}

    def losses(self, piece: Piece) -> Losses:
        """The losses whose gradients are integrated."""
        return piece.losses

    def gradients(self, model: MultimodalModel) -> None:
        """Change `.grad`."""

    def figures(self) -> dict[str, float]:
        """What a row of metrics.csv says of the method's own state after an epoch. May wait for the device."""
        return {}

    def collect(self, values: Tensor) -> None:
        """Add a piece's part of a sum over the whole batch, in `losses`; `gradients` reads it by `collected`."""
        self._sums = values if self._sums is None else self._sums + values

    def collected(self) -> Tensor:
        """The sum over the step's pieces, averaged over the processes. The next step begins anew."""
        assert self._sums is not None
        sums, self._sums = self._sums, None
        return self.average(sums)

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes; alone, the values themselves. Does not wait for the device."""
        if self.processes == 1:
            return values
        return start_average([values], self.integrator.process_group)()[0]

    @property
    def processes(self) -> int:
        """Over how many processes `average` goes."""
        return self.integrator.processes

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the integrator's state and the method's own."""
        return {
            "integrator": self.integrator.state_dict(),
            "own": {name: value.detach().clone() for name, value in self.state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`, after `setup`.

        Raises:
            ValueError: for a state of another method.
        """
        tensors = state["own"]
        if tensors.keys() != self.state.keys() or any(tensors[k].shape != v.shape for k, v in self.state.items()):
            here, saved = ({k: list(v.shape) for k, v in sorted(state.items())} for state in (self.state, tensors))
            raise ValueError(f"{type(self).__name__} keeps tensors of shapes {here}, the saved state has {saved}")
        self.integrator.load_state_dict(state["integrator"])
        for name, value in self.state.items():
            value.copy_(tensors[name])


# Methods, and integrators that are wrapped in the plain Method, by name.
METHODS: Registry[Method | Integrator] = registries.METHODS


def build_method(name: str, **options: Any) -> Method:
    """A method ready for `setup`.

    Args:
        name: one of METHODS, or `package.module:Class`: a subclass of Method, or of Integrator for a routine on plain
            cross-entropies.
        options: of that method, such as gamma.

    Raises:
        ValueError: for an unknown method or option, or a value that it cannot use.
        ImportError: for a missing library that it needs.
    """
    built = METHODS.build(name, **options)
    if isinstance(built, Method) and not hasattr(built, "integrator"):
        raise ValueError(f"the method {name} has no integrator: its __init__ must call super().__init__(integrator)")
    return built if isinstance(built, Method) else Method(built)


class SharedDraws(Method):
    """A method with a generator of its own, seeded alike on all processes and saved in checkpoints.

    All processes must draw equally many numbers.
    """

    refuses: ClassVar[Mapping[str, str]] = {"cuda_graph": "its noise comes from a generator that a graph would replay"}

    def setup(self, model: MultimodalModel, seed: int, epochs: int) -> None:
        """Seed the generator."""
        super().setup(model, seed, epochs)
        self._generator = torch.Generator(self.like.device).manual_seed(seed)
        self.state["generator"] = self._generator.get_state()

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`; the generator's state is part of it."""
        self.state["generator"].copy_(self._generator.get_state())
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`.

        Raises:
            ValueError: for the state of another kind of device, whose generators have another form.
        """
        saved = cast(Mapping[str, Tensor], state["own"]).get("generator")
        if saved is not None and saved.shape != self.state["generator"].shape:
            raise ValueError(
                f"the generator of {type(self).__name__}'s noise differs between GPU and CPU: continue this run on the "
                "kind of device on which it was begun (--gpu_ids)"
            )
        super().load_state_dict(state)
        self._generator.set_state(self.state["generator"])
