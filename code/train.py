"""Trains a multimodal classifier, gradients of joint and unimodal losses integrated by the chosen method.

    python code/train.py                                            # MMPareto on the embedded digits
    python code/train.py --method uniform --random_seed 1
    python code/train.py --dataset cremad --data_root data/cremad --batch_size 64
    python code/train.py --help                                     # every flag, its default and why

One run, top to bottom: flags, data, model, integrator, optimiser, epochs, selected checkpoint, test once, results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmpareto import datasets, runs
from mmpareto.datasets import DatasetError
from mmpareto.integration import build_integrator
from mmpareto.models import ModelError, MultimodalClassifier, build_model, encoder_names
from mmpareto.options import Options, UsageError, parse
from mmpareto.reporting.tables import result_table
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.data import Loader
from mmpareto.training.epochs import TrainingError, score, train_epoch
from mmpareto.training.records import by_head, epoch_line, epoch_row, integration_summary, settings_text
from mmpareto.training.setup import choose_device, make_optimizer, seed_everything

CHECKPOINT = ("model", "optimizer", "schedule", "integrator", "epoch", "history", "best", "random", "seconds")
# settings that may change when a run is resumed: they do not change its results so far
MAY_CHANGE = ("epochs", "num_workers", "gpu_ids", "ckpt_path", "data_root")
ROOT = Path(__file__).resolve().parent.parent  # of the repository: data/ and runs/ are there, wherever one stands


def main(options: Options) -> None:
    """Runs a training run from its options to its results."""
    device = choose_device(options.gpu_ids)
    torch.backends.cudnn.benchmark = True  # input shapes do not change: let cuDNN find its fastest kernels once

    # data
    train_set, val_set, test_set = (
        datasets.build(options.dataset, options.data_root, split, seed=options.random_seed, **options.dataset_options)
        for split in datasets.SPLITS
    )
    classes, modalities = len(train_set.classes), list(train_set.modalities)
    if options.n_classes not in (None, classes):
        raise UsageError(f"--n_classes {options.n_classes}: the dataset {options.dataset} has {classes} classes")

    def loader(dataset: datasets.MultimodalDataset, shuffle: bool) -> Loader:
        return Loader(
            dataset,
            options.batch_size,
            shuffle=shuffle,
            seed=options.random_seed,
            workers=options.num_workers,
            pin=device.type == "cuda",
        )

    train_loader, val_loader, test_loader = loader(train_set, True), loader(val_set, False), loader(test_set, False)
    selection_loader = val_loader if options.selected_on == "val" else test_loader

    # model, integrator, optimiser
    seed_everything(options.random_seed)
    about = {name: (modality.kind, modality.shape) for name, modality in train_set.modalities.items()}
    encoders = encoder_names(about, options.model, options.encoder)
    model = build_model(about, classes, encoders).to(device)
    try:
        integrator = build_integrator(options.method, **options.method_options)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    optimizer, schedule = make_optimizer(model, options)

    # the run directory
    if not options.train:
        return score_again(options, model, device, val_loader, test_loader)
    run = runs.open_for(options.ckpt_path, options.resume, options.overwrite)
    if options.resume:
        refuse_other_settings(run, options)
        if (run / runs.RESULTS).exists() and run.read_json(runs.RESULTS)["epochs"] >= options.epochs:
            print(f"{run.path} is finished; give more --epochs to go on\n")
            print(result_table(run.read_json(runs.RESULTS)))
            return None
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0}
    begun, seconds = 1, 0.0
    if options.resume:
        saved = runs.load_checkpoint(run / runs.LAST, device, CHECKPOINT)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        integrator.load_state_dict(saved["integrator"])
        history, best, begun, seconds = saved["history"], saved["best"], saved["epoch"] + 1, saved["seconds"]
        torch.set_rng_state(saved["random"].cpu())
        kept = [row for row in run.read_csv(runs.GRADIENTS) if int(row["epoch"]) < begun]
        run.write_csv(runs.GRADIENTS, kept)
        (run / runs.RESULTS).unlink(missing_ok=True)
    run.write_json(runs.CONFIG, options.resolved() | {"encoders": encoders})
    run.write_json(runs.ENVIRONMENT, runs.environment(device))
    print(settings_text(options, train_set, len(val_set), len(test_set), encoders, model, device, run.path), flush=True)

    # epochs
    from torch.utils.tensorboard import SummaryWriter  # takes a second to load

    with SummaryWriter(str(run.path), purge_step=begun) as board:
        for epoch in range(begun, options.epochs + 1):
            started = time.perf_counter()
            rate = float(schedule.get_last_lr()[0])
            training, gradients = train_epoch(
                model,
                integrator,
                optimizer,
                train_loader,
                epoch,
                device,
                clip_grad=options.clip_grad,
                diagnose_interval=options.diagnose_interval,
            )
            schedule.step()
            selection = score(model, selection_loader, device)
            validation = selection if selection_loader is val_loader else score(model, val_loader, device)
            took = time.perf_counter() - started
            seconds += took

            row = epoch_row(epoch, rate, training, validation, gradients, modalities)
            if options.selected_on == "test":
                row |= {f"test_accuracy_{name}": value["accuracy"] for name, value in selection.items()}
            history.append(row | {"seconds": round(took, 3)})
            for name, value in row.items():
                if value is not None and name != "epoch":
                    board.add_scalar(name, value, epoch)
            print(epoch_line(row, options.epochs, took, modalities), flush=True)

            if selection["joint"]["accuracy"] > best["accuracy"]:
                best = {"accuracy": selection["joint"]["accuracy"], "epoch": epoch}
                runs.save_checkpoint(run / runs.BEST, {"model": model.state_dict(), "epoch": epoch})
            if gradients:
                run.append_csv(runs.GRADIENTS, gradients)
            run.write_csv(runs.METRICS, history)
            state = (
                model.state_dict(),
                optimizer.state_dict(),
                schedule.state_dict(),
                integrator.state_dict(),
                epoch,
                history,
                best,
                torch.get_rng_state(),
                seconds,
            )
            runs.save_checkpoint(run / runs.LAST, dict(zip(CHECKPOINT, state, strict=True)))

    # the selected checkpoint, scored on test once
    model.load_state_dict(runs.load_checkpoint(run / runs.BEST, device, ("model",))["model"])
    results = {
        "dataset": options.dataset,
        "method": options.method,
        "method_options": options.method_options,
        "seed": options.random_seed,
        "selected_on": options.selected_on,
        "selected_epoch": best["epoch"],
        "epochs": options.epochs,
        "seconds": round(seconds, 1),
        "test": by_head(score(model, test_loader, device)),
        "val": by_head(score(model, val_loader, device)),
        "integration": integration_summary(run.read_csv(runs.GRADIENTS), modalities),
    }
    draw(run, history, modalities, best["epoch"], options.selected_on)
    run.write_json(runs.RESULTS, results)
    print(f"\nepoch {best['epoch']} of {options.epochs}, selected on {options.selected_on}\n")
    print(result_table(results))
    if options.selected_on == "test":
        print("\nSelected on the test split, the published protocol: the test accuracies above flatter the method.")
    print(f"\nrun directory: {run.path}")
    return None


def draw(run: RunDirectory, history: list[dict[str, Any]], modalities: list[str], selected: int, split: str) -> None:
    """The run's figures."""
    from mmpareto.reporting import figures  # matplotlib takes a second to load

    figures.save(figures.learning_curves(history, modalities, selected, split), run / "learning_curves.png")
    figure = figures.gradient_figure(run.read_csv(runs.GRADIENTS))
    if figure is not None:
        figures.save(figure, run / "gradients.png")


