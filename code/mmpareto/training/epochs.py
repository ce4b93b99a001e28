"""Training passes through the data, without waiting for the device between the logging intervals."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmpareto.datasets import Batch, Modality, Rows, batch_to_device, uncropped
from mmpareto.evaluation.scores import Scores
from mmpareto.integration import EncoderDiagnostics, float64_device
from mmpareto.training.capture import Captured
from mmpareto.training.data import Loader
from mmpareto.training.step import Step, TrainingStep
from mmpareto.training.watch import FiniteWatch

PER_STEP = ("cosine", "joint_norm", "unimodal_norm", "joint_weight", "conflict")
FOLD = 64  # steps whose Gramians are kept before they are summed up: a few kernels then, not at every step


class GradientLog:
    """What integration saw in every step of an epoch; fetched from the device when asked for.

    The last FOLD steps or fewer are rows of one tensor that stays where it is, so that a CUDA graph can write them.
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._sizes: dict[str, int] = {}  # {encoder: T}, in the order of a row
        self._rows = torch.empty(0)  # float64 [FOLD, sum of 5 + 4 T]: of each encoder PER_STEP, then Gramians
        self._slot = torch.empty(0)  # int64 [1]: the row of the next step
        self._kept = 0  # rows in use
        self._values: dict[str, list[Tensor]] = {}  # {encoder: float32 [S, 5] of the steps before them}
        self._layers: dict[str, Tensor] = {}  # {encoder: `_layer_sums` of the steps before them}

    def write(self, diagnostics: Mapping[str, EncoderDiagnostics]) -> None:
        """Keep a step's diagnostics, on the device alone; nothing where a one-pass method has none."""
        if not diagnostics:
            return
        sizes = {encoder: len(of_encoder.gramians) for encoder, of_encoder in diagnostics.items()}
        parts = []
        for of_encoder in diagnostics.values():
            parts += [getattr(of_encoder, name).double().view(1) for name in PER_STEP]
            parts.append(of_encoder.gramians.double().flatten())
        row = torch.cat(parts)
        if sizes != self._sizes:
            self._reserve(sizes, row.device)
        self._rows.index_copy_(0, self._slot, row.unsqueeze(0))
        self._slot += 1

    def count(self, step: int) -> None:
        """Take note on the host of a step whose diagnostics were written."""
        self._steps.append(step)
        self._kept += 1
        if self._kept == FOLD:
            self._fold()

    def reset(self) -> None:
        """Begin anew, in the same memory."""
        self._steps, self._values, self._layers, self._kept = [], {}, {}, 0
        self._slot.zero_()

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
            "recent": {name: gramians.cpu() for name, (_, gramians) in self._recent().items()},
            "layers": {name: sums.cpu() for name, sums in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`."""
        self.reset()
        self._steps = list(state["steps"])
        # earlier checkpoints have none: the layers' means are then over the rest of the epoch
        self._layers = {name: sums.to(device) for name, sums in state.get("layers", {}).items()}
        recent = state.get("recent", {})
        self._kept = len(next(iter(recent.values()))) if recent else 0
        before = len(self._steps) - self._kept
        self._values = {name: [values[:before].to(device)] for name, values in state["values"].items()}
        if recent:
            parts = [(state["values"][name][before:], gramians.flatten(1)) for name, gramians in recent.items()]
            rows = torch.cat([part.double() for pair in parts for part in pair], 1)
            self._reserve({name: gramians.shape[1] for name, gramians in recent.items()}, device)
            self._rows[: self._kept] = rows.to(device)
            self._slot.fill_(self._kept)

    def _reserve(self, sizes: dict[str, int], device: torch.device) -> None:
        self._sizes = sizes
        width = sum(len(PER_STEP) + 4 * size for size in sizes.values())
        self._rows = torch.zeros(FOLD, width, dtype=torch.float64, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)

    def _recent(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{encoder: values float32 [S, 5] and Gramians [S, T, 2, 2] of the last S steps}, copied."""
        recent = {}
        start = 0
        for encoder, size in self._sizes.items() if self._kept else ():
            middle, end = start + len(PER_STEP), start + len(PER_STEP) + 4 * size
            rows = self._rows[: self._kept]
            gramians = rows[:, middle:end].clone(memory_format=torch.contiguous_format).view(-1, size, 2, 2)
            recent[encoder] = (rows[:, start:middle].float(), gramians)
            start = end
        return recent

    def _all_values(self) -> dict[str, Tensor]:
        """{encoder: float32 [S, 5] of all S steps}."""
        recent = self._recent()
        last = {encoder: [values] for encoder, (values, _) in recent.items()}
        return {
            name: torch.cat([*self._values.get(name, []), *last.get(name, [])]) for name in {**self._values, **last}
        }

    def _fold(self) -> None:
        """Take the last few steps into the sums."""
        for encoder, (values, gramians) in self._recent().items():
            self._values.setdefault(encoder, []).append(values)
            sums = _layer_sums(gramians)
            self._layers[encoder] = self._layers[encoder] + sums if encoder in self._layers else sums
        self._kept = 0
        self._slot.zero_()


def _layer_sums(gramians: Tensor) -> Tensor:
    """Sums over S steps: [S, T, 2, 2] -> float64 [3, T], the numbers of steps and of conflicts, the sum of cosines."""
    joint, cross, unimodal = gramians[..., 0, 0], gramians[..., 0, 1], gramians[..., 1, 1]
    norms = joint.sqrt() * unimodal.sqrt()
    finite = cross.isfinite() & norms.isfinite()
    cosine = torch.where(finite & (norms > 0), cross / norms, 0.0).clamp(-1, 1)
    return torch.stack((finite, cosine < 0, cosine)).double().sum(1)


class EpochRecord:
    """An epoch as far as it has come: `batches` done, running scores, what integration saw.

    Tensors stay where they are from epoch to epoch, so that a CUDA graph can go on writing them.
    """

    def __init__(self, modalities: Sequence[str], device: torch.device) -> None:
        self.scores = Scores(modalities, device)
        self.gradients = GradientLog()
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.batches = 0
        self.scores.reset()
        self.gradients.reset()
        self._before = 0.0  # seconds that it took in processes before this one
        self.begin()

    def begin(self) -> None:
        """Starts the clock of this process's part."""
        self._began = time.perf_counter(), self.batches

    @property
    def seconds(self) -> float:
        """What the epoch has taken so far."""
        return self._before + time.perf_counter() - self._began[0]

    @property
    def batches_per_second(self) -> float:
        """In this process's part."""
        return (self.batches - self._began[1]) / (time.perf_counter() - self._began[0])

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "batches": self.batches,
            "seconds": self.seconds,
            "scores": self.scores.state_dict(),
            "gradients": self.gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`."""
        self.batches, self._before = state["batches"], state["seconds"]
        self.scores.load_state_dict(state["scores"])
        self.gradients.load_state_dict(state["gradients"], float64_device(device))
        self.begin()


class RecordedStep:
    """A training step from the batch as it was loaded to all that is recorded of it, on the device.

    Args:
        step: makes the update.
        record: takes in scores and diagnostics.
        watch: takes in losses and norms; the caller checks it.
        modalities: of the batches.
        capture: replay the whole as a CUDA graph, see `Captured`.
    """

    def __init__(
        self,
        step: TrainingStep,
        record: EpochRecord,
        watch: FiniteWatch,
        modalities: Mapping[str, Modality],
        *,
        capture: bool = False,
    ) -> None:
        self.step, self.record, self.watch, self.modalities = step, record, watch, modalities
        self._run: Callable[[Any, float, bool, bool], Step] = self._on_device
        if capture:
            self._run = Captured(self._on_device, step.optimizer)

    def __call__(
        self, batch: Batch | Rows, number: int, *, weight: float = 1.0, counts: bool = True, diagnose: bool = False
    ) -> Step:
        """Take the step.

        Args:
            batch: see `Loader.stream`.
            number: of the step in the run, for messages and logs; `watch` counts on by itself.
            weight: see `TrainingStep`.
            counts: whether the samples count in the scores.
            diagnose: see `Integrator.backward`.

        Returns:
            What the step leaves to look at; with a graph until the next step.
        """
        diagnose = diagnose and self.step.method.integrator.passes == 1  # all others measure every step
        done = self._run(stored_part(batch, self.modalities, self.step.device), weight, counts, diagnose)
        if done.diagnostics:
            self.record.gradients.count(number)
        self.watch.note(number, batch if isinstance(batch, Rows) else batch["id"])
        return done

    def _on_device(self, stored: Any, weight: float, counts: bool, diagnose: bool) -> Step:
        """All that a step launches. It keeps nothing on the host: a replay does not run it."""
        inputs, label, present = batch_to_device(stored, self.modalities, self.step.device)
        done = self.step(inputs, label, present=present, weight=weight, diagnose=diagnose)
        losses, unimodal = done.losses
        if counts:
            self.record.scores.update(losses, unimodal, done.joint, done.unimodal, label, present)
        self.record.gradients.write(done.diagnostics)
        self.watch.update([losses, *unimodal.values()], done.gradient_norm)
        return done


def train_epoch(
    step: RecordedStep,
    loader: Loader,
    epoch: int,
    *,
    diagnose_interval: int = 0,
    before_batch: Callable[[int], None] = lambda number: None,
    after_batch: Callable[[int, Step], bool] = lambda number, done: False,
    progress: bool = True,
    epochs: int | None = None,
    loss_interval: int = 0,
) -> bool:
    """Trains for one epoch (1, 2, ...), from the batch where the step's record stands.

    step         its record is carried on: running scores, gradient log (its steps counted from the beginning of the
                 run); the caller checks its watch.
    before_batch  called with the step's number once its data are there.
    after_batch  called with the step's number and result; True breaks the epoch off.
    progress     whether a bar is shown, on a terminal or in a notebook.
    epochs       of the run: the bar shows when it ends.
    loss_interval  steps after which the bar may show the joint loss, for which the device is waited for; 0: never.
    Returns whether the epoch was finished.
    """
    record = step.record
    step.step.model.train()
    record.begin()
    first, size = (epoch - 1) * len(loader), loader.sampler.size
    step.watch.begin(first + record.batches)
    batches = tqdm(
        loader.stream(epoch - 1, record.batches),
        total=len(loader),
        initial=record.batches,
        desc=f"epoch {epoch}" + (f"/{epochs}" if epochs else ""),
        unit="batch",
        leave=False,
        dynamic_ncols=True,
        disable=_bar_is_off(progress),
    )
    shown = time.monotonic()
    for batch in batches:
        number = first + record.batches
        before_batch(number)
        samples, all_samples = loader.sampler.share(record.batches)
        diagnose = diagnose_interval > 0 and number % diagnose_interval == 0
        done = step(batch, number, weight=samples * size / all_samples, counts=samples > 0, diagnose=diagnose)
        record.batches += 1
        if after_batch(number, done):
            batches.close()
            return False
        if not batches.disable and loss_interval and number % loss_interval == 0 and time.monotonic() > shown + 0.5:
            shown = time.monotonic()
            left = len(loader) * ((epochs or epoch) - epoch + 1) - record.batches
            ends_in = tqdm.format_interval(left / record.batches_per_second)
            batches.set_postfix_str(f"loss {done.losses.joint.item():.3f}, run ends in {ends_in}", refresh=False)
    return True


def _bar_is_off(progress: bool) -> bool | None:
    """The `disable` of tqdm: a bar is for terminals, which tqdm finds by itself (None), and for notebooks."""
    if not progress:
        return True
    return False if "ipykernel" in sys.modules else None


def stored_part(batch: Batch | Rows, modalities: Mapping[str, Modality], device: torch.device) -> Any:
    """What of a batch the device needs, of the same shapes for every whole batch."""
    if isinstance(batch, Rows):
        return batch
    stored: dict[str, Any] = {name: value for name, value in batch.items() if name != "id"}
    return stored | {"inputs": uncropped(batch["inputs"], modalities, device)}
