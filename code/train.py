"""Trains a multimodal classifier on a joint and unimodal losses by the chosen method.

    python code/train.py                                            # MMPareto on the embedded digits
    python code/train.py --method uniform --random_seed 1
    python code/train.py --dataset cremad --data_root data/cremad --batch_size 64
    torchrun --nproc_per_node 4 code/train.py --dataset cremad      # a process per GPU; see script/distributed.sh
    python code/train.py --help                                     # every flag, its default and why

One run, top to bottom: flags, data, method, model, optimiser, epochs, selected checkpoint, test once, results.
"""

from __future__ import annotations

from mmpareto import startup  # first: it checks the environment

# isort: split
import functools
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmpareto import datasets, runs
from mmpareto.datasets import DatasetError
from mmpareto.datasets.names import sample_warnings
from mmpareto.methods import Boundary, Method, MethodError
from mmpareto.models import ModelError, MultimodalClassifier
from mmpareto.options import Options, UsageError, differing, parse
from mmpareto.reporting.tables import result_table
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.board import Board, import_wandb
from mmpareto.training.checkpoints import has_best, load_checkpoint
from mmpareto.training.data import Loader
from mmpareto.training.epochs import score, train_epoch
from mmpareto.training.processes import Processes
from mmpareto.training.records import (
    by_head,
    epoch_line,
    epoch_row,
    integration_summary,
    settings_text,
    step_scalars,
)
from mmpareto.training.restore import check_same_data, continued_modalities
from mmpareto.training.session import Session
from mmpareto.training.setup import (
    AMP,
    build_split,
    check_switches,
    choose_device,
    fastest,
    make_loader,
    make_method,
    make_model,
    make_optimizer,
    make_step,
    seed_everything,
    set_rates,
    set_up,
)
from mmpareto.training.step import Step
from mmpareto.training.trainer import Trainer
from mmpareto.training.watch import FiniteWatch, Interrupted, Signals, TrainingError, explained, how_to_go_on

ROOT = Path(__file__).resolve().parent.parent  # of the repository: data/ and runs/ are there, wherever one stands


def main(options: Options, signals: Signals) -> None:
    """Runs a training run from its options to its results."""
    processes = Processes()
    device = choose_device(options.gpu_ids, processes)
    if options.fast:
        options = options.filled(fastest(device, processes.size, options))
    check_switches(options, device, processes.size)
    if options.wandb is not None:
        import_wandb()
    with processes.connect(device):
        train(options, device, processes, signals)


