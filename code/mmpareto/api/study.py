"""What study.py measures of finished runs: noise of their gradients, the loss around their weights, its sharpness."""

import argparse
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmpareto import runs
from mmpareto.arguments import saved_config
from mmpareto.config import Config
from mmpareto.datasets import Batch, DeviceBatch, Modality, MultimodalDataset, batch_to_device
from mmpareto.errors import UsageError
from mmpareto.escape import counted
from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.gradient_noise import gradient_noise
from mmpareto.evaluation.landscape import hessian_product, surface
from mmpareto.evaluation.sharpness import largest_eigenvalue
from mmpareto.inputs import map_tensors
from mmpareto.integration import float64_device
from mmpareto.json_files import json_text
from mmpareto.models import EnsembleFusion, MultimodalModel
from mmpareto.reporting.tables import text_table
from mmpareto.runs import RunDirectory, RunError
from mmpareto.selection import SELECTED_ON_TEST
from mmpareto.training.data import Loader
from mmpareto.training.restore import check_same_data, same_data, saved_modalities, trained_model
from mmpareto.training.setup import choose_device
from mmpareto.writing import write_together

STUDY = "study.json"
TOLERANCE = 1e-3  # of the eigenvalue, relative


@dataclass
class Subject:
    """A run that is studied."""

    run: RunDirectory
    label: str
    config: Config
    model: MultimodalModel
    epoch: int


class Kept:
    """Batches in memory, as stored, made the model's input anew at every pass."""

    def __init__(self, batches: Sequence[Batch], modalities: dict[str, Modality], device: torch.device) -> None:
        self.batches, self.modalities, self.device = batches, modalities, device

    def __iter__(self) -> Iterator[DeviceBatch]:
        for batch in self.batches:
            yield batch_to_device(batch, self.modalities, self.device)


def study_runs(arguments: argparse.Namespace) -> None:
    """Study runs from their directories to the figures.

    Args:
        arguments: the flags of `cli.study`.
    """
    device = choose_device(arguments.gpu_ids)
    if float64_device(device) != device:
        raise UsageError(f"--gpu_ids {arguments.gpu_ids}: it has no float64, in which gradients are studied; give cpu")
    subjects, data = load(arguments, device)
    modalities = dict(data.modalities)
    data.augmenting = False
    loader = Loader(
        data,
        arguments.batch_size or subjects[0].config.data.batch_size,
        shuffle=True,
        seed=arguments.seed,
        workers=subjects[0].config.data.num_workers,
        pin=device.type == "cuda",
        training=False,
    )
    size = loader.sampler.batch_size
    if len(data) < size:
        raise UsageError(
            f"--batch_size {size}: {arguments.split} has {counted(len(data), 'sample')}; give a smaller one"
        )
    kept = Kept(first_samples(loader, min(arguments.samples, len(data))), modalities, device)

    rows = []
    for subject in subjects:
        begun = time.perf_counter()
        stream = (
            batch_to_device(batch, modalities, device)
            for batch in itertools.islice(full_batches(loader), arguments.batches)
        )
        rows.append(measures(subject, stream, kept, arguments))
        print(f"{subject.label}, epoch {subject.epoch}: {time.perf_counter() - begun:.1f} s", flush=True)
    study = {
        "dataset": subjects[0].config.data.dataset,
        "split": arguments.split,
        "seed": arguments.seed,
        "batches": arguments.batches,
        "batch_size": size,
        "samples": sum(len(batch["label"]) for batch in kept.batches),
        "directions": arguments.directions,
        "distance": arguments.distance,
        "environment": runs.environment(device),
        "runs": rows,
    }
    print("\n" + text(study))
    for row in rows:
        if row["selected_on"] == "test":
            print(f"\nNote: {row['label']} was {SELECTED_ON_TEST}, the published protocol")
    write(arguments.output, study)
    print(f"\nwritten: {arguments.output / STUDY} and figures beside it")


