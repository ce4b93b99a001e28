"""The integrator: two gradient sets per encoder -> Gramians -> two coefficients per tensor -> `.grad`.

A routine is a subclass of `Integrator` with one method, `coefficients`. Everything else - the backward passes,
accumulation over micro-batches, averaging over processes, diagnostics - stands here, once.

T parameter tensors of one encoder; index 0 is the joint loss's gradient, index 1 the unimodal losses'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmpareto import streams
from mmpareto.integration import graph
from mmpareto.integration.diagnostics import EncoderDiagnostics, diagnose
from mmpareto.integration.given import Given, LossOrLosses, check_losses, losses_of, parameters_of
from mmpareto.integration.gramian import combine_all, gramians, unscaled, without_autocast
from mmpareto.integration.partition import (
    Branch,
    Parameters,
    Partition,
    check_dense,
    check_placement,
    check_reached,
    named_pairs,
    partition,
    separate,
)
from mmpareto.integration.reduction import (
    add_gradients,
    filled,
    gradients,
    set_gradients,
    several_processes,
    start_average,
)


@dataclass
class _GradientSets:
    """Gradients summed over the micro-batches of a step, in the order of the partition."""

    joint: list[Tensor | None]
    unimodal: list[Tensor | None]
    heads: list[Tensor | None]


class Integrator(ABC):
    """Integrates the joint and the unimodal gradients inside encoders; heads and fusion get the plain sum's gradient.

    A new routine needs one method:

        class Mine(Integrator):
            def coefficients(self, gramians):                  # [T, 2, 2] -> [T, 2]
                return gramians.new_ones(len(gramians), 2)     # the plain sum

    A step costs two backward passes through the encoders, whatever the number of modalities: one of the joint loss, one
    of the sum of the unimodal losses. Where every modality has its own encoder and head (late fusion) the second pass
    gives each encoder the gradient of its own unimodal loss. Where encoders share parameters or exchange features
    (dense fusion) it gives the gradient of the unimodal losses' sum, the natural generalisation.

    Where every unimodal loss reaches one encoder, the two passes are taken encoder by encoder, so that the second set
    of gradients exists for one encoder at a time. Inside an encoder they are taken by segments, from one addition of a
    residual block to the next, so that both are through with a segment, and it is freed, before the next one begins.
    The result is the same. While a CUDA graph is captured with `streams.side_by_side`, encoders take turns, each on its
    stream. With micro-batches, several processes or dense fusion both passes go through all encoders.

    Nothing in a step waits for the device, so that a whole step can be captured in a CUDA graph.

    The losses' graphs are walked once a step (0.2 ms for two ResNet-18): a parameter that they reach and that is not
    listed is an error in whatever step it appears. What only the first pass reaches is freed after the second, so no
    graph stays in memory longer than after `loss.backward()`.

    Under torch.distributed both gradient sets are averaged over the processes first and integrated once, with two
    all-reduces; integration is not linear, so that averaging integrated gradients would be another algorithm. A model
    in DistributedDataParallel and sharded parameters (FSDP, DTensor) are refused. Set `process_group` for another group
    than the default one, or `synchronise = False` to leave the processes alone.
    """

    passes: ClassVar[int] = 2  # backward passes through the encoders a step
    capturable: ClassVar[bool] = True  # whether a step with it can be captured in a CUDA graph
    float64_products: bool = False  # whether Gramians of nearly parallel gradients must be exact on a CPU too
    process_group: dist.ProcessGroup | None = None
    synchronise: bool = True

    # which losses reach the heads that lie before the encoders' features: the joint one, the unimodal ones
    between: ClassVar[tuple[bool, bool]] = (True, True)

    _partition: Partition | None = None
    _key: tuple[int, ...] = ()
    _between: frozenset[int] = frozenset()  # ids of these parameters; unused where both losses reach them
    _sets: _GradientSets | None = None  # None between two steps

    @abstractmethod
    def coefficients(self, gramians: Tensor) -> Tensor:
        """Coefficients of the two gradients for every tensor of one encoder.

        Returns [T, 2]: `.grad` becomes coefficients[t, 0] * joint + coefficients[t, 1] * unimodal.
        Must not wait for the device: torch.where in the place of if, no .item().

        Args:
            gramians: [T, 2, 2], float64, without `loss_scale`; sum over T for the whole encoder's Gramian.
        """

    def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
        """See `coefficients`; for a routine that keeps a state for each encoder.

        One state for all encoders cannot be captured: in a CUDA graph they are at work at the same time.
        """
        return self.coefficients(gramians)

    def backward(
        self,
        joint_loss: LossOrLosses,
        unimodal_losses: Mapping[str, Tensor] | Iterable[Tensor],
        *,
        encoders: Mapping[str, Parameters],
        heads: Parameters = (),
        model: nn.Module | None = None,
        features: Mapping[str, Tensor] | None = None,
        diagnose: bool = False,
        loss_scale: Tensor | float = 1.0,
    ) -> dict[str, EncoderDiagnostics]:
        """Fill `.grad` of every parameter with the integrated gradient, this step's micro-batches included.

        Returns {encoder: EncoderDiagnostics} of encoders that learn, on the device; empty from one pass.

        What was in `.grad` is replaced, not added to: nothing needs zeroing and nothing stale leaks in. A parameter
        that no loss reaches, or that is frozen, gets None; with several processes one that no loss reaches gets zeros,
        since another process may reach it. To accumulate, call `accumulate` for all micro-batches but the last.

        Hooks of an encoder's parameter (`register_hook`) run once for each of the two sets. The joint loss's pass
        through the heads may be taken once for each encoder: hooks of modules and tensors there run as often, and
        `retain_grad` adds up. A hook on the graph node of an addition may be left out.

        Args:
            joint_loss: scalar; the loss on the fused features. A list or a dict of scalars counts as their sum.
            unimodal_losses: {modality: scalar}, or a list of scalars. Scale all losses alike (GradScaler,
                1 / micro-batches): the scale carries over to the gradient.
            encoders: {name: module, parameters or named parameters}; modules and names make better messages.
            heads: all other parameters that the losses reach: unimodal heads, fusion, joint head.
            model: in the place of `heads`: all parameters of this module that belong to no encoder.
            features: {encoder: [B, D]}, its outputs for these losses. `OnFeatures` needs them; `OneJoint` and
                `OneUnimodal` learn from them which of the heads lie before the features, as modules do through which
                encoders exchange information.
            loss_scale: factor of all losses that changes from step to step, such as a gradient scaler's: give
                `scaler.scale(torch.ones((), device=...))`. Routines that remember norms (MetaBalance, pcd) and the
                diagnostics need it; it stays in the gradients.
            diagnose: for the routines that get by with one pass (`passes`): measure both gradients all the same, at the
                price of a second pass. All others have their diagnostics anyway.

        Raises:
            PartitionError: for a parameter that is listed twice, is reached but not listed, is sharded, belongs to a
                DistributedDataParallel model or has a post-accumulate-grad hook; ValueError or TypeError for a loss
                that is no scalar or needs no gradient; ValueError for a sparse gradient of an encoder, of which
                two are to be combined. After an error the micro-batches are forgotten.
        """
        try:
            given = self._given(joint_loss, unimodal_losses, encoders, heads, model, features)
            return self._backward(given, diagnose, loss_scale)
        finally:
            self.reset()

    def accumulate(
        self,
        joint_loss: LossOrLosses,
        unimodal_losses: Mapping[str, Tensor] | Iterable[Tensor],
        *,
        encoders: Mapping[str, Parameters],
        heads: Parameters = (),
        model: nn.Module | None = None,
        features: Mapping[str, Tensor] | None = None,
        diagnose: bool = False,
    ) -> None:
        """Take in a micro-batch that is not the step's last one; arguments and errors as for `backward`.

        The two gradient sets are summed over the micro-batches, and `backward` integrates the sums: with losses divided
        by the number of micro-batches this is the whole batch's step. The sums stay in the integrator until then:
        `.grad` is None, and zeroing it changes nothing.
        """
        try:
            given = self._given(joint_loss, unimodal_losses, encoders, heads, model, features)
            self._accumulate(given, diagnose)
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """Forget the micro-batches taken in since the last `backward`."""
        self._sets = None

    def parameter_names(self, encoder: Parameters) -> list[str]:
        """Names of an encoder's trainable tensors, in the order of the diagnostics' T."""
        return [name for name, parameter in named_pairs(encoder, "encoder") if parameter.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """What the routine carries from step to step; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: for a state that this routine cannot have written.
        """
        if state:
            raise ValueError(f"{type(self).__name__} carries no state, found {sorted(state)}")

    # -- the passes ----------------------------------------------------------------------------------------------------

    def _given(
        self,
        joint_loss: LossOrLosses,
        unimodal_losses: Mapping[str, Tensor] | Iterable[Tensor],
        encoders: Mapping[str, Parameters],
        heads: Parameters,
        model: nn.Module | None,
        features: Mapping[str, Tensor] | None,
    ) -> Given:
        joint, unimodal = losses_of(joint_loss, unimodal_losses)
        encoders, heads = parameters_of(encoders, heads, model)
        self._check(joint, unimodal)
        return Given(joint, list(unimodal.values()), encoders, heads, features or {})

    def _check(self, joint: Tensor, unimodal: Mapping[str, Tensor]) -> None:
        check_losses(joint, unimodal)

    def _backward(self, given: Given, diagnose: bool, loss_scale: Tensor | float) -> dict[str, EncoderDiagnostics]:
        """See `backward`."""
        part, first_only, walks = self._prepare([given.joint], given.unimodal, given)
        if not self._in_step and self.processes == 1:
            branches = separate(part, given.unimodal, walks)
            if branches is not None:
                diagnostics = self._encoder_by_encoder(part, given.joint, branches, first_only, loss_scale)
                graph.release(first_only)
                return diagnostics
        averages = self._run_passes(part, given, last=True)
        graph.release(first_only)
        sets, self._sets = self._sets, None
        assert sets is not None
        check_dense([*sets.joint, *sets.unimodal])
        if self.processes > 1:
            sets = self._average(part, sets, averages)
        try:
            set_gradients(part.heads, sets.heads)
            diagnostics = {}
            start = 0
            for name, parameters in part.encoders.items():
                end = start + len(parameters)
                if parameters:  # else it is frozen
                    diagnostics[name] = self._integrate(
                        name, parameters, sets.joint[start:end], sets.unimodal[start:end], loss_scale
                    )
                start = end
        except BaseException:
            set_gradients(part.all_parameters, None)
            raise
        return diagnostics

    def _accumulate(self, given: Given, diagnose: bool) -> None:
        """See `accumulate`."""
        part, first_only, _ = self._prepare([given.joint], given.unimodal, given)
        self._run_passes(part, given, last=False)
        graph.release(first_only)

    def _run_passes(self, part: Partition, given: Given, last: bool) -> Callable[[], list[Tensor]]:
        """Both passes of a micro-batch; on the last one the first set's all-reduce runs beside the second pass."""
        if self._sets is None:
            none: list[Tensor | None] = [None] * len(part.encoder_parameters)
            self._sets = _GradientSets(none, none, [None] * len(part.heads))
        sets, parameters = self._sets, part.encoder_parameters
        of_joint, of_unimodal = self._heads(part)
        averages: Callable[[], list[Tensor]] = list
        try:
            set_gradients(part.heads, sets.heads)
            set_gradients(parameters, sets.joint)
            add_gradients([given.joint], [*parameters, *of_joint], retain_graph=True)
            sets.joint = gradients(parameters)
            if last and self.processes > 1:
                averages = start_average(filled(parameters, sets.joint), self.process_group)
            set_gradients(parameters, sets.unimodal)
            add_gradients(given.unimodal, [*parameters, *of_unimodal])
            sets.unimodal, sets.heads = gradients(parameters), gradients(part.heads)
        except RuntimeError:
            check_placement(part)  # the model may have been wrapped after the first step
            raise
        finally:
            set_gradients(part.all_parameters, None)
        return averages

    def _encoder_by_encoder(
        self,
        part: Partition,
        joint_loss: Tensor,
        branches: Mapping[str, Branch],
        joint_only: set[graph.Node],
        loss_scale: Tensor | float,
    ) -> dict[str, EncoderDiagnostics]:
        """Both passes and the integration of one encoder after the other; see the class."""
        diagnostics: dict[str, EncoderDiagnostics] = {}
        of_joint, of_unimodal = self._heads(part)
        set_gradients(part.all_parameters, None)

        def integrated(name: str, branch: Branch, joint_heads: list[Tensor]) -> Iterator[None]:
            parameters = part.encoders[name]
            segments = graph.segments([joint_loss, *branch.losses], branch.nodes, joint_only)
            joint, unimodal = yield from graph.both_passes(
                parameters, joint_heads, of_unimodal, joint_loss, branch.losses, segments
            )
            check_dense([*joint, *unimodal])
            diagnostics[name] = self._integrate(name, parameters, joint, unimodal, loss_scale)

        # the first encoder's joint pass gives the heads the joint loss's gradient
        work = {
            name: integrated(name, branch, of_joint if not k else [])
            for k, (name, branch) in enumerate(branches.items())
        }
        try:
            streams.run(work)
        except BaseException as error:
            set_gradients(part.all_parameters, None)
            if isinstance(error, RuntimeError):
                check_placement(part)  # the model may have been wrapped after the first step
            raise
        return {name: diagnostics[name] for name in branches}

    def _prepare(
        self, first: Sequence[Tensor], second: Sequence[Tensor], given: Given
    ) -> tuple[Partition, set[graph.Node], list[graph.Walk]]:
        """The partition, checked.

        Returns also the nodes that the second pass's losses do not reach, to be freed after it; and the walk of each of
        those losses, beyond the walks before it.
        """
        part = partition(given.encoders, given.heads)
        key = (*(id(p) for p in part.encoder_parameters), -1, *(id(p) for p in part.heads))
        if self._partition is None or key != self._key or part.encoders.keys() != self._partition.encoders.keys():
            if self._in_step:
                raise ValueError("the parameters changed between the micro-batches of one step")
            check_placement(part)
            self._partition, self._key = part, key  # the partition holds the parameters, so that no id is used again
            if not all(self.between):
                nodes = graph.walk(given.features.values()).nodes
                self._between = frozenset(map(id, graph.leaves(nodes)))
        set_gradients(part.frozen, None)
        walks: list[graph.Walk] = []
        second_nodes: set[graph.Node] = set()
        for loss in second:
            walks.append(graph.walk([loss], second_nodes))
            second_nodes |= walks[-1].nodes
        first_only = graph.walk(first, second_nodes).nodes
        check_reached(part, graph.leaves([*second_nodes, *first_only]))
        return part, first_only, walks

    def _heads(self, part: Partition) -> tuple[list[Tensor], list[Tensor]]:
        """The heads that the joint loss gives a gradient, and those that the unimodal losses do; see `between`."""
        of_joint, of_unimodal = (
            part.heads if reached else [p for p in part.heads if id(p) not in self._between] for reached in self.between
        )
        return of_joint, of_unimodal

    @property
    def _in_step(self) -> bool:
        """Whether micro-batches were taken in that no `backward` has integrated yet."""
        return self._sets is not None

    @property
    def processes(self) -> int:
        """How many processes gradients are averaged over."""
        several = self.synchronise and several_processes(self.process_group)
        return dist.get_world_size(self.process_group) if several else 1

    def _average(
        self, part: Partition, sets: _GradientSets, joint_averages: Callable[[], list[Tensor]]
    ) -> _GradientSets:
        """Both sets averaged over the processes; the heads travel with the second."""
        parameters = part.encoder_parameters
        finish = start_average(
            [*filled(parameters, sets.unimodal), *filled(part.heads, sets.heads)], self.process_group
        )
        joint = joint_averages()
        averaged = finish()
        return _GradientSets(list(joint), list(averaged[: len(parameters)]), list(averaged[len(parameters) :]))

    def _checked_coefficients(self, encoder: str, gram: Tensor) -> Tensor:
        """Coefficients [T, 2] for Gramians [T, 2, 2], in their type and on their device.

        Raises ValueError where the routine gives something else.
        """
        coefficients = self.encoder_coefficients(encoder, gram)
        if not isinstance(coefficients, Tensor) or coefficients.shape != (len(gram), 2):
            shape = getattr(coefficients, "shape", None)
            raise ValueError(
                f"{type(self).__name__}.coefficients gave "
                f"{type(coefficients).__name__ if shape is None else f'shape {list(shape)}'}; expected a tensor "
                f"[T, 2] = {[len(gram), 2]}"
            )
        return coefficients.to(gram)

    def _integrate(
        self,
        encoder: str,
        parameters: list[Tensor],
        joint: list[Tensor | None],
        unimodal: list[Tensor | None],
        loss_scale: Tensor | float,
    ) -> EncoderDiagnostics:
        """Gramians, coefficients and `.grad` of one encoder."""
        device = parameters[0].device
        with torch.no_grad(), without_autocast(device):  # an autocast region around `backward` would refuse float64
            gram = unscaled(gramians(joint, unimodal, device, self.float64_products), loss_scale, device)
            coefficients = self._checked_coefficients(encoder, gram)
            set_gradients(parameters, combine_all(joint, unimodal, coefficients))
            return diagnose(gram, coefficients)