def train(options: Options, device: torch.device, processes: Processes, signals: Signals) -> None:
    """One process's part of the run."""
    # data
    earlier = continued_modalities(options, processes.restarts)
    train_set = build_split(options, "train", earlier)
    val_set, test_set = (
        build_split(options, "val", train_set.modalities),
        build_split(options, "test", train_set.modalities),
    )
    if earlier is not None:
        check_same_data(RunDirectory(Path(options.ckpt_path)), options, train_set)
    classes, modalities = len(train_set.classes), list(train_set.modalities)
    if options.n_classes not in (None, classes):
        raise UsageError(f"--n_classes {options.n_classes}: the dataset {options.dataset} has {classes} classes")

    def loader(dataset: datasets.MultimodalDataset, training: bool) -> Loader:
        return make_loader(dataset, options, device, processes, training=training)

    train_loader, val_loader, test_loader = loader(train_set, True), loader(val_set, False), loader(test_set, False)
    selection_loader = val_loader if options.selected_on == "val" else test_loader

    processes.refuse_differences(settings_and_data(options, train_set, val_set, test_set))

    # method, model, optimiser
    method = make_method(options, processes.size)
    seed_everything(options.random_seed)
    model, encoders = make_model(options, train_set, device, method)
    set_up(method, model, options)
    optimizer, schedule = make_optimizer(model, options)
    step = make_step(model, method, optimizer, options, device)
    amp = None if options.amp is None else AMP[options.amp]

    # the run directory
    if not options.train:
        return score_again(options, method, model, device, val_loader, test_loader)
    run, checkpoint, finished = processes.on_main(lambda: open_run(options, method, processes.restarts))
    if finished:
        if processes.main:
            print(f"{run.path} is finished; give more --epochs to go on\n")
            print(result_table(run.read_results()))
        return None
    processes.start_alike(model)
    seed_everything(options.random_seed + processes.rank)  # from here on each draws its own
    session = Session(model, method, optimizer, schedule, step, modalities, device, processes)
    differences = session.restore(run, checkpoint) if checkpoint else []
    if differences and processes.main:
        print(
            f"warning: this run continues with {', '.join(differences)}: results may differ in rounding from those of "
            "a run without the interruption",
            file=sys.stderr,
        )
    if processes.main:
        for name in (runs.GRADIENTS, runs.LAYERS):
            run.cut_csv(name, session.epoch)
        (run / runs.RESULTS).unlink(missing_ok=True)
        # what the data decided: read from here from now on, so that a changed training file changes no score
        resolved = {
            "encoders": encoders,
            "classes": train_set.classes,
            "modalities": {name: asdict(modality) for name, modality in train_set.modalities.items()},
        }
        run.write_json(runs.CONFIG, options.resolved() | resolved)
        run.write_json(runs.ENVIRONMENT, runs.environment(device, processes.size))
        parts = {"train": train_set, "val": val_set, "test": test_set}
        print(settings_text(options, parts, encoders, model, device, run.path, processes.size), flush=True)
        for warning in sample_warnings(
            train_set.classes,
            {split: part.labels for split, part in parts.items()},
            {split: part.sample_ids() for split, part in parts.items()},
            modalities,
        ):
            print(f"warning: {warning}", file=sys.stderr)

    def stop_together() -> None:
        if processes.any(False, signals.number is not None)[1]:
            raise Interrupted(signals.number or 15)

    def scores(chosen: Loader) -> dict[str, dict[str, float]]:
        try:
            result = score(model, chosen, device, amp=amp, processes=processes, between=stop_together)
            if processes.settle(2)[1]:  # of the last batch
                raise Interrupted(signals.number or 15)
        except Interrupted as order:
            if session.epoch <= options.epochs and not order.again:
                session.save(run)
            raise
        return result

    trainer = Trainer(model, train_set, options, device, processes, stop_together, session.fits)

    def before_epoch() -> None:
        """What the method does between two epochs; not again where a run is resumed within the epoch."""
        if session.bounds == session.epoch:
            return
        last = session.history[-1] if session.history else {}
        validation = {name: last[f"val_accuracy_{name}"] for name in ("joint", *modalities)} if last else {}
        labels = torch.from_numpy(train_set.labels)
        trainer.epoch = session.epoch
        try:
            factors = method.boundary(
                Boundary(session.epoch, options.epochs, validation, labels, model, optimizer, trainer)
            )
        except Interrupted as order:
            if not order.again:
                session.save(run)
            raise
        except DatasetError:
            if processes.size == 1:  # whole epochs of an estimate are kept, as batches are
                session.save(run)
            raise
        finally:
            trainer.release()
        set_rates(optimizer, schedule, factors)
        session.bounds = session.epoch
        if processes.settle(2)[1]:  # asked in its last moment: what the method did is kept
            session.save(run)
            raise Interrupted(signals.number or 15)

    def stopped_early() -> bool:
        return options.early_stopping is not None and (
            session.epoch - 1 - session.best["epoch"] >= options.early_stopping
        )

    # epochs
    signals.defer()
    watch = FiniteWatch(modalities, device, gradients=options.amp != "fp16")
    first_step = (session.epoch - 1) * len(train_loader) + session.record.batches
    with Board.of(run.path, first_step, options.resolved(), options.wandb, processes.main) as board:

        def after_batch(number: int, done: Step) -> bool:
            if number % options.log_interval == 0:
                watch.check(session.epoch)
                speed = session.record.batches_per_second * options.batch_size
                board.scalars(step_scalars(done, float(schedule.get_last_lr()[0]), speed), number)
            minutes = (time.monotonic() - session.saved_at) / 60
            due = options.checkpoint_minutes is not None and minutes >= options.checkpoint_minutes
            due, stop = processes.any(due, signals.number is not None)
            if due or stop:
                watch.check(session.epoch)
                session.save(run)
            return stop

        while session.epoch <= options.epochs and not stopped_early():
            epoch, rate = session.epoch, float(schedule.get_last_lr()[0])
            before_epoch()
            try:
                finished = train_epoch(
                    step,
                    model,
                    train_loader,
                    epoch,
                    session.record,
                    watch,
                    device,
                    diagnose_interval=options.diagnose_interval,
                    before_batch=functools.partial(processes.begin_step, epoch),
                    after_batch=after_batch,
                    progress=processes.main,
                )
            except DatasetError:
                if processes.size == 1:  # a batch could not be read: what was learned before it is kept
                    watch.check(epoch)
                    session.save(run)
                raise
            if not finished:
                raise Interrupted(signals.number or 15)  # another process may have got it
            if processes.settle(2)[1]:
                session.save(run)
                raise Interrupted(signals.number or 15)
            watch.check(epoch)
            training = session.record.scores.compute(processes.total)
            gradients = session.record.gradients.rows(epoch)
            layers = session.record.gradients.layer_rows(epoch, trainable_names(model))
            processes.average_buffers(model)
            selection = scores(selection_loader)
            validation = selection if selection_loader is val_loader else scores(val_loader)
            took = session.record.seconds
            session.seconds += took

            row = epoch_row(epoch, rate, training, validation, gradients, modalities)
            row |= {f"method_{name}": value for name, value in method.figures().items()}
            if options.selected_on == "test":
                row |= {f"test_accuracy_{name}": value["accuracy"] for name, value in selection.items()}
            if options.amp == "fp16":
                row["skipped_steps"] = int(step.overflows.item())
            session.history.append(row | {"seconds": round(took, 3)})
            better = session.select(selection["joint"])
            session.next_epoch()
            if processes.main:
                if gradients:
                    run.append_csv(runs.GRADIENTS, gradients)
                    run.append_csv(runs.LAYERS, layers)
                run.write_csv(runs.METRICS, session.history)
            session.save(run)
            if better:
                session.save_best(run)
            if processes.main:
                print(epoch_line(row, options.epochs, took, modalities), flush=True)
            board.scalars({key: value for key, value in row.items() if key != "epoch"}, epoch * len(train_loader) - 1)
        if stopped_early() and processes.main:
            print(f"no better epoch in {options.early_stopping}: stopped early")

        # the selected checkpoint, scored on test once
        processes.on_main(lambda: None)  # best.pt is written
        selected = load_checkpoint(run / runs.BEST, device, ("model", "epoch"))
        model.load_state_dict(selected["model"])
        test, val = scores(test_loader), scores(val_loader)
        if not processes.main:
            return None
        results = {
            "dataset": options.dataset,
            "method": options.method,
            "method_options": options.method_options,
            "seed": options.random_seed,
            "selected_on": options.selected_on,
            "selected_epoch": selected["epoch"],
            "epochs": options.epochs,
            "epochs_trained": len(session.history),
            "seconds": round(session.seconds, 1),
            "test": by_head(test),
            "val": by_head(val),
            "integration": integration_summary(run.read_csv(runs.GRADIENTS), modalities),
        }
        draw(run, session, selected["epoch"], options.selected_on, board)
    run.write_json(runs.RESULTS, results)
    print(f"\nepoch {selected['epoch']} of {len(session.history)}, selected on {options.selected_on}\n")
    print(result_table(results))
    if options.selected_on == "test":
        print("\nSelected on the test split, the published protocol: the test accuracies above flatter the method.")
    print(f"\nrun directory: {run.path}")
    return None


