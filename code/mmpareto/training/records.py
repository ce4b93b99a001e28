"""What a run says of itself: its settings, a line and a table row per epoch, its scores in the form of results.json."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmpareto.config import Config
from mmpareto.datasets import MultimodalDataset
from mmpareto.datasets.names import class_counts, class_text
from mmpareto.escape import counted, on_one_line, shortened
from mmpareto.integration.gramian import to_float64
from mmpareto.models import FUSIONS, MultimodalModel
from mmpareto.selection import SPLITS
from mmpareto.training.step import Step

_MEASURES = ("loss", "accuracy")
HeadScores = Mapping[str, Mapping[str, float]]  # {"joint" or a modality: {"loss", "accuracy"}}


def peak_memory(device: torch.device) -> float:
    """Most memory so far in MiB: what PyTorch allocated on a GPU, otherwise what this process had resident."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak / 2**20, 1)


def epoch_row(
    epoch: int,
    rate: float,
    training: HeadScores,
    validation: HeadScores,
    gradients: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
) -> dict[str, Any]:
    """A row of metrics.csv, its time apart."""
    row: dict[str, Any] = {"epoch": epoch, "learning_rate": rate}
    for split, scores in (("train", training), ("val", validation)):
        for measure in ("loss", "accuracy"):
            row |= {f"{split}_{measure}_{name}": value[measure] for name, value in scores.items()}
    for name, summary in integration_summary(gradients, modalities).items():
        row |= {f"{measure}_{name}": value for measure, value in summary.items()}
    return row


