"""The engine: what an epoch costs beyond loading and steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from mmpareto import datasets
from mmpareto.benchmarks.quartiles import quartiles, ratio_text
from mmpareto.datasets import to_device
from mmpareto.methods import build_method
from mmpareto.models import build_model
from mmpareto.reporting.tables import text_table
from mmpareto.runs import RunDirectory
from mmpareto.training.board import Board
from mmpareto.training.data import Loader
from mmpareto.training.epochs import train_epoch
from mmpareto.training.processes import Processes
from mmpareto.training.records import epoch_row, step_scalars
from mmpareto.training.state import TrainingState
from mmpareto.training.step import Step, TrainingStep
from mmpareto.training.watch import FiniteWatch


def measure(mnist: Path | None, repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """Epochs on digits, or on CG-MNIST where MNIST's folder is given, with their recipe's batch size and encoders.

    The engine's, with its scores, logs and checkpoint, and bare ones of loading and stepping. Of CG-MNIST's 938 batches
    an epoch has 100 here: what comes once an epoch weighs more than in a real one.
    """
    name, batch_size, encoder = ("digits", 32, "cnn") if mnist is None else ("cgmnist", 64, "pmr")
    data: Any = datasets.build(name, mnist, "train")
    if mnist is not None:
        whole, data = data, Subset(data, range(100 * batch_size))
        data.modalities, data.classes, data.set_epoch = whole.modalities, whole.classes, whole.set_epoch
    about = {name: (modality.kind, modality.shape) for name, modality in data.modalities.items()}
    loader = Loader(data, batch_size, shuffle=True, seed=0, workers=0, pin=device.type == "cuda")
    model = build_model(about, len(data.classes), dict.fromkeys(about, encoder)).to(device)
    method = build_method("mmpareto")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    step = TrainingStep(model, method, optimizer)
    state = TrainingState(model, method, optimizer, schedule, step, list(about), device, Processes())
    watch = FiniteWatch(list(about), device)
    names = {name: [tensor for tensor, _ in encoder.named_parameters()] for name, encoder in model.encoders.items()}

    def bare_epoch(epoch: int) -> None:
        model.train()
        for batch in loader.epoch(epoch - 1):
            step(to_device(batch["inputs"], data.modalities, device), batch["label"].to(device, non_blocking=True))

    taken: dict[str, list[float]] = {"loading and steps": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder, Board(Path(folder), 0, {}) as board:
        run = RunDirectory(Path(folder))

        def log(number: int, done: Step) -> bool:
            if number % 50 == 0:
                watch.check(1)
                board.scalars(step_scalars(done, 0.01, 0.0), number)
            return False

        def engine_epoch(epoch: int) -> None:
            train_epoch(step, model, loader, epoch, state.record, watch, device, after_batch=log)
            watch.check(epoch)
            training, gradients = state.record.scores.compute(), state.record.gradients.rows(epoch)
            layers = state.record.gradients.layer_rows(epoch, names)
            row = epoch_row(epoch, 0.01, training, training, gradients, list(about))
            state.history.append(row)
            board.scalars({key: value for key, value in row.items() if key != "epoch"}, epoch)
            state.next_epoch()
            run.append_csv("gradients.csv", gradients)
            run.append_csv("layers.csv", layers)
            run.write_csv("metrics.csv", state.history)
            state.save(run)

        ways = {"loading and steps": bare_epoch, "engine": engine_epoch}
        for epoch in range(1, repetitions + 2):  # the first warms up
            for way in sorted(ways, reverse=epoch % 2 == 0):
                started = time.perf_counter()
                ways[way](epoch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken[way].append(time.perf_counter() - started)
    bare = taken["loading and steps"][1:]
    return [
        {
            "dataset": name,
            "way": way,
            "milliseconds": 1000 * statistics.median(seconds[1:]),
            "over_bare": quartiles([value / base for value, base in zip(seconds[1:], bare, strict=True)]),
        }
        for way, seconds in taken.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `measure` for a person."""
    lines = [[row["way"], f"{row['milliseconds']:.0f}", ratio_text(row["over_bare"])] for row in rows]
    return text_table([f"epoch on {rows[0]['dataset']}", "ms", "over loading and steps"], lines)