def open_run(options: Options, method: Method, restarts: int) -> tuple[RunDirectory, str | None, bool]:
    """The run directory, the checkpoint in it to go on from (None: it begins), and whether there is nothing to do."""
    resume, overwrite = options.resume, options.overwrite
    if resume == "auto" or restarts:  # torchrun repeats the command line
        there = (Path(options.ckpt_path) / runs.LAST).exists()
        resume, overwrite = (runs.LAST if there else None), overwrite and not restarts
    run = runs.open_for(options.ckpt_path, resume is not None, overwrite)
    if resume is None:
        return run, None, False
    refuse_other_settings(run, options, method)
    return run, resume, run.finished and run.read_results()["epochs"] >= options.epochs and has_best(run)


def settings_and_data(options: Options, *splits: datasets.MultimodalDataset) -> dict[str, Any]:
    """What all processes of a run must have alike, by name."""
    settings = json.loads(json.dumps(options.resolved(), default=str))
    values = {
        f"--{key}": value for key, value in settings.items() if key not in ("data_root", "num_workers", "gpu_ids")
    }
    for name, split in zip(datasets.SPLITS, splits, strict=True):
        labels = hashlib.sha256(split.labels.tobytes()).hexdigest()[:12]
        values |= {f"samples of {name}": len(split), f"checksum of the labels of {name}": labels}
    return values | {"classes": list(splits[0].classes)}


