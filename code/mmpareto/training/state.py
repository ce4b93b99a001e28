"""A run in progress: all that last.pt holds, written and restored in one place."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from mmpareto.escape import on_one_line
from mmpareto.methods import Method
from mmpareto.models import MultimodalModel
from mmpareto.runs import BEST, PREVIOUS, RunDirectory, RunError
from mmpareto.selection import rank
from mmpareto.training.checkpoints import (
    arithmetic,
    copy_to_last,
    load_checkpoint,
    process_state,
    save_best,
    save_last,
    set_process_state,
)
from mmpareto.training.epochs import EpochRecord
from mmpareto.training.processes import Processes
from mmpareto.training.step import TrainingStep

NOT_SELECTED: dict[str, Any] = {"accuracy": -1.0, "loss": None, "epoch": 0}


# the content of last.pt; see `TrainingState.state_dict`
KEYS = (
    *("model", "optimizer", "schedule", "method", "bounds", "fits", "scaler", "overflows"),
    *("epoch", "record", "history", "best", "seconds", "processes", "arithmetic"),
)


@dataclass
class TrainingState:
    """What is trained, and its progress.

    Attributes:
        model: what is trained.
        method: how.
        optimizer: what moves its parameters.
        schedule: of the learning rate.
        step: the training step, which holds the gradient scaler.
        modalities: names of the modalities.
        device: of the model.
        processes: of the run.
        epoch: in progress (1, 2, ...); `record` has its progress.
        history: a row per finished epoch.
        best: {"accuracy", "loss", "epoch"} of the selected checkpoint so far, see `mmpareto.selection`.
        seconds: that the finished epochs took.
        bounds: last epoch whose boundary hook has run, see `Method.boundary`.
        fits: progress of unfinished `BoundaryEngine.fit` calls.
    """

    model: MultimodalModel
    method: Method
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    step: TrainingStep
    modalities: list[str]
    device: torch.device
    processes: Processes
    epoch: int = 1
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: dict(NOT_SELECTED))
    seconds: float = 0.0
    bounds: int = 0
    fits: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.record = EpochRecord(self.modalities, self.device)
        self.saved_at = time.monotonic()

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler, for float16."""
        return self.step.scaler

    def select(self, scores: Mapping[str, float]) -> bool:
        """Select the epoch in progress where its joint scores on the selecting split rank above the best so far."""
        if not self.method.selectable:
            self.best = NOT_SELECTED | {"epoch": self.epoch}
            return False
        accuracy, loss = scores["accuracy"], scores["loss"]
        better = rank(accuracy, loss) > rank(self.best["accuracy"], self.best["loss"])
        if better:
            self.best = {"accuracy": accuracy, "loss": loss, "epoch": self.epoch}
        return better

    def next_epoch(self) -> None:
        """End the epoch in progress."""
        self.schedule.step()
        self.epoch += 1
        self.record.reset()

    def state_dict(self) -> dict[str, Any]:
        """The content of last.pt, on the main process; all processes must call it together."""
        process_states = self.processes.gather(process_state(self.model, self.device))
        record = self.record.state_dict()
        if self.processes.size > 1:
            record["scores"] = self.record.scores.state_dict(self.processes.total)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "method": self.method.state_dict(),
            "bounds": self.bounds,
            "fits": self.fits,
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "overflows": self.step.overflows,
            "epoch": self.epoch,
            "record": record,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "processes": process_states,
            "arithmetic": arithmetic(self.device),
        }

    def save(self, run: RunDirectory) -> None:
        """Write last.pt; all processes must call it together."""
        content = self.state_dict()
        self.saved_at = time.monotonic()
        if self.processes.main:
            save_last(run, content)

    def save_best(self, run: RunDirectory) -> None:
        """Write best.pt, the model as it is now."""
        if self.processes.main:
            save_best(run, self.model, self.best)

    def restore(self, run: RunDirectory, name: str) -> list[str]:
        """Load a checkpoint of the run.

        Returns what differs from the process that wrote it and keeps the run from ending bit for bit as without an
        interruption. With another number of processes random numbers and batch norm's statistics of this epoch begin
        anew; `arithmetic` has the other differences.

        Raises RunError where the checkpoint is missing, damaged or foreign.
        """
        saved = load_checkpoint(run / name, self.device, KEYS)
        try:
            return self._load_state_dict(run, name, saved)
        except (torch.OutOfMemoryError, dist.DistError):  # of the device, or of another process
            raise
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            detail = " ".join(str(error).split())[:200]
            raise RunError(f"the checkpoint {run / name} is of another run: {detail}") from error

    def _load_state_dict(self, run: RunDirectory, name: str, saved: Mapping[str, Any]) -> list[str]:
        self._check_progress(saved)
        self.model.load_state_dict(saved["model"])
        self._check_optimizer(saved["optimizer"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.method.load_state_dict(saved["method"])
        if self.scaler is not None and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        self.step.overflows.copy_(saved["overflows"])
        self.epoch, self.history, self.best = saved["epoch"], saved["history"], saved["best"]
        self.seconds, self.bounds = saved["seconds"], saved["bounds"]
        self.fits[:] = saved["fits"]
        self._restore_record(saved["record"])
        before = {"processes": len(saved["processes"]), **saved["arithmetic"]}
        now = {"processes": self.processes.size, **arithmetic(self.device)}
        if before["processes"] == now["processes"]:
            set_process_state(saved["processes"][self.processes.rank], self.model, self.device)
        self.best = self.processes.on_main(lambda: self._renewed_best(run))
        if self.processes.main and name == PREVIOUS:
            copy_to_last(run)
        return [
            f"{key} {value} instead of {on_one_line(str(before.get(key)))[:100]}"
            for key, value in now.items()
            if before.get(key) != value
        ]

    def _check_progress(self, saved: Mapping[str, Any]) -> None:
        """Raise ValueError where the figures on progress are not those that `save` writes."""
        kinds = {"epoch": int, "bounds": int, "seconds": float, "history": list, "best": dict, "fits": list}
        for key, kind in kinds.items():
            if type(saved[key]) is not kind:
                raise ValueError(f"its {key} is {saved[key]!r:.100}, expected {kind.__name__}")
        columns = {"epoch", *(f"val_accuracy_{name}" for name in ("joint", *self.modalities))}
        if len(saved["history"]) != saved["epoch"] - 1 or not all(columns <= row.keys() for row in saved["history"]):
            raise ValueError(f"its history has not a whole row for each epoch before {saved['epoch']}")
        if not _is_selection(saved["best"]):
            raise ValueError(f"its selected epoch is {saved['best']!r:.100}")

    def _check_optimizer(self, saved: Mapping[str, Any]) -> None:
        """Raise ValueError where settings differ in type from the optimiser's, or a state in shape from its tensor."""
        parameters = []
        for group, ours in zip(saved["param_groups"], self.optimizer.param_groups, strict=True):
            for key, value in ours.items():
                kinds = (bool, type(None)) if value is None or value is True or value is False else (type(value),)
                if type(group[key]) not in kinds:  # switches may differ: a run may continue on another device
                    raise ValueError(f"the optimiser's {key} is {group[key]!r:.100}, expected {kinds[0].__name__}")
            parameters += list(zip(group["params"], ours["params"], strict=True))
        for number, parameter in parameters:
            for key, value in saved["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"the optimiser's {key} has shape {list(value.shape)}")

    def _restore_record(self, state: Mapping[str, Any]) -> None:
        scores = state["scores"]
        if not self.processes.main:  # the sums are over all processes in the end: count those kept once
            scores = {"sums": torch.zeros_like(scores["sums"])}
        self.record.load_state_dict({**state, "scores": scores}, self.device)

    def _renewed_best(self, run: RunDirectory) -> dict[str, Any]:
        """The selected epoch; best.pt is written again where the run was killed before it was, or where it is damaged.

        A best.pt of a later epoch is of the part of the run that is trained again: it stays the selected one.

        Raises RunError where it is missing or damaged and the model at hand is not the selected one.
        """
        if self.best["accuracy"] < 0:  # nothing is selected yet
            return self.best
        just_selected = self.best["epoch"] == self.epoch - 1 and self.record.batches == 0
        try:
            saved = load_checkpoint(run / BEST, torch.device("cpu"), ("model", "epoch"))
        except RunError:
            if not just_selected:
                raise
            self.save_best(run)
            return self.best
        if saved["epoch"] > self.best["epoch"] and _is_selection(saved):  # earlier versions wrote no accuracy
            return {key: saved[key] for key in NOT_SELECTED}
        if just_selected and saved["epoch"] != self.best["epoch"]:
            self.save_best(run)
        return self.best


def _is_selection(best: Mapping[str, Any]) -> bool:
    """Whether it holds what is known of a selected epoch, see NOT_SELECTED."""
    numbers = best.get("accuracy"), best.get("epoch"), best.get("loss", "") or 0.0
    return all(type(number) in (int, float) for number in numbers)
