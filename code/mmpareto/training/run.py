"""A training run, in phases: data, model, run directory, epochs, selected checkpoint, test once, results.

Refused before the first step: switches that cannot work here, settings that a run in the directory was not made with,
data that differ among processes.
"""

import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmpareto import config_files, runs
from mmpareto.config import Config
from mmpareto.datasets import SPLITS, MultimodalDataset
from mmpareto.datasets.names import sample_warnings
from mmpareto.errors import UsageError
from mmpareto.escape import GREEN, coloured, counted
from mmpareto.evaluation import EvaluationError
from mmpareto.methods import Boundary, Method
from mmpareto.reporting.tables import result_table, run_probe_table
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.board import Board, import_wandb
from mmpareto.training.boundary_engine import BoundaryEngine
from mmpareto.training.checkpoints import load_checkpoint
from mmpareto.training.data import Loader
from mmpareto.training.epochs import RecordedStep, train_epoch
from mmpareto.training.optimizer import make_optimizer, set_rates
from mmpareto.training.probing import alone_run, probe_run
from mmpareto.training.processes import Processes, Requests
from mmpareto.training.records import (
    EpochTable,
    HeadScores,
    by_head,
    epoch_row,
    epoch_scalars,
    integration_summary,
    peak_memory,
    settings_text,
    step_scalars,
)
from mmpareto.training.restore import (
    check_same_data,
    continued_modalities,
    open_run,
    refuse_other_samples,
    refuse_other_settings,
    resolved,
    restarted,
    saved_configurations,
    saved_rates,
)
from mmpareto.training.scoring import Scorer
from mmpareto.training.setup import (
    build_split,
    check_presence,
    choose_device,
    hold_on_device,
    make_loader,
    make_method,
    make_model,
    make_step,
    seed_everything,
    set_up,
    settings_and_data,
    use_statistics,
    with_switches,
)
from mmpareto.training.signals import Signals
from mmpareto.training.state import TrainingState
from mmpareto.training.step import Step
from mmpareto.training.stopping import Stopping
from mmpareto.training.switches import autocast_type, check_shapes
from mmpareto.training.watch import FiniteWatch, TrainingError

T = TypeVar("T")


def run_training(config: Config, signals: Signals) -> None:
    """Run a training run from its settings to its results, as one of its processes."""
    processes = Processes()
    device = choose_device(config.run.gpu_ids, processes)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    config = with_switches(config, device, processes.size)
    if config.run.wandb is not None:
        import_wandb()
    with processes.connect(device):
        run = Run(config, device, processes, signals)
        try:
            run.main()
        except TrainingError as error:
            # of whichever process found it: the loss of one may be finite while that of another is not
            content = {"epoch": error.epoch, "step": error.step, "reason": str(error)}
            run.directory.write_json(runs.DIVERGED, content)
            raise
        finally:
            run.close()


