"""The batch step: forward, losses, the method's gradients, optimiser. It stands here and nowhere else.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpareto.integration import EncoderDiagnostics
from mmpareto.methods import Losses, Method, Piece, cross_entropies
from mmpareto.models import MultimodalModel, Output

Inputs = Mapping[str, Tensor]


class Step(NamedTuple):
    """What a step leaves to look at; everything stays on the device, detached."""

    joint: Tensor  # logits [B, C]
    unimodal: dict[str, Tensor]  # {modality: logits [B, C]}
    losses: Losses  # cross-entropies, whatever the method minimises
    gradient_norm: Tensor  # of the method's gradient over all parameters, before clipping
    diagnostics: dict[str, EncoderDiagnostics]


class TrainingStep:
    """One update of the model for every call.

    model, method, optimizer  what is trained, what on and how its gradients meet, what moves its parameters.
    clip_grad      largest norm of the method's gradient over all parameters; None leaves it alone.
    amp            type of automatic mixed precision; None: everything in the parameters' own.
    scaler         scales the losses, for float16: steps whose gradients overflow are left out, see `overflows`.
    accumulate     micro-batches that a batch is cut into; both gradient sets are summed over them and integrated once.
    forward        what is called for the model's output; by default the model, else what torch.compile made of it.
    """

    def __init__(
        self,
        model: MultimodalModel,
        method: Method,
        optimizer: torch.optim.Optimizer,
        *,
        clip_grad: float | None = None,
        amp: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        accumulate: int = 1,
        forward: Callable[[Inputs], Output] | None = None,
    ) -> None:
        self.model, self.method, self.optimizer = model, method, optimizer
        self.clip_grad, self.amp, self.scaler, self.accumulate = clip_grad, amp, scaler, accumulate
        self.forward = model if forward is None else forward
        first = next(model.parameters())
        self.overflows = torch.zeros((), dtype=torch.int64, device=first.device)

    def __call__(self, inputs: Inputs, label: Tensor, *, weight: float = 1.0, diagnose: bool = False) -> Step:
        """Takes the step.

        inputs    {modality: [B, ...]}, label int64 [B], both on the model's device.
        weight    of this process's losses in the average over the processes: 1 where all have as many samples.
        diagnose  see `Integrator.backward`.
        """
        parts = min(self.accumulate, len(label))
        pieces = {name: value.chunk(parts) for name, value in inputs.items()}
        labels = label.chunk(parts)
        seen: list[tuple[Output, Losses, float]] = []
        diagnostics: dict[str, EncoderDiagnostics] = {}
        for k, piece in enumerate(labels):
            share = len(piece) / len(label)
            output, loss, minimised = self._forward(
                {name: value[k] for name, value in pieces.items()}, piece, share * weight
            )
            last = k == len(labels) - 1
            diagnostics = self._backward(minimised, share * weight, last, diagnose)
            # detached at once: the next piece needs this one's memory
            seen.append((_detached(output), Losses(loss.joint.detach(), _detach(loss.unimodal)), share))
        norm = self._update()
        if len(seen) == 1:
            output, loss, _ = seen[0]
            return Step(output.joint, output.unimodal, loss, norm, diagnostics)
        return Step(
            torch.cat([output.joint for output, _, _ in seen]),
            {name: torch.cat([output.unimodal[name] for output, _, _ in seen]) for name in seen[0][0].unimodal},
            Losses(
                torch.stack([loss.joint * share for _, loss, share in seen]).sum(),
                {
                    name: torch.stack([loss.unimodal[name] * share for _, loss, share in seen]).sum()
                    for name in seen[0][1].unimodal
                },
            ),
            norm,
            diagnostics,
        )

    def _forward(self, inputs: Inputs, label: Tensor, share: float) -> tuple[Output, Losses, Losses]:
        """Output, cross-entropies, and what the method minimises."""
        with torch.autocast(label.device.type, self.amp, enabled=self.amp is not None):
            output = self.forward(inputs)
            plain = cross_entropies(output, label)
            return output, plain, self.method.losses(Piece(output, label, plain, share))

    def _backward(self, loss: Losses, factor: float, last: bool, diagnose: bool) -> dict[str, EncoderDiagnostics]:
        def scaled(value: Tensor) -> Tensor:
            value = value if factor == 1 else value * factor
            return value if self.scaler is None else self.scaler.scale(value)

        encoders, heads = self.model.partition()
        unimodal = {name: scaled(value) for name, value in loss.unimodal.items()}
        arguments: dict[str, Any] = {"encoders": encoders, "heads": heads, "diagnose": diagnose}
        if last:
            return self.method.integrator.backward(
                scaled(loss.joint), unimodal, loss_scale=self._loss_scale(), **arguments
            )
        self.method.integrator.accumulate(scaled(loss.joint), unimodal, **arguments)
        return {}

    def _loss_scale(self) -> Tensor | float:
        """Factor of all losses in this step, on the device."""
        if self.scaler is None:
            return 1.0
        return self.scaler.scale(torch.ones((), device=self.overflows.device)).clone()

    def _update(self) -> Tensor:
        """Lets the method act, clips, steps; gives the gradient's norm."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.method.gradients(self.model)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad, norm)
        if self.scaler is None:
            self.optimizer.step()
            return norm
        scale = self._loss_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.overflows += torch.as_tensor(self._loss_scale() < scale)
        return norm


class CapturedStep:
    """A whole step as one CUDA graph: nothing is launched from Python but its replay.

    The first steps of a shape run eagerly, as capture demands; then one is captured, and replayed from then on with the
    inputs copied into its memory. Other shapes (the last batch of an epoch), and single steps that are measured (see
    `Integrator.backward`), run eagerly. A new learning rate, which is a constant of the graph, makes a new capture.

    Raises RuntimeError where the model or the routine does something that cannot be captured.
    """

    WARM_UP = 3

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._key: tuple[Any, ...] = ()
        self._seen = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._label = torch.empty(0)
        self._result: Step | None = None

    @property
    def overflows(self) -> Tensor:
        """As TrainingStep's."""
        return self.step.overflows

    def __call__(self, inputs: Inputs, label: Tensor, *, weight: float = 1.0, diagnose: bool = False) -> Step:
        """As TrainingStep's."""
        rates = tuple(float(group["lr"]) for group in self.step.optimizer.param_groups)
        key = (len(label), weight, diagnose, rates)
        if self._graph is not None and key == self._key and self._result is not None:
            for name, value in inputs.items():
                self._inputs[name].copy_(value)
            self._label.copy_(label)
            self._graph.replay()
            return self._result
        measured = diagnose and (len(label), weight, False, rates) == self._key
        if measured or (key != self._key and len(label) < len(self._label)):  # or a smaller last batch
            return self.step(inputs, label, weight=weight, diagnose=diagnose)
        if key != self._key:
            self._key, self._seen, self._graph, self._result = key, 0, None, None
        self._label = label.clone()
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._seen += 1
        if self._seen <= self.WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                result = self.step(inputs, label, weight=weight, diagnose=diagnose)
            torch.cuda.current_stream().wait_stream(side)
            return result
        self._graph = torch.cuda.CUDAGraph()
        # the loader's pinning thread goes on meanwhile: what it asks of the driver must not end the capture
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = self.step(self._inputs, self._label, weight=weight, diagnose=diagnose)
        self._graph.replay()  # capturing has computed nothing yet
        return self._result


def _detach(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}


def _detached(output: Output) -> Output:
    return Output({}, _detach(output.unimodal), output.joint.detach())