def refuse_other_settings(run: RunDirectory, options: Options) -> None:
    """Raises RunError where the run in the directory was made with other settings than these."""
    saved = run.read_json(runs.CONFIG)
    asked = options.resolved()
    other = [
        f"--{key} {saved.get(key)} (now {asked[key]})"
        for key in asked
        if key not in MAY_CHANGE and saved.get(key) != asked[key]
    ]
    if other:
        raise RunError(
            f"{run.path} was made with other settings: {', '.join(other)}; repeat its own, or use --overwrite"
        )


def score_again(
    options: Options, model: MultimodalClassifier, device: torch.device, val_loader: Loader, test_loader: Loader
) -> None:
    """--no-train: scores the selected checkpoint of a finished run once more."""
    run = RunDirectory(Path(options.ckpt_path))
    results = run.read_json(runs.RESULTS)
    refuse_other_settings(run, options)
    model.load_state_dict(runs.load_checkpoint(run / runs.BEST, device, ("model",))["model"])
    results |= {"test": by_head(score(model, test_loader, device)), "val": by_head(score(model, val_loader, device))}
    print(result_table(results))


def entry(argv: Sequence[str]) -> int:
    """Runs a command line; the result is the exit status. What a person can mend is said in a line or two."""
    try:
        main(parse(argv, ROOT))
    except (UsageError, DatasetError, ModelError, RunError, TrainingError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the last whole epoch is kept, go on with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(entry(sys.argv[1:]))
