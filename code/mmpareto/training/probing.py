"""Passes of a trained model over a split; --probe: linear probes beside those of encoders that were trained alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmpareto import runs
from mmpareto.config import Config
from mmpareto.datasets import SPLITS, Batch, MultimodalDataset
from mmpareto.errors import UsageError
from mmpareto.evaluation import EvaluationError
from mmpareto.evaluation.collected import Collected, collect
from mmpareto.evaluation.probe import probes
from mmpareto.models import MultimodalModel
from mmpareto.registries import ALONE
from mmpareto.runs import RunDirectory
from mmpareto.training.checkpoints import load_checkpoint
from mmpareto.training.setup import make_loader
from mmpareto.training.switches import autocast_type


def alone_run(config: Config, encoders: dict[str, str]) -> RunDirectory | None:
    """The finished run of `unimodal` to compare with: that of --probe_alone, or the one of this seed beside the run.

    Raises:
        UsageError: where --probe_alone names no finished run of `unimodal` on the same data with the same encoders.
    """
    chosen = config.run.probe_alone
    path = Path(config.run.ckpt_path)
    run = RunDirectory(Path(chosen) if chosen else path.parent.parent / ALONE / path.name)
    if run.finished:
        saved, ours = run.read_config(), config.flat()
        same = all(saved.get(key) == ours[key] for key in ("dataset", "dataset_options", "missing"))
        same &= (saved.get("augment") == "none") == (ours["augment"] == "none")
        same &= saved.get("method") == ALONE and run.read_json(runs.RESOLVED).get("encoders") == encoders
        if same and (chosen or saved.get("random_seed") == config.run.random_seed):
            return run
    if chosen:
        raise UsageError(
            f"--probe_alone {chosen}: expected a finished run of --method {ALONE} with the dataset, its options and "
            "the encoders of this run"
        )
    return None


def probe_run(
    model: MultimodalModel,
    data: dict[str, MultimodalDataset],
    config: Config,
    encoders: dict[str, str],
    device: torch.device,
) -> dict[str, Any]:
    """Probe the encoders of the selected checkpoint on the test split, fitted on train, selected on validation.

    Returns:
        See `probes`, and "alone": None, or {"run": path, "unimodal": {modality: see `linear_probe`}} of encoders that
        were trained alone.

    Raises:
        EvaluationError: where features are not finite, or the training split holds a single class.
    """
    result = probes(*(collect_split(model, data[split], config, device) for split in SPLITS))
    run = alone_run(config, encoders) if model.late else None
    result["alone"] = None
    saved = None if run is None else run.read_results().get("probe")  # where it was made with --probe, too
    if run is not None and saved is not None:
        result["alone"] = {"run": str(run.path), "unimodal": saved["unimodal"]}
    elif run is not None:
        other = copy.deepcopy(model)
        weights = load_checkpoint(run / runs.BEST, device, ("model",))["model"]
        try:
            other.encoders.load_state_dict(
                {name.removeprefix("encoders."): w for name, w in weights.items() if name.startswith("encoders.")}
            )
        except RuntimeError as error:
            raise EvaluationError(f"the encoders of {run.path} do not fit this model: {error}") from error
        passes = (collect_split(other, data[split], config, device) for split in SPLITS)
        result["alone"] = {"run": str(run.path), "unimodal": probes(*passes)["unimodal"]}
    return result


@contextmanager
def split_batches(dataset: MultimodalDataset, config: Config, device: torch.device) -> Iterator[Iterator[Batch]]:
    """The batches of a split: not augmented, in its order, loaded by this process alone."""
    dataset.augmenting = False
    loader = make_loader(dataset, config.data, config.run.random_seed, device)
    try:
        yield loader.epoch(0)
    finally:
        loader.close()


def collect_split(
    model: MultimodalModel, dataset: MultimodalDataset, config: Config, device: torch.device
) -> Collected:
    """Features and logits of a split; see `collect`."""
    with split_batches(dataset, config, device) as batches:
        return collect(model, batches, dataset.modalities, device, autocast_type(config.engine))