def measures(
    subject: Subject, stream: Iterable[DeviceBatch], kept: Kept, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All that is measured of a run: noise over the batches of `stream`, the loss and its curvature over `kept`."""
    try:
        noise = gradient_noise(subject.model, stream)
        around = surface(
            subject.model, kept, arguments.directions, arguments.distance, arguments.points, arguments.seed
        )
        product, parameters = hessian_product(subject.model, kept)
        generator = torch.Generator().manual_seed(arguments.seed)
        start = torch.randn(parameters, generator=generator, dtype=torch.float64).to(kept.device)
        sharpness = largest_eigenvalue(product, start, arguments.hessian_products, TOLERANCE)
    except EvaluationError as error:
        raise EvaluationError(f"{subject.run.path}: {error}") from error
    return {
        "run": str(subject.run.path),
        "label": subject.label,
        "method": subject.config.method.method,
        "seed": subject.config.run.random_seed,
        "selected_on": subject.config.optim.selected_on,
        "epoch": subject.epoch,
        "noise": {name: asdict(both) for name, both in noise.items()},
        "loss": asdict(around),
        "sharpness": asdict(sharpness),
    }


def load(arguments: argparse.Namespace, device: torch.device) -> tuple[list[Subject], MultimodalDataset]:
    """The runs' models, and the split of the dataset that all were trained on.

    Raises RunError and UsageError for runs that cannot be compared.
    """
    directories = [RunDirectory(path) for path in arguments.runs]
    if len({run.path.resolve() for run in directories}) < len(directories):
        raise UsageError("a run is given twice")
    subjects: list[Subject] = []
    data: MultimodalDataset | None = None
    first: Config | None = None
    for run in directories:
        config = saved_config(run, arguments.allow, data_root=arguments.data_root, num_workers=arguments.num_workers)
        if not run.finished:
            raise RunError(f"{run.path} is not finished; finish it with train.py --resume")
        # one precision for all: the measures are of the weights, not of how they were trained
        config = config.changed(amp=None, tf32=False)
        if first is None:
            first, data = config, same_data(run, config, arguments.split)
        for what in ("dataset", "dataset_options", "data_root", "missing"):
            mine, others = getattr(config.data, what), getattr(first.data, what)
            if mine != others:
                raise UsageError(
                    f"{run.path} was trained with {what} {mine}, {subjects[0].run.path} with {others}; give runs on "
                    "the same data" + (", or say where the data are with --data_root" if what == "data_root" else "")
                )
        assert data is not None
        resolved = saved_modalities(run)
        if resolved != data.modalities:
            raise UsageError(
                f"{run.path} was trained on the modalities {resolved}, {directories[0].path} on {data.modalities}; "
                "study them one at a time"
            )
        check_same_data(run, config, data)
        model, epoch = trained_model(run, config, data, device)
        if isinstance(model.fusion, EnsembleFusion):
            raise UsageError(
                f"{run.path} is an ensemble of unimodal models: it has no joint loss that could be studied"
            )
        label = f"{config.method.method}, seed {config.run.random_seed}"
        subjects.append(Subject(run, label, config, model, epoch))
    labels = [subject.label for subject in subjects]
    for subject in subjects:
        if labels.count(subject.label) > 1:
            subject.label = str(subject.run.path)
    assert data is not None
    return subjects, data


def full_batches(loader: Loader) -> Iterator[Batch]:
    """Batches of equal size, in a new order each time the split has been gone through."""
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            if len(batch["label"]) == loader.sampler.batch_size:
                yield batch


def first_samples(loader: Loader, samples: int) -> list[Batch]:
    """So many samples of the split, in the order of the first epoch."""
    size = loader.sampler.batch_size
    batches = list(itertools.islice(loader.epoch(0), math.ceil(samples / size)))
    last = samples - size * (len(batches) - 1)
    batches[-1] = map_tensors(lambda tensor: tensor[:last], batches[-1])
    batches[-1]["id"] = batches[-1]["id"][:last]
    return batches


def text(study: dict[str, Any]) -> str:
    """The tables."""
    noise = [
        [
            f"{run['label']}, {encoder}",
            *(
                f"{both[which][key]:.3g}"
                for key in ("mean_norm", "covariance_trace")
                for which in ("joint", "unimodal")
            ),
            "-" if both["cosine"] is None else f"{both['cosine']:+.2f}",
        ]
        for run in study["runs"]
        for encoder, both in run["noise"].items()
    ]
    loss_rows = []
    for run in study["runs"]:
        middle, sharpness = len(run["loss"]["alphas"]) // 2, run["sharpness"]
        ends = [loss for row in run["loss"]["losses"] for loss in (row[0], row[-1])]
        loss_rows.append(
            [
                run["label"],
                f"{run['loss']['losses'][0][middle]:.3g}",
                f"{sum(ends) / len(ends):.3g}",
                f"{sharpness['value']:.4g}" + ("" if sharpness["converged"] else " (not converged)"),
            ]
        )
    return "\n\n".join(
        [
            text_table(
                [
                    f"gradients of {study['batches']} batches of {study['batch_size']}, {study['split']}",
                    "norm, joint",
                    "unimodal",
                    "trace of covariance, joint",
                    "unimodal",
                    "cosine of means",
                ],
                noise,
            ),
            text_table(
                [
                    f"joint loss of {counted(study['samples'], 'sample')}",
                    "at the model",
                    f"at distance {study['distance']:g}",
                    "largest eigenvalue",
                ],
                loss_rows,
            ),
        ]
    )


def write(folder: Path, study: dict[str, Any]) -> None:
    """study.json and the figures."""
    from mmpareto.reporting import study_figures as made  # matplotlib takes a second to load
    from mmpareto.reporting.rendering import png

    content = {
        STUDY: json_text(study).encode(),
        "study_gradients.png": png(made.noise_figure(study)),
        "study_loss.png": png(made.loss_figure(study)),
        "study_sharpness.png": png(made.sharpness_figure(study)),
    }
    write_together(folder, content)
