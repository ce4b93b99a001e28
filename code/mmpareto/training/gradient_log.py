"""What integration saw in every step of an epoch, kept on the device until it is asked for.

Shapes: S steps, T parameter tensors of an encoder.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpareto.integration import EncoderDiagnostics

PER_STEP = ("cosine", "joint_norm", "unimodal_norm", "joint_weight", "conflict")
FOLD = 64  # steps whose Gramians are kept before they are summed up: a few kernels then, not at every step


class Measured(NamedTuple):
    """What was measured at an encoder in S steps."""

    values: Tensor  # of PER_STEP, float32 [S, 5]
    gramians: Tensor  # float64 [S, T, 2, 2]


class RecentSteps:
    """The diagnostics of the last FOLD steps or fewer, a row each of one tensor.

    The tensor stays where it is, so that a CUDA graph can write it.
    """

    def __init__(self) -> None:
        self._steps = 0  # rows in use, as far as the host knows
        self._sizes: dict[str, int] = {}  # {encoder: T}, in the order of a row
        self._rows = torch.empty(0)  # float64 [FOLD, sum of 5 + 4 T]: of each encoder PER_STEP, then Gramians
        self._next = torch.empty(0)  # int64 [1]: the row of the next step, on the device

    def write(self, diagnostics: Mapping[str, EncoderDiagnostics]) -> None:
        """Write a step's row, on the device alone."""
        sizes = {encoder: len(of_encoder.gramians) for encoder, of_encoder in diagnostics.items()}
        parts = []
        for of_encoder in diagnostics.values():
            parts += [getattr(of_encoder, name).double().view(1) for name in PER_STEP]
            parts.append(of_encoder.gramians.double().flatten())
        row = torch.cat(parts)
        if sizes != self._sizes:
            self._reserve(sizes, row.device)
        self._rows.index_copy_(0, self._next, row.unsqueeze(0))
        self._next += 1

    def count(self) -> bool:
        """Take note on the host of a row that was written; whether all rows are in use."""
        self._steps += 1
        return self._steps == FOLD

    def reset(self) -> None:
        """Begin with the first row again, in the same memory."""
        self._steps = 0
        self._next.zero_()

    def measured(self) -> dict[str, Measured]:
        """{encoder: what the rows hold}, copied; empty without steps."""
        parts = {}
        start = 0
        rows = self._rows[: self._steps]
        for encoder, size in self._sizes.items() if self._steps else ():
            middle, end = start + len(PER_STEP), start + len(PER_STEP) + 4 * size
            gramians = rows[:, middle:end].clone(memory_format=torch.contiguous_format).view(-1, size, 2, 2)
            parts[encoder] = Measured(rows[:, start:middle].float(), gramians)
            start = end
        return parts

    def restore(self, measured: Mapping[str, Measured], device: torch.device) -> None:
        """Write the rows again that `measured` gave."""
        self._reserve({name: part.gramians.shape[1] for name, part in measured.items()}, device)
        parts = [(part.values, part.gramians.flatten(1)) for part in measured.values()]
        rows = torch.cat([part.double() for pair in parts for part in pair], 1)
        self._steps = len(rows)
        self._rows[: self._steps] = rows.to(device)
        self._next.fill_(self._steps)

    def _reserve(self, sizes: dict[str, int], device: torch.device) -> None:
        self._sizes = sizes
        width = sum(len(PER_STEP) + 4 * size for size in sizes.values())
        self._rows = torch.zeros(FOLD, width, dtype=torch.float64, device=device)
        self._next = torch.zeros(1, dtype=torch.int64, device=device)


