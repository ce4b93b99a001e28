"""Passes through the data: training and scoring, without waiting for the device between the logging intervals."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmpareto.datasets import batch_to_device
from mmpareto.evaluation.all_heads import AllHeads
from mmpareto.evaluation.passes import outputs
from mmpareto.evaluation.scores import Scores
from mmpareto.integration import EncoderDiagnostics
from mmpareto.models import MultimodalModel, cross_entropies
from mmpareto.training.data import Loader
from mmpareto.training.processes import Processes
from mmpareto.training.step import CapturedStep, Step, TrainingStep
from mmpareto.training.watch import FiniteWatch

PER_STEP = ("cosine", "joint_norm", "unimodal_norm", "joint_weight", "conflict")
FOLD = 64  # steps whose Gramians are kept before they are summed up: a few kernels then, not at every step


class GradientLog:
    """What integration saw in every step of an epoch; fetched from the device when asked for."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: dict[str, list[Tensor]] = {}
        self._recent: dict[str, list[Tensor]] = {}  # {encoder: Gramians [T, 2, 2] of the last few steps}
        self._layers: dict[str, Tensor] = {}  # {encoder: `_layer_sums` of the steps before them}

    def add(self, step: int, diagnostics: Mapping[str, EncoderDiagnostics]) -> None:
        """Keeps a step's diagnostics; does nothing where a one-pass method has none."""
        if diagnostics:
            self._steps.append(step)
        for encoder, of_encoder in diagnostics.items():
            values = torch.stack([getattr(of_encoder, name).float() for name in PER_STEP])
            self._values.setdefault(encoder, []).append(values)
            recent = self._recent.setdefault(encoder, [])
            recent.append(of_encoder.gramians.clone())  # a CUDA graph writes the next step's into the same memory
            if len(recent) == FOLD:
                self._fold(encoder)

    def rows(self, epoch: int) -> list[dict[str, Any]]:
        """A row per step and encoder: epoch, step, encoder and the values of PER_STEP."""
        fetched = {encoder: torch.stack(values).tolist() for encoder, values in self._values.items()}
        return [
            {"epoch": epoch, "step": step, "encoder": encoder, **dict(zip(PER_STEP, values[position], strict=True))}
            for position, step in enumerate(self._steps)
            for encoder, values in fetched.items()
        ]

    def layer_rows(self, epoch: int, names: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        """A row per encoder and parameter tensor: epoch, encoder, layer, steps, conflict_rate in 0 .. 1, cosine.

        names  {encoder: names of its T trainable tensors}, in the order of the diagnostics.

        Rate and mean cosine are over the `steps` whose gradients of the tensor were finite; NaN where there are none.
        A step where one of the two gradients is zero counts as cosine 0, no conflict.
        """
        for encoder in self._recent:
            self._fold(encoder)
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
            "values": {name: torch.stack(values).cpu() for name, values in self._values.items()},
            "recent": {name: torch.stack(values).cpu() for name, values in self._recent.items() if values},
            "layers": {name: sums.cpu() for name, sums in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`."""
        self._steps = list(state["steps"])
        self._values = {name: list(values.to(device)) for name, values in state["values"].items()}
        # earlier checkpoints have none: the layers' means are then over the rest of the epoch
        self._layers = {name: sums.to(device) for name, sums in state.get("layers", {}).items()}
        self._recent = {name: list(values.to(device)) for name, values in state.get("recent", {}).items()}

    def _fold(self, encoder: str) -> None:
        """Takes the last few steps into the sums."""
        recent = self._recent[encoder]
        if recent:
            sums = _layer_sums(torch.stack(recent))
            self._layers[encoder] = self._layers[encoder] + sums if encoder in self._layers else sums
            recent.clear()


def _layer_sums(gramians: Tensor) -> Tensor:
    """Sums over S steps: [S, T, 2, 2] -> float64 [3, T], the numbers of steps and of conflicts, the sum of cosines."""
    joint, cross, unimodal = gramians[..., 0, 0], gramians[..., 0, 1], gramians[..., 1, 1]
    norms = joint.sqrt() * unimodal.sqrt()
    finite = cross.isfinite() & norms.isfinite()
    cosine = torch.where(finite & (norms > 0), cross / norms, 0.0).clamp(-1, 1)
    return torch.stack((finite, cosine < 0, cosine)).double().sum(1)


class EpochRecord:
    """An epoch as far as it has come: `batches` done, running scores, what integration saw."""

    def __init__(self, modalities: list[str], device: torch.device) -> None:
        self.batches = 0
        self.scores = Scores(modalities, device)
        self.gradients = GradientLog()
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
        self.gradients.load_state_dict(state["gradients"], device)
        self.begin()


def train_epoch(
    step: TrainingStep | CapturedStep,
    model: MultimodalModel,
    loader: Loader,
    epoch: int,
    record: EpochRecord,
    watch: FiniteWatch,
    device: torch.device,
    *,
    diagnose_interval: int = 0,
    before_batch: Callable[[int], None] = lambda number: None,
    after_batch: Callable[[int, Step], bool] = lambda number, done: False,
    progress: bool = True,
    epochs: int | None = None,
    loss_interval: int = 0,
) -> bool:
    """Trains for one epoch (1, 2, ...), from the batch where `record` stands.

    record       is carried on: running scores, gradient log (its steps counted from the beginning of the run).
    watch        takes in every step; the caller checks it.
    before_batch  called with the step's number once its data are there.
    after_batch  called with the step's number and result; True breaks the epoch off.
    progress     whether a bar is shown, on a terminal or in a notebook.
    epochs       of the run: the bar shows when it ends.
    loss_interval  steps after which the bar may show the joint loss, for which the device is waited for; 0: never.
    Returns whether the epoch was finished.
    """
    model.train()
    record.begin()
    modalities = loader.dataset.modalities
    first, size = (epoch - 1) * len(loader), loader.sampler.size
    batches = tqdm(
        loader.epoch(epoch - 1, record.batches),
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
        inputs, label, present = batch_to_device(batch, modalities, device)
        number = first + record.batches
        before_batch(number)
        samples, all_samples = loader.sampler.share(record.batches)
        diagnose = diagnose_interval > 0 and number % diagnose_interval == 0
        done = step(inputs, label, present=present, weight=samples * size / all_samples, diagnose=diagnose)
        if samples:
            record.scores.update(done.losses.joint, done.losses.unimodal, done.joint, done.unimodal, label, present)
        record.gradients.add(number, done.diagnostics)
        watch.update(number, [done.losses.joint, *done.losses.unimodal.values()], done.gradient_norm, batch["id"])
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


@torch.inference_mode()
def score(
    model: MultimodalModel,
    loader: Loader,
    device: torch.device,
    *,
    amp: torch.dtype | None = None,
    processes: Processes | None = None,
    between: Callable[[], None] = lambda: None,
    combined: AllHeads | None = None,
) -> dict[str, dict[str, float]]:
    """Mean loss and accuracy in percent of the joint head and of each modality's own, over a whole split.

    amp        type of automatic mixed precision, as in training.
    processes  those that share the split; every sample counts once.
    between    see `Loader.epoch`.
    combined   gathers the predictions of all heads together as well.
    """
    modalities = loader.dataset.modalities
    scores = Scores(list(modalities), device)
    for _, (_, label, _), output in outputs(model, loader.epoch(0, between=between), modalities, device, amp):
        with torch.autocast(device.type, amp, enabled=amp is not None):
            loss = cross_entropies(output, label)
        scores.update(loss.joint, loss.unimodal, output.joint, output.unimodal, label, output.present)
        if combined is not None:
            combined.update(output.joint, output.unimodal, label, output.present)
    return scores.compute() if processes is None else scores.compute(processes.total)
