"""The integrator: two gradient sets per encoder -> Gramians -> two coefficients per tensor -> `.grad`.

A routine is a subclass of `Integrator` with one method, `coefficients`. Everything else - the backward passes,
accumulation over micro-batches, averaging over processes, diagnostics - stands here, once.

T parameter tensors of one encoder; index 0 is the joint loss's gradient, index 1 the unimodal losses'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mmpareto.integration.gramian import combine, gramians
from mmpareto.integration.partition import Parameters, Partition, check_losses, check_reached, partition
from mmpareto.integration.reduction import filled, set_gradients, several_processes, start_average


class EncoderDiagnostics(NamedTuple):
    """What one step saw in one encoder; tensors on the encoder's device, so that nothing waits until they are read.

    cosine         of the joint and the unimodal gradient over the whole encoder; 0 where one of them is zero
    joint_norm     of the joint gradient
    unimodal_norm  of the unimodal gradient
    joint_weight   share of the joint gradient's coefficients in all coefficients: 1/2 for a plain sum
    conflict       bool: the cosine is negative
    gramians       [T, 2, 2], in the order of `Integrator.parameter_names`
    coefficients   [T, 2], likewise
    """

    cosine: Tensor
    joint_norm: Tensor
    unimodal_norm: Tensor
    joint_weight: Tensor
    conflict: Tensor
    gramians: Tensor
    coefficients: Tensor


class Integrator(ABC):
    """Integrates the joint and the unimodal gradients inside encoders; heads and fusion get the plain sum's gradient.

    A routine of one's own needs one method:

        class Mine(Integrator):
            def coefficients(self, gramians):                  # [T, 2, 2] -> [T, 2]
                return gramians.new_ones(len(gramians), 2)     # the plain sum

    A step costs two backward passes through the encoders, whatever the number of modalities: one of the joint loss, one
    of the sum of the unimodal losses. Where every modality has its own encoder and head (late fusion) the second pass
    gives each encoder the gradient of its own unimodal loss. Where encoders share parameters or exchange features
    (dense fusion) it gives the gradient of the unimodal losses' sum, the natural generalisation.

    Nothing in a step waits for the device, so that a whole step can be captured in a CUDA graph.

    Under torch.distributed both gradient sets are averaged over the processes first and integrated once, with two
    all-reduces; integration is not linear, so that averaging integrated gradients would be another algorithm. Do not
    wrap the model in DistributedDataParallel. Set `process_group` for another group than the default one, or
    `synchronise = False` to leave the processes alone.
    """

    passes: ClassVar[int] = 2  # backward passes through the encoders a step
    capturable: ClassVar[bool] = True  # whether a step with it can be captured in a CUDA graph
    process_group: dist.ProcessGroup | None = None
    synchronise: bool = True

    _partition: Partition | None = None
    _key: tuple[int, ...] = ()
    # gradient sets gathered from the micro-batches so far, in the order of Partition.encoder_parameters
    _joint: list[Tensor | None] | None = None
    _unimodal: list[Tensor | None] | None = None

    @abstractmethod
    def coefficients(self, gramians: Tensor) -> Tensor:
        """Coefficients of the two gradients for every tensor of one encoder.

        gramians  [T, 2, 2]; sum over T for the whole encoder's Gramian.
        Returns [T, 2]: `.grad` becomes coefficients[t, 0] * joint + coefficients[t, 1] * unimodal.
        Must not wait for the device: torch.where in the place of if, no .item().
        """

    def encoder_coefficients(self, encoder: str, gramians: Tensor) -> Tensor:
        """As `coefficients`, for a routine that keeps a state for every encoder and so must know which one it is."""
        return self.coefficients(gramians)

    def backward(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        *,
        encoders: Mapping[str, Parameters],
        heads: Parameters = (),
        diagnose: bool = False,
    ) -> dict[str, EncoderDiagnostics]:
        """Fills `.grad` of every parameter with the integrated gradient, this step's micro-batches included.

        joint_loss       scalar; the loss on the fused features.
        unimodal_losses  {modality: scalar}. Scale all losses alike (GradScaler, 1 / micro-batches): the scale carries
                         over to the gradient.
        encoders         {name: module, parameters or named parameters}; modules and names make better messages.
        heads            all other parameters that the losses reach: unimodal heads, fusion, joint head.
        diagnose         for the routines that get by with one pass (`passes`): measure both gradients all the same, at
                         the price of a second pass. All others have their diagnostics anyway.
        Returns {encoder: EncoderDiagnostics} of encoders that learn, on the device; empty from one pass.

        What was in `.grad` is replaced, not added to: nothing needs zeroing and nothing stale leaks in. A parameter
        that no loss reaches gets None; with several processes zeros, since another one may reach it. To accumulate,
        call `accumulate` for all micro-batches but the last.

        Raises PartitionError for a parameter that is listed twice or missing, ValueError or TypeError for a loss that
        is no scalar or needs no gradient, ValueError for sparse gradients.
        """
        part, averages = self._run_passes(joint_loss, unimodal_losses, encoders, heads, last=True)
        joint, unimodal = self._take()
        if self._averages_over_processes():
            joint, unimodal = self._average(part, unimodal, averages)

        diagnostics: dict[str, EncoderDiagnostics] = {}
        start = 0
        for name, parameters in part.encoders.items():
            end = start + len(parameters)
            if parameters:  # else it is frozen
                diagnostics[name] = self._integrate(
                    name, parameters, joint[start:end], unimodal[start:end], joint_loss.device
                )
            start = end
        return diagnostics

    def accumulate(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        *,
        encoders: Mapping[str, Parameters],
        heads: Parameters = (),
        diagnose: bool = False,
    ) -> None:
        """Takes in a micro-batch that is not the step's last one; arguments as for `backward`.

        The two gradient sets are summed over the micro-batches, and `backward` integrates the sums: with losses divided
        by the number of micro-batches this is the whole batch's step.
        """
        self._run_passes(joint_loss, unimodal_losses, encoders, heads, last=False)

    def reset(self) -> None:
        """Forgets the micro-batches taken in since the last `backward`."""
        self._joint = self._unimodal = None

    def parameter_names(self, encoder: str) -> list[str]:
        """Names of an encoder's trainable tensors, in the order of the diagnostics' T; known after the first step."""
        return [] if self._partition is None else self._partition.names[encoder]

    def state_dict(self) -> dict[str, Any]:
        """What the routine carries from step to step; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises ValueError for a state that this routine cannot have written.
        """
        if state:
            raise ValueError(f"{type(self).__name__} carries no state, found {sorted(state)}")

    # -- the passes ----------------------------------------------------------------------------------------------------

    def _run_passes(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        encoders: Mapping[str, Parameters],
        heads: Parameters,
        last: bool,
    ) -> tuple[Partition, Callable[[], list[Tensor]]]:
        """Both passes of a micro-batch; on the last one the first set's all-reduce runs beside the second pass."""
        part = self._prepare(joint_loss, unimodal_losses, encoders, heads)
        parameters = part.encoder_parameters
        if self._joint is None:
            set_gradients([*parameters, *part.heads], None)
            self._joint = self._unimodal = [None] * len(parameters)
        assert self._joint is not None
        assert self._unimodal is not None
        inputs = [*parameters, *part.heads]
        averages: Callable[[], list[Tensor]] = list
        try:
            set_gradients(parameters, self._joint)
            torch.autograd.backward([joint_loss], inputs=inputs, retain_graph=True)
            self._joint = [p.grad for p in parameters]
            if last and self._averages_over_processes():
                averages = start_average(filled(parameters, self._joint), self.process_group)
            set_gradients(parameters, self._unimodal)
            torch.autograd.backward(list(unimodal_losses.values()), inputs=inputs)
            self._unimodal = [p.grad for p in parameters]
        except BaseException:
            self.reset()
            raise
        set_gradients(parameters, None)
        return part, averages

    def _prepare(
        self,
        joint_loss: Tensor,
        unimodal_losses: Mapping[str, Tensor],
        encoders: Mapping[str, Parameters],
        heads: Parameters,
    ) -> Partition:
        """The partition; checked against the losses' graphs when it is a new one."""
        check_losses(joint_loss, unimodal_losses)
        part = partition(encoders, heads)
        key = (*(id(p) for p in part.encoder_parameters), -1, *(id(p) for p in part.heads))
        if self._partition is None or key != self._key or part.names.keys() != self._partition.names.keys():
            if self._joint is not None:
                self.reset()
                raise ValueError("the parameters changed between the micro-batches of one step")
            check_reached(part, [joint_loss, *unimodal_losses.values()])
            self._partition, self._key = part, key  # the partition holds the parameters, so that no id is used again
        return part

    def _averages_over_processes(self) -> bool:
        return self.synchronise and several_processes(self.process_group)

    def _take(self) -> tuple[list[Tensor | None], list[Tensor | None]]:
        joint, unimodal = self._joint, self._unimodal
        assert joint is not None
        assert unimodal is not None
        self.reset()
        for gradient in (*joint, *unimodal):
            if gradient is not None and gradient.layout != torch.strided:
                raise ValueError(
                    f"an encoder's gradient of shape {list(gradient.shape)} is sparse; integration needs dense ones "
                    "(for an embedding: sparse=False)"
                )
        return joint, unimodal

    def _average(
        self, part: Partition, unimodal: list[Tensor | None], joint_averages: Callable[[], list[Tensor]]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Both sets averaged over the processes; the heads travel with the second."""
        parameters = part.encoder_parameters
        heads = filled(part.heads, [p.grad for p in part.heads])
        finish = start_average([*filled(parameters, unimodal), *heads], self.process_group)
        joint: list[Tensor | None] = list(joint_averages())
        averaged = finish()
        set_gradients(part.heads, averaged[len(parameters) :])
        return joint, list(averaged[: len(parameters)])

    def _integrate(
        self,
        encoder: str,
        parameters: list[Tensor],
        joint: list[Tensor | None],
        unimodal: list[Tensor | None],
        device: torch.device,
    ) -> EncoderDiagnostics:
        """Gramians, coefficients and `.grad` of one encoder."""
        with torch.no_grad():
            gram = gramians(joint, unimodal, device)
            chosen = self.encoder_coefficients(encoder, gram)
            if chosen.shape != (len(parameters), 2):
                raise ValueError(
                    f"{type(self).__name__}.coefficients gave shape {list(chosen.shape)}; expected [T, 2] = "
                    f"{[len(parameters), 2]}"
                )
            for t, parameter in enumerate(parameters):
                parameter.grad = combine(joint[t], unimodal[t], chosen[t])
            return diagnose(gram, chosen)


def diagnose(gramians: Tensor, coefficients: Tensor) -> EncoderDiagnostics:
    """Diagnostics of one encoder from its Gramians [T, 2, 2] and coefficients [T, 2]."""
    total = gramians.sum(0)
    joint_norm, unimodal_norm = total[0, 0].sqrt(), total[1, 1].sqrt()
    norms = joint_norm * unimodal_norm
    weights = coefficients.sum(0)
    return EncoderDiagnostics(
        cosine=torch.where(norms == 0, 0.0, total[0, 1] / norms).clamp(-1, 1),
        joint_norm=joint_norm,
        unimodal_norm=unimodal_norm,
        joint_weight=weights[0] / weights.sum(),
        conflict=total[0, 1] < 0,
        gramians=gramians,
        coefficients=coefficients,
    )