class GradientLog:
    """What integration saw in every step of an epoch; fetched from the device when asked for."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._recent = RecentSteps()
        self._values: dict[str, list[Tensor]] = {}  # {encoder: float32 [S, 5] of the steps before them}
        self._layers: dict[str, Tensor] = {}  # {encoder: `_layer_sums` of the steps before them}

    def write(self, diagnostics: Mapping[str, EncoderDiagnostics]) -> None:
        """Keep a step's diagnostics, on the device alone; nothing where a one-pass method has none."""
        if diagnostics:
            self._recent.write(diagnostics)

    def count(self, step: int) -> None:
        """Take note on the host of a step whose diagnostics were written."""
        self._steps.append(step)
        if self._recent.count():
            self._fold()

    def reset(self) -> None:
        """Begin anew, in the same memory."""
        self._steps, self._values, self._layers = [], {}, {}
        self._recent.reset()

    def rows(self, epoch: int) -> list[dict[str, Any]]:
        """A row per step and encoder: epoch, step, encoder and the values of PER_STEP.

        Without gradients that are not finite: their cosine is NaN, and a gradient scaler leaves the step out.
        """
        fetched = {encoder: values.tolist() for encoder, values in self._all_values().items()}
        rows = [
            {"epoch": epoch, "step": step, "encoder": encoder, **dict(zip(PER_STEP, values[position], strict=True))}
            for position, step in enumerate(self._steps)
            for encoder, values in fetched.items()
        ]
        return [row for row in rows if not math.isnan(row["cosine"])]

    def layer_rows(self, epoch: int, names: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        """A row per encoder and parameter tensor: epoch, encoder, layer, steps, conflict_rate in 0 .. 1, cosine.

        names  {encoder: names of its T trainable tensors}, in the order of the diagnostics.

        Rate and mean cosine are over the `steps` whose gradients of the tensor were finite; NaN where there are none.
        A step where one of the two gradients is zero counts as cosine 0, no conflict.
        """
        self._fold()
        rows = []
        for encoder, sums in self._layers.items():
            for layer, (steps, conflicts, cosines) in zip(names[encoder], sums.T.tolist(), strict=True):
                place = {"epoch": epoch, "encoder": encoder, "layer": layer, "steps": int(steps)}
                rate, cosine = (conflicts / steps, cosines / steps) if steps else (math.nan, math.nan)
                rows.append(place | {"conflict_rate": rate, "cosine": cosine})
        return rows

    def state_dict(self) -> dict[str, Any]:
        """What was kept so far."""
        return {
            "steps": list(self._steps),
            "values": {name: values.cpu() for name, values in self._all_values().items()},
            "recent": {name: part.gramians.cpu() for name, part in self._recent.measured().items()},
            "layers": {name: sums.cpu() for name, sums in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`."""
        self.reset()
        self._steps = list(state["steps"])
        # earlier checkpoints have none: the layers' means are then over the rest of the epoch
        self._layers = {name: sums.to(device) for name, sums in state.get("layers", {}).items()}
        gramians = state.get("recent", {})
        recent = len(next(iter(gramians.values()))) if gramians else 0
        before = len(self._steps) - recent
        self._values = {name: [values[:before].to(device)] for name, values in state["values"].items()}
        if gramians:
            values = state["values"]
            self._recent.restore({name: Measured(values[name][before:], gramians[name]) for name in gramians}, device)

    def _all_values(self) -> dict[str, Tensor]:
        """{encoder: float32 [S, 5] of all S steps}."""
        recent = {name: [part.values] for name, part in self._recent.measured().items()}
        return {
            name: torch.cat([*self._values.get(name, []), *recent.get(name, [])]) for name in {**self._values, **recent}
        }

    def _fold(self) -> None:
        """Take the last few steps into the sums."""
        for encoder, part in self._recent.measured().items():
            self._values.setdefault(encoder, []).append(part.values)
            sums = _layer_sums(part.gramians)
            self._layers[encoder] = self._layers[encoder] + sums if encoder in self._layers else sums
        self._recent.reset()


def _layer_sums(gramians: Tensor) -> Tensor:
    """Sums over S steps: [S, T, 2, 2] -> float64 [3, T], the numbers of steps and of conflicts, the sum of cosines."""
    joint, cross, unimodal = gramians[..., 0, 0], gramians[..., 0, 1], gramians[..., 1, 1]
    norms = joint.sqrt() * unimodal.sqrt()
    finite = cross.isfinite() & norms.isfinite()
    cosine = torch.where(finite & (norms > 0), cross / norms, 0.0).clamp(-1, 1)
    return torch.stack((finite, cosine < 0, cosine)).double().sum(1)
