"""The engine: what an epoch costs beyond loading and steps."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmpareto.arguments import parse
from mmpareto.benchmarks.quartiles import in_turns, quartiles, ratio_text
from mmpareto.datasets import batch_to_device
from mmpareto.reporting.tables import text_table
from mmpareto.runs import RunDirectory
from mmpareto.training.board import Board
from mmpareto.training.epochs import RecordedStep, train_epoch
from mmpareto.training.optimizer import make_optimizer
from mmpareto.training.processes import Processes
from mmpareto.training.records import epoch_row, step_scalars
from mmpareto.training.setup import (
    build_split,
    hold_on_device,
    make_loader,
    make_method,
    make_model,
    make_step,
    set_up,
    with_switches,
)
from mmpareto.training.state import TrainingState
from mmpareto.training.step import Step
from mmpareto.training.watch import FiniteWatch


def measure(
    mnist: Path | None, repetitions: int, device: torch.device, flags: Sequence[str] = (), whole: bool = False
) -> list[dict[str, Any]]:
    """Epochs on digits, or on CG-MNIST where MNIST's folder is given, with their recipe's batch size and encoders.

    The engine's, with its scores, logs and checkpoint, and bare ones of loading and stepping, which are never captured.

    Args:
        mnist: folder of MNIST.
        repetitions: of each way.
        device: that trains.
        flags: of train.py.
        whole: whole epochs of CG-MNIST, in place of 100 of its 844 batches: there what comes once an epoch weighs more
            than in a real one.
    """
    name = "digits" if mnist is None else "cgmnist"
    place = [] if mnist is None else ["--data_root", str(mnist)]
    config = with_switches(parse(["--dataset", name, *place, *flags], Path()), device, 1)
    method = make_method(config.method, config.engine)
    data = build_split(config.data, 0, "train", download=False)
    hold_on_device(config.data.data_on, [data], device)
    loader = make_loader(data, config.data, 0, device, training=True)
    if mnist is not None and not whole:
        loader.sampler.choose(torch.arange(100 * config.data.batch_size))
    model, _ = make_model(config, data, device, method)
    set_up(method, model, 0, config.optim.epochs)
    optimizer, schedule = make_optimizer(model, config.optim, config.engine.cuda_graph)
    step = make_step(model, method, optimizer, config.engine, config.optim.clip_grad, data.modalities, device)
    modalities = list(data.modalities)
    state = TrainingState(model, method, optimizer, schedule, step, modalities, device, Processes())
    watch = FiniteWatch(modalities, device)
    recorded = RecordedStep(step, state.record, watch, data.modalities, capture=config.engine.cuda_graph)
    names = {name: [tensor for tensor, _ in encoder.named_parameters()] for name, encoder in model.encoders.items()}

    def bare_epoch(epoch: int) -> None:
        model.train()
        for batch in loader.stream(epoch - 1):
            inputs, label, _ = batch_to_device(batch, data.modalities, device)
            step(inputs, label)

    with tempfile.TemporaryDirectory() as folder, Board(Path(folder), 0, {}) as board:
        run = RunDirectory(Path(folder))

        def log(number: int, done: Step) -> bool:
            if number % 50 == 0:
                watch.check(1)
                board.scalars(step_scalars(done, 0.01, 0.0), number)
            return False

        def engine_epoch(epoch: int) -> None:
            train_epoch(recorded, loader, epoch, after_batch=log)
            watch.check(epoch)
            training, gradients = state.record.scores.compute(), state.record.gradients.rows(epoch)
            layers = state.record.gradients.layer_rows(epoch, names)
            row = epoch_row(epoch, 0.01, training, training, gradients, modalities)
            state.history.append(row)
            board.scalars({key: value for key, value in row.items() if key != "epoch"}, epoch)
            state.next_epoch()
            run.append_csv("gradients.csv", gradients)
            run.append_csv("layers.csv", layers)
            run.write_csv("metrics.csv", state.history)
            state.save(run)

        seconds = in_turns({"loading and steps": bare_epoch, "engine": engine_epoch}, repetitions, device)
    bare = seconds["loading and steps"]
    return [
        {
            "dataset": name,
            "way": way,
            "milliseconds": 1000 * statistics.median(values),
            "over_bare": quartiles([value / base for value, base in zip(values, bare, strict=True)]),
        }
        for way, values in seconds.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `measure` for a person."""
    lines = [[row["way"], f"{row['milliseconds']:.0f}", ratio_text(row["over_bare"])] for row in rows]
    return text_table([f"epoch on {rows[0]['dataset']}", "ms", "over loading and steps"], lines)
