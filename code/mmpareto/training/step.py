"""The batch step: forward, losses, the method's gradients, optimiser. It stands here and nowhere else.

Shapes: B batch, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpareto.inputs import Inputs, chunks, map_tensors
from mmpareto.integration import EncoderDiagnostics, to_float64
from mmpareto.methods import Method, MethodError, Piece, Turn
from mmpareto.models import Losses, MultimodalModel, Output, cross_entropies

Present = dict[str, Tensor] | None  # {modality: bool [B]}


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
        forward: Callable[..., Output] | None = None,
    ) -> None:
        self.model, self.method, self.optimizer = model, method, optimizer
        self.clip_grad, self.amp, self.scaler, self.accumulate = clip_grad, amp, scaler, accumulate
        self.forward = model if forward is None else forward
        self.device = next(model.parameters()).device
        self.overflows = torch.zeros((), dtype=torch.int64, device=self.device)

    def __call__(
        self, inputs: Inputs, label: Tensor, *, present: Present = None, weight: float = 1.0, diagnose: bool = False
    ) -> Step:
        """Take the step.

        inputs    {modality: input of B samples}, label int64 [B], both on the model's device.
        present   {modality: bool [B]} of the samples; None: all have all modalities.
        weight    of this process's losses in the average over the processes: 1 where all have as many samples.
        diagnose  see `Integrator.backward`.
        """
        parts = chunks((dict(inputs), label, present), min(self.accumulate, len(label)))
        factors = None if present is None else self._factors(present, weight)
        logits: list[Output] = []
        losses: list[Losses] = []
        shares: list[float] = []
        diagnostics: dict[str, EncoderDiagnostics] = {}
        for k, (piece_inputs, piece_label, piece_present) in enumerate(parts):
            share = len(piece_label) / len(label)
            piece, minimised = self._forward(piece_inputs, piece_label, piece_present, share * weight, factors)
            last = k == len(parts) - 1
            # detached at once: the next piece needs this one's memory
            detached = map_tensors(Tensor.detach, (piece.output._replace(features={}), piece.losses))
            logits.append(detached[0])
            losses.append(detached[1])
            shares.append(share)
            for turn, learning in enumerate(self.method.turns):
                if turn:
                    piece, minimised = self._next_turn(piece, factors)
                diagnostics = self._backward(minimised, piece.output, share * weight, last, diagnose)
                if last:
                    norm = self._update(learning)
        whole = _joined(logits, present)
        if present is None:
            cross_entropy = _averaged(losses, shares)
        else:  # the losses of these samples alone; those above are parts of the whole batch's
            with self._autocast():
                cross_entropy = cross_entropies(whole, label)
        return Step(whole.joint, whole.unimodal, cross_entropy, norm, diagnostics)

    def _factors(self, present: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        """{modality: samples / samples that have it} of the whole batch, over all processes."""
        masks = torch.stack(list(present.values()))
        counts = torch.cat((torch.ones_like(masks[:1]), masks)).sum(1)
        total, *having = self.method.average(to_float64(counts) * (weight > 0)).unbind()
        return {name: total / count.clamp(min=1e-9) for name, count in zip(present, having, strict=True)}

    def _forward(
        self,
        inputs: Inputs,
        label: Tensor,
        present: Present,
        share: float,
        factors: Mapping[str, Tensor] | None,
    ) -> tuple[Piece, Losses]:
        """The piece after the forward pass, and what the method minimises."""
        with self._autocast():
            output = self.forward(inputs) if present is None else self.forward(inputs, present)
            piece = Piece(output, label, cross_entropies(output, label, factors), share, inputs)
            return piece, self._minimised(piece)

    def _next_turn(self, piece: Piece, factors: Mapping[str, Tensor] | None) -> tuple[Piece, Losses]:
        """The piece in its next turn, by the heads as they are now, and what the method minimises."""
        with self._autocast():
            output = self.model.from_features(piece.output.features, piece.output.present)
            losses = cross_entropies(output, piece.label, factors)
            piece = piece._replace(output=output, losses=losses, turn=piece.turn + 1)
            return piece, self._minimised(piece)

    def _minimised(self, piece: Piece) -> Losses:
        losses = self.method.losses(piece)
        if not isinstance(losses, Losses):
            raise MethodError(
                f"{type(self.method).__name__}.losses gave {type(losses).__name__}; expected Losses(joint, "
                "{modality: loss})"
            )
        return losses

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    def _backward(
        self, loss: Losses, output: Output, factor: float, last: bool, diagnose: bool
    ) -> dict[str, EncoderDiagnostics]:
        def scaled(value: Tensor) -> Tensor:
            value = value if factor == 1 else value * factor
            return value if self.scaler is None else self.scaler.scale(value)

        encoders, heads = self.model.partition()
        unimodal = {name: scaled(value) for name, value in loss.unimodal.items()}
        arguments: dict[str, Any] = {
            "encoders": encoders,
            "heads": heads,
            "features": output.features,
            "diagnose": diagnose,
        }
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
        return self.scaler.scale(torch.ones((), device=self.device))

    def _update(self, learning: Turn) -> Tensor:
        """Let the method act, clip, step; give the gradient's norm."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        self.method.gradients(self.model)
        if learning is not None:
            for name, parameter in self.model.named_parameters():
                if not name.startswith(learning):
                    parameter.grad = None  # so that momentum and weight decay leave it alone too
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


def _joined(outputs: Sequence[Output], present: Present = None) -> Output:
    """Logits of the pieces of a batch, in one."""
    if len(outputs) == 1:
        return outputs[0]._replace(present=present)
    unimodal = {name: torch.cat([output.unimodal[name] for output in outputs]) for name in outputs[0].unimodal}
    return Output({}, unimodal, torch.cat([output.joint for output in outputs]), present)


def _averaged(losses: Sequence[Losses], shares: Sequence[float]) -> Losses:
    """The losses of a batch from those of its pieces and their shares of it."""
    if len(losses) == 1:
        return losses[0]

    def average(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum()

    unimodal = {name: average([loss.unimodal[name] for loss in losses]) for name in losses[0].unimodal}
    return Losses(average([loss.joint for loss in losses]), unimodal)