class Run:
    """One process's part of a training run; `main` goes through its phases.

    Args:
        config: all settings.
        device: of this process.
        processes: all processes of the run, connected.
        signals: that ask the run to stop.
    """

    loaders: dict[str, Loader]
    method: Method
    encoders: dict[str, str]
    directory: RunDirectory
    state: TrainingState
    boundary_engine: BoundaryEngine
    watch: FiniteWatch
    recorded: RecordedStep
    scorer: Scorer
    table: EpochTable
    board: Board

    def __init__(self, config: Config, device: torch.device, processes: Processes, signals: Signals) -> None:
        self.config, self.device, self.processes, self.signals = config, device, processes, signals
        self.amp = autocast_type(config.engine)
        self.loaders = {}
        self.stopping = Stopping(
            processes,
            signals,
            save=lambda: self.state.save(self.directory),
            check=lambda: self.watch.check(self.state.epoch),
        )

    def main(self) -> None:
        """Run all phases."""
        self.set_up_data()
        self.set_up_model()
        if not self.config.run.train:
            self.score_again()
            return
        checkpoint, finished = self.open_directory()
        if finished:
            self.say(f"{self.directory.path} is finished; give more --epochs to continue\n")
            results = self.directory.read_results()
            self.say(result_table(results))
            if self.config.run.probe and "probe" not in results:
                self.warn(
                    "--probe fits probes when a run ends, and this one has ended without; evaluate.py RUN fits them"
                )
            return
        self.begin(checkpoint)
        self.signals.defer()
        first_step = (self.state.epoch - 1) * len(self.loaders["train"]) + self.state.record.batches
        settings, project = self.config.flat(), self.config.run.wandb
        with Board(self.directory.path, first_step, settings, project, self.processes.main) as self.board:
            while self.state.epoch <= self.config.optim.epochs and not self.stopped_early:
                self.run_epoch()
            if self.stopped_early:
                self.say(f"no better epoch in {self.config.optim.early_stopping}: stopped early")
            results = self.test_selected()
        if self.processes.main:
            self.report(results)

    def close(self) -> None:
        """End the processes that load data."""
        if hasattr(self, "boundary_engine"):
            self.boundary_engine.close()
        for loader in self.loaders.values():
            loader.close()
        if hasattr(self, "directory"):
            self.directory.unlock()

    # phases

    def set_up_data(self) -> None:
        """Build the splits and their loaders; all processes must have the same data and settings."""
        config, seed = self.config, self.config.run.random_seed
        self.again = restarted(config, self.processes)
        earlier = continued_modalities(config, self.again)
        self.continues = earlier is not None
        train_set = build_split(config.data, seed, "train", earlier)
        self.data: dict[str, MultimodalDataset] = {"train": train_set}
        for split in SPLITS[1:]:
            self.data[split] = build_split(config.data, seed, split, train_set.modalities)
        if earlier is not None:
            directory = RunDirectory(Path(config.run.ckpt_path))
            check_same_data(directory, config, train_set)
            if config.run.train:
                refuse_other_samples(directory, self.data)
        self.modalities, classes = list(train_set.modalities), len(train_set.classes)
        check_shapes(config.engine, train_set.modalities)
        if config.data.n_classes not in (None, classes):
            raise UsageError(
                f"--n_classes {config.data.n_classes}: the dataset {config.data.dataset} has {classes} classes"
            )
        hold_on_device(config.data.data_on, self.data.values(), self.device)
        processes = {"rank": self.processes.rank, "size": self.processes.size}
        self.loaders = {
            split: make_loader(part, config.data, seed, self.device, **processes, training=split == "train")
            for split, part in self.data.items()
        }
        self.processes.refuse_differences(settings_and_data(config, self.data))

    def set_up_model(self) -> None:
        """Build method, model, optimiser and step."""
        config = self.config
        self.method = make_method(config.method, config.engine, self.processes.size)
        check_presence(config.method.method, self.method, self.data["train"])
        seed_everything(config.run.random_seed)
        restored = saved_configurations(RunDirectory(Path(config.run.ckpt_path))) if self.continues else None
        self.model, self.encoders = make_model(config, self.data["train"], self.device, self.method, restored)
        use_statistics(self.model, self.data.values())
        if config.run.probe_alone is not None:
            if not self.model.late:
                raise UsageError(
                    f"--probe_alone: encoders of the architecture {config.model.architecture} cannot be compared with "
                    "encoders trained alone, as they see one another; leave it out"
                )
            alone_run(config, self.encoders)  # refuses a wrong one before the first step
        set_up(self.method, self.model, config.run.random_seed, config.optim.epochs)
        self.optimizer, self.schedule = make_optimizer(self.model, config.optim, config.engine.cuda_graph)
        self.step = make_step(
            self.model,
            self.method,
            self.optimizer,
            config.engine,
            config.optim.clip_grad,
            self.data["train"].modalities,
            self.device,
        )
        self.scorer = Scorer(self.model, self.device, amp=self.amp, capture=config.engine.cuda_graph)

    def open_directory(self) -> tuple[str | None, bool]:
        """Open the run directory.

        Returns:
            The checkpoint in it to continue from (None: the run begins), and whether the run is finished.
        """
        self.directory, checkpoint, finished = self.processes.on_main(
            lambda: open_run(self.config, self.method, self.again, self.processes.job)
        )
        return checkpoint, finished

    def begin(self, checkpoint: str | None) -> None:
        """Begin the run, or restore its checkpoint; write down what makes the run, and print it."""
        self.processes.start_alike(self.model)
        seed_everything(self.config.run.random_seed + self.processes.rank)  # from here on each process draws its own
        self.state = TrainingState(
            self.model, self.method, self.optimizer, self.schedule, self.step, self.modalities, self.device,
            self.processes,
        )  # fmt: skip
        differences = self.state.restore(self.directory, checkpoint) if checkpoint else []
        if (done := self.state.epoch - 1) > self.config.optim.epochs:
            raise RunError(
                f"{self.directory.path} has trained {counted(done, 'epoch')}, more than --epochs "
                f"{self.config.optim.epochs}; give {done} or more, or name another folder with --ckpt_path"
            )
        self.boundary_engine = BoundaryEngine(
            self.model, self.data, self.config, self.device, self.processes, self.stopping.stop_together,
            self.state.fits,
        )  # fmt: skip
        self.table = EpochTable(self.config.optim.epochs, self.modalities)
        self.watch = FiniteWatch(self.modalities, self.device, gradients=self.config.engine.amp != "fp16")
        self.recorded = RecordedStep(
            self.step, self.state.record, self.watch, self.data["train"].modalities,
            capture=self.config.engine.cuda_graph,
        )  # fmt: skip
        if differences:
            self.warn(
                f"this run continues with {', '.join(differences)}: results may differ in rounding from those of a run "
                "without the interruption"
            )
        if not self.processes.main:
            return
        steps, _ = (self.directory.cut_csv(name, self.state.epoch) for name in (runs.GRADIENTS, runs.LAYERS))
        measured = any(
            row.get(f"conflict_rate_{name}") is not None for row in self.state.history for name in self.modalities
        )
        if measured and not steps:
            self.warn(f"{self.directory / runs.GRADIENTS} is gone: conflict rates of the results begin at this epoch")
        for name in (runs.RESULTS, runs.DIVERGED):
            (self.directory / name).unlink(missing_ok=True)
        rates = saved_rates(self.directory) if self.continues else {}
        self.directory.write_json(runs.RESOLVED, resolved(self.data, self.model, self.encoders, rates))
        self.directory.write_text(runs.CONFIG, config_files.text(self.config.saved()))
        self.directory.write_json(runs.ENVIRONMENT, runs.environment(self.device, self.processes.size))
        self.say(
            settings_text(
                self.config, self.data, self.encoders, self.model, self.device, self.directory.path,
                self.processes.size,
            )
        )  # fmt: skip
        labels = {split: part.labels for split, part in self.data.items()}
        ids = {split: part.sample_ids() for split, part in self.data.items()}
        if idle := self.method.idle(self.config.optim.epochs):
            self.warn(f"{self.config.method.method}: {idle}")
        files = {split: part.sample_files() for split, part in self.data.items()}
        readers = {split: part.saved_readers() for split, part in self.data.items()}
        classes, absent = self.data["train"].classes, self.data["train"].absent
        for warning in sample_warnings(classes, labels, ids, self.modalities, files, absent, readers):
            self.warn(warning)
        self.say(f"\n{self.table.header}")

    def run_epoch(self) -> None:
        """Train for one epoch, score it, select, write."""
        state = self.state
        epoch, rate = state.epoch, float(self.schedule.get_last_lr()[-1])  # of the heads: without factor
        self.before_epoch()
        self.train_epoch(epoch)
        training = state.record.scores.compute(self.processes.total)
        gradients = state.record.gradients.rows(epoch)
        encoders, _ = self.model.partition()
        names = {name: self.method.integrator.parameter_names(encoder) for name, encoder in encoders.items()}
        layers = state.record.gradients.layer_rows(epoch, names)
        self.processes.average_buffers(self.model)
        selected_on = self.config.optim.selected_on
        scores = self.stopping.saving(
            lambda: {split: self.scores(split) for split in dict.fromkeys((selected_on, "val"))}
        )
        selection, validation = scores[selected_on], scores["val"]
        if not math.isfinite(selection["joint"]["loss"]):
            self.warn(
                f"epoch {epoch}: the joint loss on {selected_on} is not finite; look at its data, or lower the rate"
            )
        seconds = state.record.seconds
        state.seconds += seconds

        row = epoch_row(epoch, rate, training, validation, gradients, self.modalities)
        row |= {f"method_{name}": value for name, value in self.method.figures().items()}
        if selected_on == "test":
            row |= {f"test_accuracy_{name}": value["accuracy"] for name, value in selection.items()}
        if self.config.engine.amp == "fp16":
            row["skipped_steps"] = int(self.step.overflows.item())
        state.history.append(row | {"seconds": round(seconds, 3)})
        better = state.select(selection["joint"])
        state.next_epoch()
        if self.processes.main:
            if gradients:
                self.directory.append_csv(runs.GRADIENTS, gradients)
                self.directory.append_csv(runs.LAYERS, layers)
            self.directory.write_csv(runs.METRICS, state.history)
        state.save(self.directory)
        if better:
            state.save_best(self.directory)
        line = self.table.row(row, seconds, better)
        self.say(coloured(line, GREEN) if better else line)
        scalars = {key: value for key, value in row.items() if key != "epoch"}
        self.board.scalars(epoch_scalars(scalars), epoch * len(self.loaders["train"]) - 1)

    def test_selected(self) -> dict[str, Any]:
        """Score the selected checkpoint on the test split, once; draw the figures.

        Returns:
            The content of results.json; empty on other processes than the main one.
        """
        self.processes.on_main(lambda: None)  # best.pt is written
        selected = load_checkpoint(self.directory / runs.BEST, self.device, ("model", "epoch"))
        self.model.load_state_dict(selected["model"])
        test, val = self.scores_by_head("test"), self.scores_by_head("val")
        if not self.processes.main:
            return {}
        if self.config.run.figures:
            self.draw(selected["epoch"])
        config = self.config
        results = {
            "dataset": config.data.dataset,
            "method": config.method.method,
            "method_options": config.method.method_options,
            "seed": config.run.random_seed,
            "selected_on": config.optim.selected_on,
            "selected_epoch": selected["epoch"],
            "epochs": config.optim.epochs,
            "epochs_trained": len(self.state.history),
            "seconds": round(self.state.seconds, 1),
            "peak_memory_mib": peak_memory(self.device),
            "test": test,
            "val": val,
            "integration": integration_summary(self.directory.read_csv(runs.GRADIENTS), self.modalities),
        }
        idle = self.method.idle(config.optim.epochs)
        return results | ({"idle": idle} if idle else {}) | ({"probe": self.probe()} if config.run.probe else {})

    def probe(self) -> dict[str, Any] | None:
        """Probe the encoders; None, and a warning, where they cannot be probed: the scores are worth keeping."""
        try:
            return probe_run(self.model, self.data, self.config, self.encoders, self.device)
        except (EvaluationError, RunError) as error:
            self.warn(f"no linear probes: {error}")
            return None

    def report(self, results: dict[str, Any]) -> None:
        """Write results.json, which makes the run a finished one, and print the scores."""
        self.directory.write_json(runs.RESULTS, results)
        selected_on = results["selected_on"]
        self.say(f"\nepoch {results['selected_epoch']} of {results['epochs_trained']}, selected on {selected_on}\n")
        self.say(result_table(results))
        if results.get("probe") is not None:
            self.say(f"\n{run_probe_table(results['probe'])}")
        if selected_on == "test":
            self.say(
                "\nSelected on the test split, the published protocol: the test accuracies above flatter the method."
            )
        self.say(f"\nrun directory: {self.directory.path}")

    def score_again(self) -> None:
        """--no-train: score the selected checkpoint of a finished run again."""
        directory = RunDirectory(Path(self.config.run.ckpt_path))
        results = directory.read_results()
        refuse_other_settings(directory, self.config, self.method)
        self.model.load_state_dict(load_checkpoint(directory / runs.BEST, self.device, ("model",))["model"])
        for split in ("test", "val"):
            results[split] = self.scores_by_head(split)
        self.say(result_table(results))

    # parts of an epoch

    def before_epoch(self) -> None:
        """What the method does between two epochs; not again where a run is resumed within the epoch."""
        state = self.state
        if state.bounds == state.epoch:
            return
        last = state.history[-1] if state.history else {}
        validation = {name: last[f"val_accuracy_{name}"] for name in ("joint", *self.modalities)} if last else {}
        labels = torch.from_numpy(self.data["train"].labels)
        self.boundary_engine.epoch = state.epoch
        boundary = Boundary(
            state.epoch, self.config.optim.epochs, validation, labels, self.model, self.optimizer, self.boundary_engine
        )
        try:
            # whole epochs of an estimate are kept, as batches are
            factors = self.stopping.saving(lambda: self.timed(lambda: self.method.boundary(boundary)))
        finally:
            self.boundary_engine.release()
        set_rates(self.optimizer, self.schedule, factors)
        state.bounds = state.epoch
        self.stopping.stop_after_phase(save=True)

    def timed(self, work: Callable[[], T]) -> T:
        """Do some work before an epoch; its time is the run's, as that of teachers and estimates, and no epoch's."""
        began = time.monotonic()
        try:
            return work()
        finally:
            self.state.seconds += time.monotonic() - began
            self.state.record.begin()

    def train_epoch(self, epoch: int) -> None:
        """Train on the batches of an epoch that are left."""

        def batches() -> bool:
            return train_epoch(
                self.recorded,
                self.loaders["train"],
                epoch,
                diagnose_interval=self.config.method.diagnose_interval,
                before_batch=functools.partial(self.processes.begin_step, epoch),
                after_batch=self.after_batch,
                progress=self.processes.main,
                epochs=self.config.optim.epochs,
                loss_interval=1 if self.device.type == "cpu" else self.config.run.log_interval,
            )

        if not self.stopping.saving(batches, interrupted=False):
            self.stopping.stop()
        self.watch.check(epoch)  # before weights are saved
        self.stopping.stop_after_phase(save=True)

    def after_batch(self, number: int, done: Step) -> bool:
        """Log and save when it is time; whether the epoch is to stop."""
        config, state = self.config.run, self.state
        if number % config.log_interval == 0:
            self.watch.check(state.epoch)
            speed = state.record.batches_per_second * self.config.data.batch_size
            self.board.scalars(step_scalars(done, float(self.schedule.get_last_lr()[-1]), speed), number)
        minutes = (time.monotonic() - state.saved_at) / 60
        due = config.checkpoint_minutes is not None and minutes >= config.checkpoint_minutes
        requests = self.processes.exchange(Requests(due, self.stopping.requested))
        if requests.save or requests.stop:
            self.watch.check(state.epoch)
            state.save(self.directory)
            self.processes.settle()  # what was asked for before this checkpoint
        return requests.stop

    def scores_by_head(self, split: str) -> dict[str, Any]:
        """Scores of the model as it is now on a split, in the form of results.json."""
        scores = self.scores(split, combine=True)
        return by_head(scores, self.scorer.all_heads.compute(self.processes.total))

    def scores(self, split: str, combine: bool = False) -> HeadScores:
        """Scores of the model as it is now on a split; see `Scorer`."""
        result = self.scorer(
            self.loaders[split], processes=self.processes, between=self.stopping.stop_together, combine=combine
        )
        self.stopping.stop_after_phase(save=False)
        return result

    @property
    def stopped_early(self) -> bool:
        """Whether --early_stopping ends the run here."""
        patience = self.config.optim.early_stopping
        return patience is not None and self.state.epoch - 1 - self.state.best["epoch"] >= patience

    def draw(self, selected: int) -> None:
        """Draw the run's figures."""
        from mmpareto.reporting.figures import draw_run  # matplotlib takes a second to import

        split = self.config.optim.selected_on
        for name, path in draw_run(self.directory, self.state.history, self.modalities, selected, split).items():
            self.board.picture(name, path, self.state.epoch)

    # printing

    def say(self, text: str) -> None:
        """Print, on the main process."""
        if self.processes.main:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, on the main process."""
        if self.processes.main:
            print(f"warning: {text}", file=sys.stderr)
