"""What the engine does for a method between two epochs."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmpareto.config import Config
from mmpareto.datasets import MultimodalDataset
from mmpareto.evaluation.passes import outputs
from mmpareto.methods import Method
from mmpareto.models import MultimodalModel, Output
from mmpareto.training.checkpoints import process_state, set_process_state
from mmpareto.training.data import Loader
from mmpareto.training.epochs import EpochRecord, RecordedStep, train_epoch
from mmpareto.training.optimizer import make_optimizer, rate_factor
from mmpareto.training.processes import Processes
from mmpareto.training.scoring import Scorer
from mmpareto.training.setup import make_loader, make_step, set_up
from mmpareto.training.step import TrainingStep
from mmpareto.training.switches import autocast_type
from mmpareto.training.watch import FiniteWatch, TrainingError


class BoundaryEngine:
    """The engine as methods see it between two epochs, see `mmpareto.methods.Engine`.

    data     the splits train and val.
    epoch    that is about to begin; fixes which samples are drawn.
    stop     called after every batch, equally often on every process; raises what ends the run.
    fits     of the boundary in progress: the state of each call of `fit` after its last whole epoch. In the checkpoint,
             so that a long estimate continues there after an interruption.
    """

    def __init__(
        self,
        model: MultimodalModel,
        data: Mapping[str, MultimodalDataset],
        config: Config,
        device: torch.device,
        processes: Processes,
        stop: Callable[[], None],
        fits: list[dict[str, Any]] | None = None,
    ) -> None:
        self.model, self.data, self.dataset, self.config = model, data, data["train"], config
        self.device, self.processes, self.stop = device, processes, stop
        self.epoch, self.fits, self._fitted = 1, [] if fits is None else fits, 0
        self._amp = autocast_type(config.engine)
        self._loaders: dict[str, Loader] = {}

    def outputs(
        self, part: float, split: str = "train", shared: bool = True, gradients: bool = False
    ) -> Iterator[tuple[Output, Tensor]]:
        """Outputs and labels of a random part of a split's samples; see `mmpareto.methods.Engine`."""
        dataset = self.data[split]
        loader = self._loader(f"outputs {split} {shared}", dataset, shared=shared)
        count = part if isinstance(part, int) else max(1, round(part * len(dataset)))
        generator = torch.Generator().manual_seed(hash((self.config.run.random_seed, self.epoch)))
        loader.sampler.choose(torch.randperm(len(dataset), generator=generator)[:count])
        was = self.model.training
        batches, amp = loader.stream(self.epoch - 1, between=self.stop), None if gradients else self._amp
        for _, moved, output in outputs(self.model, batches, dataset.modalities, self.device, amp, gradients):
            yield output, moved.label
        self.model.train(was)

    def fit(self, method: Method, epochs: int, samples: Tensor) -> MultimodalModel:
        """A copy of the model, trained by a method for some epochs on some samples, with the run's optimiser.

        At the learning rates of the run's epochs from the coming one on, after its last one those of the last one.
        """
        optim, engine = self.config.optim, replace(self.config.engine, compile=False, cuda_graph=False)
        model = copy.deepcopy(self.model)
        set_up(method, model, self.config.run.random_seed, epochs)
        optimizer, schedule = make_optimizer(model, optim)
        rate = rate_factor(optim)
        step = make_step(model, method, optimizer, engine, optim.clip_grad, self.dataset.modalities, self.device)
        loader = self._loader("fit", self.dataset, training=True)
        loader.sampler.choose(samples)
        modalities = list(self.dataset.modalities)
        watch = FiniteWatch(modalities, self.device, gradients=engine.amp != "fp16")
        recorded = RecordedStep(step, EpochRecord(modalities, self.device), watch, self.dataset.modalities)

        def after_batch(number: int, done: object) -> bool:
            del number, done
            self.stop()
            return False

        devices = [self.device] if self.device.type == "cuda" else []
        number, self._fitted = self._fitted, self._fitted + 1
        if number == len(self.fits):
            self.fits.append({"epoch": 0})
        with torch.random.fork_rng(devices):  # what is drawn here must not show in the run
            begun = self._take_back(self.fits[number], step)
            for epoch in range(begun + 1, epochs + 1):
                factor = rate(min(self.epoch - 2 + epoch, optim.epochs - 1))
                for group, full in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
                    group["lr"] = full * factor
                recorded.record.reset()
                train_epoch(recorded, loader, epoch, after_batch=after_batch, progress=self.processes.main)
                try:
                    watch.check(epoch)
                except TrainingError as error:
                    message = f"a copy that was trained for an estimate: {error}"
                    raise TrainingError(message, error.epoch, error.step) from error
                self.processes.average_buffers(model)
                self.fits[number] = self._so_far(epoch, step, whole=epoch == epochs)
        return model

    def _so_far(self, epoch: int, step: TrainingStep, whole: bool) -> dict[str, Any]:
        """A copy of what `fit` needs to go on after an epoch; of a whole one the model alone."""
        saved: dict[str, Any] = {"epoch": epoch, "model": step.model.state_dict()}
        if not whole:
            scaler = None if step.scaler is None else step.scaler.state_dict()
            saved |= {"optimizer": step.optimizer.state_dict(), "method": step.method.state_dict(), "scaler": scaler}
        return copy.deepcopy(saved) | {"processes": self.processes.gather(process_state(step.model, self.device))}

    def _take_back(self, saved: Mapping[str, Any], step: TrainingStep) -> int:
        """Goes back to what `_so_far` gave; how many epochs are over."""
        if "model" in saved:
            step.model.load_state_dict(saved["model"])
        if "optimizer" in saved:
            step.optimizer.load_state_dict(saved["optimizer"])
            step.method.load_state_dict(saved["method"])
            if step.scaler is not None:
                step.scaler.load_state_dict(saved["scaler"])
            if len(saved["processes"]) == self.processes.size:
                set_process_state(saved["processes"][self.processes.rank], step.model, self.device)
        return saved["epoch"]

    def losses(self, model: MultimodalModel, samples: Tensor) -> dict[str, float]:
        """{"joint" or a modality: mean cross-entropy} over some samples."""
        plain = copy.copy(self.dataset)
        plain.augmenting = False
        loader = self._loader("losses", plain)
        loader.sampler.choose(samples)
        scores = Scorer(model, self.device, amp=self._amp)(loader, processes=self.processes, between=self.stop)
        return {head: values["loss"] for head, values in scores.items()}

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        return self.processes.total(values)

    def alike(self) -> None:
        """Give all processes the main one's weights."""
        self.processes.start_alike(self.model)

    def release(self) -> None:
        """Forget the fits of a boundary, and end the worker processes of loaders that not every epoch needs."""
        self.fits.clear()
        self._fitted = 0
        for name in ("fit", "losses"):
            if name in self._loaders:
                self._loaders[name].close()  # it stays, and starts new ones

    def close(self) -> None:
        """End all worker processes."""
        for loader in self._loaders.values():
            loader.close()

    def _loader(self, name: str, dataset: MultimodalDataset, training: bool = False, shared: bool = True) -> Loader:
        """A loader for each use; its worker processes stay until `release`, those of `outputs` until `close`."""
        if name not in self._loaders:
            rank, size = (self.processes.rank, self.processes.size) if shared else (0, 1)  # else all on every process
            self._loaders[name] = make_loader(
                dataset, self.config.data, self.config.run.random_seed, self.device, rank=rank, size=size,
                training=training,
            )  # fmt: skip
        return self._loaders[name]