def integration_summary(
    gradients: Sequence[Mapping[str, Any]], modalities: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """{modality: conflict rate in 0 .. 1 and mean cosine} over rows of the gradient log; None where there are none."""
    summary: dict[str, dict[str, float | None]] = {}
    for name in modalities:
        steps = [row for row in gradients if row["encoder"] == name]
        summary[name] = {
            "conflict_rate": sum(float(row["conflict"]) for row in steps) / len(steps) if steps else None,
            "mean_cosine": sum(float(row["cosine"]) for row in steps) / len(steps) if steps else None,
        }
    return summary


def step_scalars(done: Step, rate: float, speed: float) -> dict[str, float]:
    """Points of the TensorBoard curves for one step. Waits for the device, once."""
    values = {"step/loss/joint": done.losses.joint, "step/gradient_norm": done.gradient_norm}
    values |= {f"step/loss/{name}": value for name, value in done.losses.unimodal.items()}
    for name, of_encoder in done.diagnostics.items():
        for measure in ("cosine", "joint_norm", "unimodal_norm", "joint_weight"):
            values[f"step/{measure}/{name}"] = getattr(of_encoder, measure)
    fetched = torch.stack([to_float64(value) for value in values.values()]).tolist()
    return dict(zip(values, fetched, strict=True)) | {
        "step/learning_rate": rate,
        "step/samples_per_second": speed,
    }


def epoch_scalars(row: Mapping[str, float | None]) -> dict[str, float | None]:
    """Points of the curves for one epoch, by tags such as val/accuracy/joint.

    Args:
        row: of metrics.csv.
    """
    groups = {f"{split}_{measure}_": f"{split}/{measure}/" for split in SPLITS for measure in _MEASURES}
    groups |= {f"{measure}_": f"integration/{measure}/" for measure in ("conflict_rate", "mean_cosine")}
    groups["method_"] = "method/"
    tags = {}
    for name, value in row.items():
        prefix = next((prefix for prefix in groups if name.startswith(prefix)), "")
        tags[groups.get(prefix, "epoch/") + name.removeprefix(prefix)] = value
    return tags


class EpochTable:
    """What a person reads of the epochs: a header, and a line each. All stands in metrics.csv.

    Where WIDTH characters do not hold everything, these are left out, in this order: unimodal losses, conflict rates,
    unimodal accuracies.

    Args:
        epochs: of the run.
        modalities: their names.
    """

    WIDTH = 80
    _MARK = 2  # characters behind the line: a star where the epoch is the best so far

    def __init__(self, epochs: int, modalities: Sequence[str]) -> None:
        self._epochs = epochs
        columns = [_Column("loss", "joint", "train_loss_joint", ".3f", 6)]
        columns += [_Column("loss", name, f"train_loss_{name}", ".3f", 6, drop=1) for name in modalities]
        columns += [_Column("val %", "joint", "val_accuracy_joint", ".1f", 5)]
        columns += [_Column("val %", name, f"val_accuracy_{name}", ".1f", 5, drop=3) for name in modalities]
        columns += [_Column("conflict %", name, f"conflict_rate_{name}", ".0%", 4, drop=2) for name in modalities]
        columns += [_Column("", "seconds", "seconds", ".1f", 7)]
        for dropped in (1, 2, 3):
            if len(self._line("", dict.fromkeys(columns, ""))) + self._MARK <= self.WIDTH:
                break
            columns = [column for column in columns if column.drop != dropped]
        self._columns = columns

    @property
    def header(self) -> str:
        """Two lines: what is measured, and in which head or encoder."""
        groups: dict[str, int] = {}
        for column in self._columns:
            key = column.group or column.label
            groups[key] = groups.get(key, -1) + column.width + 1
        titles = [f"{'' if name == 'seconds' else name:{width}}" for name, width in groups.items()]
        first = " | ".join([" " * self._first, *titles]).rstrip()
        return f"{first}\n{self._line('epoch', {column: column.label for column in self._columns})}"

    def row(self, row: Mapping[str, Any], seconds: float, better: bool) -> str:
        """The line of an epoch.

        Args:
            row: of metrics.csv.
            seconds: that it took.
            better: whether it is the best so far.
        """
        values = {**row, "seconds": seconds}
        cells = {column: column.text(values[column.key]) for column in self._columns}
        return self._line(f"{row['epoch']}/{self._epochs}", cells) + " *" * better

    @property
    def _first(self) -> int:
        return max(5, 2 * len(str(self._epochs)) + 1)

    def _line(self, first: str, cells: Mapping[_Column, str]) -> str:
        groups: dict[str, list[str]] = {}
        for column, text in cells.items():
            groups.setdefault(column.group or column.label, []).append(f"{text:>{column.width}}")
        return " | ".join([f"{first:>{self._first}}", *(" ".join(group) for group in groups.values())])


class _Column:
    """A column of `EpochTable`; `drop`: its place in the order in which columns are left out, 0: never."""

    def __init__(self, group: str, label: str, key: str, form: str, width: int, drop: int = 0) -> None:
        self.group, self.label, self.key, self.drop = group, shortened(on_one_line(label), 8), key, drop
        self.form, self.width = form, max(width, len(self.label))

    def text(self, value: float | None) -> str:
        """A value; "-" where nothing was measured."""
        return "-" if value is None else f"{value:{self.form}}".removesuffix("%")


def by_head(scores: HeadScores, combined: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Scores in the form of results.json: the joint head, the unimodal heads by modality, all heads by rule."""
    rest = {name: value for name, value in scores.items() if name != "joint"}
    best = max(rest, key=lambda name: rest[name]["accuracy"])
    return {
        "joint": scores["joint"],
        "unimodal": rest,
        "best_single": {"modality": best, "accuracy": rest[best]["accuracy"]},
        "joint_minus_best_single": scores["joint"]["accuracy"] - rest[best]["accuracy"],
        "all_heads": combined,
    }


def missing_text(parts: Mapping[str, MultimodalDataset]) -> str:
    """How many samples lack which modality; "" where none does."""
    counts = {
        split: ", ".join(f"{name} {100 * rows.mean():.0f} %" for name, rows in part.absent.items())
        for split, part in parts.items()
        if part.absent
    }
    return "; ".join(f"{split}: {text}" for split, text in counts.items())


def settings_text(
    config: Config,
    parts: Mapping[str, MultimodalDataset],
    encoders: dict[str, str],
    model: MultimodalModel,
    device: torch.device,
    folder: Path,
    processes: int = 1,
) -> str:
    """The resolved settings, in a few lines; `parts` are the splits of the dataset."""
    train_set = parts["train"]
    data, method, optim, engine = config.data, config.method, config.optim, config.engine
    counts = class_counts(train_set.classes, {split: part.labels for split, part in parts.items()})

    def settings(values: dict[str, Any]) -> str:
        return "".join(f", {key} {value}" for key, value in values.items() if value is not None)

    schedule = optim.lr_schedule
    if optim.lr_decay_step is not None:
        schedule = f"x {optim.lr_decay_ratio:g} every {counted(optim.lr_decay_step, 'epoch')}"
    if optim.warmup_epochs:
        schedule += f" after {optim.warmup_epochs} of warm-up"
    switches = [f"{name} {value}" for name, value in (("amp", engine.amp),) if value]
    switches += [
        name for name in ("channels_last", "tf32", "compile", "cuda_graph", "sync_batchnorm") if getattr(engine, name)
    ]
    switches += [f"{engine.accumulate} micro-batches"] if engine.accumulate > 1 else []
    switches += ["augmented on the device"] if data.augment == "device" else []
    switches += ["data on the device"] if train_set.held is not None else []
    where = str(device) + (f" x {processes} processes" if processes > 1 else "")
    inputs = ", ".join(
        f"{name} {list(modality.shape)} -> {encoders[name]}" + encoder_text(config.model.encoder_options, name)
        for name, modality in train_set.modalities.items()
    )
    parameters = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    chosen = config.model
    joined = chosen.fusion + settings(chosen.fusion_options)
    if FUSIONS[chosen.fusion].source is not type(model.fusion):  # the method or the architecture brings its own
        joined = FUSIONS.name_of(model.fusion).rpartition(":")[2]
    if chosen.architecture != "late_fusion":
        joined = f"{chosen.architecture}{settings(chosen.architecture_options)}, {joined}"
    lines = {
        "method": method.method + settings(method.method_options),
        "data": f"{data.dataset}{settings(data.dataset_options)}; "
        + "".join(f"{len(part)} {split}, " for split, part in parts.items())
        + f"{len(train_set.classes)} classes",
        "missing": missing_text(parts),
        "classes": class_text(train_set.classes, counts),
        "model": f"{inputs}; {joined}; {parameters / 1e6:.2f} M parameters"
        + (f", {frozen / 1e6:.2f} M of them frozen" if frozen else ""),
        "training": f"{counted(optim.epochs, 'epoch')}, batch {data.batch_size}, {optim.optimizer}, learning rate "
        f"{optim.learning_rate:g} ({schedule}), weight decay {optim.weight_decay:g}, seed {config.run.random_seed}, "
        f"on {where}",
        "speed": ", ".join(switches) + (", chosen by --fast" if engine.fast else ""),
        "run": f"{folder}, selected on {optim.selected_on}",
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items() if text)


def encoder_text(options: Mapping[str, str], modality: str) -> str:
    """The options of a modality's encoder, as " (frozen true)"."""
    words = [f"{key.partition('.')[2]} {value}" for key, value in options.items() if key.startswith(f"{modality}.")]
    return f" ({', '.join(words)})" if words else ""
