"""Training passes through the data, without waiting for the device between the logging intervals."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from mmpareto.datasets import Batch, Modality, Rows, batch_to_device, uncropped
from mmpareto.evaluation.scores import Scores
from mmpareto.integration import float64_device
from mmpareto.training.capture import Captured
from mmpareto.training.data import Loader
from mmpareto.training.gradient_log import GradientLog
from mmpareto.training.step import Step, TrainingStep
from mmpareto.training.watch import FiniteWatch


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
        """Start the clock of this process's part."""
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
    """Train for one epoch (1, 2, ...), from the batch where the step's record stands.

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
