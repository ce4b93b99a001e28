"""Score a trained run: metrics of each head, linear probes, missing modalities, contributions."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from mmpareto.arguments import saved_config
from mmpareto.config import Config
from mmpareto.datasets import MultimodalDataset, Split
from mmpareto.errors import UsageError
from mmpareto.escape import counted
from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.all_heads import all_heads
from mmpareto.evaluation.collected import Collected
from mmpareto.evaluation.metrics import head_metrics
from mmpareto.evaluation.missing import Case, accuracies_by_passes, accuracies_from_features, rate_cases, subset_cases
from mmpareto.evaluation.probe import probes
from mmpareto.evaluation.shapley import imbalance, shapley
from mmpareto.evaluation.synergy import synergy
from mmpareto.models import MultimodalModel
from mmpareto.reporting.tables import present_note
from mmpareto.runs import RunDirectory
from mmpareto.selection import RATES, SELECTED_ON_TEST
from mmpareto.training.probing import collect_split, split_batches
from mmpareto.training.restore import other_samples, same_data, trained_model
from mmpareto.training.setup import choose_device
from mmpareto.training.switches import autocast_type

Missing = Literal["zero", "mean"]  # what stands in for an absent modality, see `evaluate`

if TYPE_CHECKING:
    import pandas as pd

SEED = 0  # of the samples that lose a modality: the same for all runs
_MEASURES = ("accuracy", "macro_f1", "mean_average_precision", "auroc", "calibration_error")


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run on a split, in percent.

    Attributes:
        content: all of them, as in evaluation_<split>.json (docs/evaluation.md).
        classes: C names.
    """

    content: dict[str, Any]
    classes: list[str]

    @property
    def table(self) -> pd.DataFrame:
        """A row per head, a column per metric."""
        import pandas as pd  # takes a second to load

        heads = {"joint": self.content["joint"], **self.content["unimodal"]}
        heads |= {f"all heads, {rule}": value for rule, value in self.content["all_heads"].items()}
        rows = {name: {measure: value[measure] for measure in _MEASURES} for name, value in heads.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("head")

    @property
    def per_class(self) -> pd.DataFrame:
        """Metrics of the joint head: a row per class."""
        import pandas as pd

        return pd.DataFrame(self.content["joint"]["per_class"]).set_index("class")

    @property
    def confusion(self) -> pd.DataFrame:
        """Counts of the joint head: a row per class, a column per prediction."""
        import pandas as pd

        table = pd.DataFrame(self.content["joint"]["confusion"], self.classes, self.classes)
        return table.rename_axis(index="class", columns="prediction")

    @property
    def subsets(self) -> pd.DataFrame:
        """Accuracy of the joint head with each set of modalities present."""
        import pandas as pd

        rows = [{"present": " + ".join(row["present"]), "accuracy": row["accuracy"]} for row in self.content["subsets"]]
        return pd.DataFrame(rows).set_index("present")

    @property
    def contributions(self) -> pd.Series:
        """Shapley value of each modality, in points of joint accuracy."""
        import pandas as pd

        return pd.Series(self.content["shapley"]["contributions"], name="contribution").rename_axis("modality")

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know."""
        return self.content["notes"]

    def __repr__(self) -> str:
        about = "{dataset}, {method}, seed {seed}".format(**self.content)
        samples = counted(self.content["samples"], "sample")
        return f"Evaluation of {about}: {samples} of {self.content['split']}\n{self.table}"

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="{:.2f}".format)


def evaluate(
    run: str | os.PathLike[str],
    split: Split = "test",
    *,
    probe: bool = False,
    missing: Missing = "zero",
    missing_rates: Sequence[float] = RATES,
    data_root: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str | int | torch.device | None = None,
    allow: Collection[str] = (),
) -> Evaluation:
    """Score a trained run; nothing is written.

    Args:
        run: a run directory.
        split: "train", "val" or "test".
        probe: whether linear probes are fitted to the features, as evaluate.py does by default.
        missing: what stands in the place of a missing modality, see docs/evaluation.md.
        missing_rates: fractions of the samples that lose a modality.
        data_root: folder of the data; None: the run's.
        batch_size: samples a pass; None: the run's.
        num_workers: processes that load data; None: the run's.
        device: "cpu", "mps", the number of a GPU or a torch.device; None: the first GPU where there is one.
        allow: import paths, `package.module:Class`, that the run's settings may name.

    Raises:
        UserError: where the run, its data or the device cannot be used.
    """
    directory = RunDirectory(Path(run).expanduser())
    config = saved_config(directory, allow, data_root=data_root, batch_size=batch_size, num_workers=num_workers)
    content, classes = evaluation_of(
        directory,
        config,
        split,
        choose_device(device),
        probe=probe,
        missing=missing,
        rates=missing_rates,
    )
    return Evaluation(content, classes)


def evaluation_of(
    run: RunDirectory,
    config: Config,
    split: Split,
    device: torch.device,
    *,
    probe: bool,
    missing: str,
    rates: Sequence[float],
) -> tuple[dict[str, Any], list[str]]:
    """The content of evaluation_<split>.json, and the names of the classes.

    Raises:
        UserError: where the run or its data cannot be used.
    """
    if missing not in get_args(Missing):
        raise UsageError(f"missing must be {' or '.join(get_args(Missing))}, found {missing!r:.50}")
    if not all(0 <= rate < 1 for rate in rates):
        raise UsageError(f"missing_rates must be fractions from 0 to below 1, found {list(rates)}")
    data = same_data(run, config, split)
    model, epoch = trained_model(run, config, data, device)
    if missing == "mean" and not model.late:
        raise UsageError(
            f"--missing mean replaces features, and the joint head of {config.model.architecture} sees more than "
            "features; leave it out: the architecture has its own stand-in"
        )
    modalities = list(data.modalities)
    splits: dict[Split, MultimodalDataset] = {split: data}
    wanted: dict[Split, bool] = {"train": probe or missing == "mean", "val": probe}
    for other in wanted:
        if wanted[other] and other not in splits:
            splits[other] = same_data(run, config, other)
    passes = {name: _collected(run, name, model, dataset, config, device) for name, dataset in splits.items()}
    scored = passes[split]
    heads = {
        name: head_metrics(logits[having := scored.having([name])], scored.label[having], data.classes)
        for name, logits in scored.logits().items()
    }
    by_subset, by_rate = subset_cases(scored.present), rate_cases(scored.present, rates, SEED)
    instead = means(passes["train"]) if missing == "mean" else None
    accuracies = case_accuracies({**by_subset, **by_rate}, model, data, scored, instead, config, device)
    contributions = shapley(modalities, {present: accuracies[present] for present in by_subset})
    absent = [row["class"] for row in heads["joint"]["per_class"] if not row["samples"]]
    present = {name: [100 * float(having.double().mean())] for name, having in scored.present.items()}
    said = notes(split, config.optim.selected_on, run.finished, epoch, absent, probe)
    if other_samples(run, split, data):
        said.append(f"{split} holds other samples than when the run began; make sure that none of them was trained on")
    if note := present_note(present, [split]):
        said.append(note)
    content = {
        "dataset": config.data.dataset,
        "method": config.method.method,
        "seed": config.run.random_seed,
        "split": split,
        "samples": len(scored.label),
        "selected_on": config.optim.selected_on,
        "selected_epoch": epoch,
        "finished": run.finished,
        "missing": missing,
        "notes": said,
        "joint": heads["joint"],
        "unimodal": {name: heads[name] for name in modalities},
        "all_heads": {
            rule: head_metrics(logs, scored.label, data.classes)
            for rule, logs in all_heads(scored.joint, scored.unimodal, scored.present).items()
        },
        "synergy": synergy(scored.joint, scored.unimodal, scored.label, scored.present),
        "probe": probes(passes["train"], passes["val"], scored, partial=True) if probe else None,
        "subsets": [
            {"present": [name for name in modalities if name in present], "accuracy": accuracies[present]}
            for present in by_subset
        ],
        "missing_rates": [
            {"modality": modality, "rate": rate, "accuracy": accuracies[modality, rate]} for modality, rate in by_rate
        ],
        "shapley": {
            "contributions": contributions,
            "sum": sum(contributions.values()),
            "imbalance": imbalance(contributions),
        },
    }
    return content, list(data.classes)


def _collected(
    run: RunDirectory,
    split: Split,
    model: MultimodalModel,
    dataset: MultimodalDataset,
    config: Config,
    device: torch.device,
) -> Collected:
    """See `collect_split`; an error names the run and the split."""
    try:
        return collect_split(model, dataset, config, device)
    except EvaluationError as error:
        raise EvaluationError(f"{run.path}, {split}: {error}") from error


def case_accuracies(
    cases: Mapping[Any, Case],
    model: MultimodalModel,
    data: MultimodalDataset,
    scored: Collected,
    instead: Mapping[str, torch.Tensor] | None,
    config: Config,
    device: torch.device,
) -> dict[Any, float]:
    """Accuracy of the joint head in every case: from the features that were collected, or by passes of the model.

    Args:
        instead: see `accuracies_from_features`.
    """
    amp = autocast_type(config.engine)
    if not model.late:
        with split_batches(data, config, device) as batches:
            return accuracies_by_passes(cases, model, batches, data.modalities, device, amp)
    return accuracies_from_features(
        cases,
        model.fusion,
        scored.features,
        scored.label,
        device,
        batch_size=config.data.batch_size,
        instead=instead,
        amp=amp,
        types=scored.types,
    )


def means(train: Collected) -> dict[str, torch.Tensor]:
    """{modality: mean of its features [D]} over the training samples that have it."""
    return {name: value[train.present[name]].mean(0) for name, value in train.features.items()}


def notes(split: str, selected_on: str, finished: bool, epoch: int, absent: list[str], probed: bool) -> list[str]:
    """What a reader of the figures must know."""
    said = []
    if selected_on == "test":
        said.append(f"{SELECTED_ON_TEST}, the published protocol: this run's test accuracies flatter the method")
    elif split == selected_on:
        said.append(f"the checkpoint was selected on this split, {split}: the figures flatter the method")
    if split == "train":
        said.append("the model was trained on this split" + (", and so were the probes" if probed else ""))
    if split == "val" and probed:
        said.append("the probes' C was chosen on this split")
    if not finished:
        said.append(f"the run is not finished; its best epoch so far, {epoch}, was scored")
    if absent:
        shown = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        said.append(
            f"{split} has no samples of {counted(len(absent), 'class')}, left out of means over classes: {shown}"
        )
    return said