def trainable_names(model: MultimodalClassifier) -> dict[str, list[str]]:
    """{modality: names of its encoder's trainable tensors}."""
    return {
        name: [tensor for tensor, parameter in encoder.named_parameters() if parameter.requires_grad]
        for name, encoder in model.partition()[0].items()
    }


def draw(run: RunDirectory, session: Session, selected: int, split: str, board: Board) -> None:
    """The run's figures."""
    from mmpareto.reporting import figures  # matplotlib takes a second to load

    made = {
        "learning_curves": figures.learning_curves(session.history, session.modalities, selected, split),
        "gradients": figures.gradient_figure(run.read_csv(runs.GRADIENTS)),
    }
    for name, figure in made.items():
        if figure is not None:
            figures.save(figure, run / f"{name}.png")
            board.picture(name, run / f"{name}.png", session.epoch)


def refuse_other_settings(run: RunDirectory, options: Options, method: Method) -> None:
    """Raises RunError where the run in the directory was made with other settings than these."""
    saved = run.read_json(runs.CONFIG)
    asked = json.loads(json.dumps(options.resolved(), default=str))  # as config.json holds it
    unknown = [key for key in asked if key not in saved]
    if unknown:
        raise RunError(
            f"{run.path} was made by an older version, which knew no --{unknown[0]}; train it again with --overwrite"
        )
    fixed = {"epochs"} if options.lr_schedule == "cosine" or method.planned else set()
    may_change = {"early_stopping", "epochs"} - fixed
    other = [f"--{key} {saved[key]} (now {asked[key]})" for key in differing(saved, asked) if key not in may_change]
    if other:
        raise RunError(
            f"{run.path} was made with other settings: {', '.join(other)}; repeat its own, or use --overwrite"
        )


def score_again(
    options: Options,
    method: Method,
    model: MultimodalClassifier,
    device: torch.device,
    val_loader: Loader,
    test_loader: Loader,
) -> None:
    """--no-train: scores the selected checkpoint of a finished run once more."""
    run = RunDirectory(Path(options.ckpt_path))
    results = run.read_results()
    refuse_other_settings(run, options, method)
    model.load_state_dict(load_checkpoint(run / runs.BEST, device, ("model",))["model"])
    amp = None if options.amp is None else AMP[options.amp]
    for split, chosen in (("test", test_loader), ("val", val_loader)):
        results[split] = by_head(score(model, chosen, device, amp=amp))
    print(result_table(results))


def entry(argv: Sequence[str]) -> int:
    """Runs a command line; the result is the exit status. What a person can mend is said in a line or two."""
    options = None
    with Signals() as signals:
        try:
            options = parse(argv, ROOT)
            main(options, signals)
        except (UsageError, DatasetError, ModelError, MethodError, RunError, TrainingError) as error:
            print(f"train.py: {error}", file=sys.stderr)
            return 2
        except Interrupted as order:
            rest = "it had not begun" if options is None else how_to_go_on(options)
            again = "at once by a second " if order.again else "by "
            print(f"\nstopped {again}{order}; {rest}", file=sys.stderr)
            return 128 + order.number
        except (RuntimeError, MemoryError, ValueError, OSError) as error:
            explanation = explained(error, options)
            if explanation is None and not isinstance(error, OSError):
                raise
            print(f"train.py: {explanation or error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    startup.run(entry)
