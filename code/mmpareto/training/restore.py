"""A run, from its directory: its settings, data, model and selected weights; whether other settings may continue it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmpareto import runs
from mmpareto.arguments import saved_encoders
from mmpareto.config import Config, OptimConfig, differing
from mmpareto.datasets import DATASETS, Modality, MultimodalDataset, Split, modality_from
from mmpareto.datasets.readers import Reader
from mmpareto.datasets.reading import reader_from
from mmpareto.errors import UsageError
from mmpareto.methods import Method
from mmpareto.models import MultimodalModel
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.checkpoints import has_best, load_checkpoint
from mmpareto.training.processes import Processes
from mmpareto.training.setup import build_split, make_model, samples

_CHECKPOINTS = (runs.LAST, runs.PREVIOUS, runs.BEST)


def resolved(
    data: Mapping[str, MultimodalDataset],
    model: MultimodalModel,
    encoders: Mapping[str, str],
    rates: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of resolved.json: what the data decided. A changed training file changes no score of this run.

    Args:
        data: {split: its samples}.
        encoders: {modality: name of its encoder}.
        rates: see `saved_rates`; of a run that goes on, whose sounds may not have been looked at again.
    """
    dataset = data["train"]
    readers = dataset.saved_readers()
    for name in rates.keys() & readers.keys():
        readers[name].setdefault("rates", rates[name])
    configurations = {name: getattr(encoder, "configuration", None) for name, encoder in model.innermost().items()}
    return {
        "encoders": encoders,
        "configurations": {name: value for name, value in configurations.items() if value is not None},
        "classes": dataset.classes,
        "modalities": {name: asdict(modality) for name, modality in dataset.modalities.items()},
        "readers": readers,
        "samples": samples(data),
    }


def other_samples(run: RunDirectory, split: str, dataset: MultimodalDataset) -> str:
    """What differs between the samples of a split that the run began with and those of a dataset; "" where nothing.

    Earlier versions did not write what their samples are, or no ids: what is not known does not differ.
    """
    before = run.read_json(runs.RESOLVED).get("samples")
    saved = before.get(split) if isinstance(before, dict) else None
    now = samples({split: dataset})[split]
    if isinstance(saved, dict):
        now = {key: value for key, value in now.items() if key in saved}
    return "" if saved in (None, now) else f"{saved}, now {now}"


def refuse_other_samples(run: RunDirectory, data: Mapping[str, MultimodalDataset]) -> None:
    """Refuse to train on with other samples than those that the run began with; those of test may change.

    Raises:
        UsageError: with the split, and what was found.
    """
    for split in ("train", "val"):
        if difference := other_samples(run, split, data[split]):
            raise UsageError(
                f"{run.path} began with other samples of {split} ({difference}); give the folder of its own data with "
                "--data_root, or begin another run with --ckpt_path"
            )


def same_data(run: RunDirectory, config: Config, split: Split) -> MultimodalDataset:
    """A split of the run's dataset.

    Raises:
        DatasetError: where it cannot be read.
        UsageError: where its modalities or classes are not those that the run was trained on.
    """
    dataset = build_split(config.data, config.run.random_seed, split, saved_modalities(run), download=False)
    check_same_data(run, config, dataset)
    return dataset


def saved_modalities(run: RunDirectory) -> dict[str, Modality]:
    """What the run resolved its modalities to when it began.

    Raises:
        RunError: where the run holds something else.
    """
    try:
        return {name: modality_from(value) for name, value in run.read_json(runs.RESOLVED)["modalities"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run / runs.RESOLVED} holds modalities that train.py does not write ({type(error).__name__}: {error}); "
            "train the run again"
        ) from error


def saved_configurations(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """{modality: configuration of its encoder}, with which it is built without the files that it came from.

    Raises:
        RunError: where the run holds something else.
    """
    content = run.read_json(runs.RESOLVED).get("configurations", {})
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise RunError(f"{run / runs.RESOLVED} holds configurations that train.py does not write; train the run again")
    return content


def without_samples(run: RunDirectory) -> MultimodalDataset:
    """A dataset of the run's modalities and classes without samples, from the run directory alone.

    Raises:
        RunError: where the run does not say them.
    """
    dataset = MultimodalDataset()
    dataset.modalities = saved_modalities(run)
    classes = run.read_json(runs.RESOLVED).get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise RunError(f"{run / runs.RESOLVED} holds classes {classes!r:.100}, which train.py does not write")
    dataset.classes = classes
    return dataset


def saved_readers(run: RunDirectory) -> dict[str, Reader]:
    """How files of each modality are read for the run's model.

    Raises:
        RunError: where the run does not say it.
    """
    saved, dataset = run.read_json(runs.RESOLVED).get("readers", {}), str(run.read_config().get("dataset"))
    computed = getattr(DATASETS[dataset].source, "computed", ()) if dataset in DATASETS else ()
    try:
        saved = {name: {"reader": "computed"} for name in computed} | saved  # earlier versions did not write these
        return {name: reader_from(saved.get(name), modality) for name, modality in saved_modalities(run).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run / runs.RESOLVED} holds readers that train.py does not write ({error!r:.100}); train the run again"
        ) from error


def saved_rates(run: RunDirectory) -> dict[str, Any]:
    """{modality: sample rates of its training sounds}, where the run says them."""
    saved = run.read_json(runs.RESOLVED).get("readers")
    readers = saved.items() if isinstance(saved, dict) else ()
    return {name: reader["rates"] for name, reader in readers if isinstance(reader, dict) and "rates" in reader}


def restarted(config: Config, processes: Processes) -> bool:
    """Whether torchrun has started the job again that opened the run directory: it repeats the command line."""
    if not processes.restarts:
        return False
    file = Path(config.run.ckpt_path) / runs.JOB
    return processes.on_main(lambda: file.is_file() and file.read_text(errors="replace") == processes.job)


def continued_modalities(config: Config, again: bool) -> dict[str, Modality] | None:
    """The modalities of the run that these settings continue or score again; None where a run begins.

    None also where the settings are of other data: the run directory refuses them later, by name.

    Args:
        again: see `restarted`.
    """
    run = RunDirectory(Path(config.run.ckpt_path))
    resume = config.run.resume
    continues = resume is not None or again or not config.run.train
    needed = _CHECKPOINTS[:2] if resume == "auto" or again else _CHECKPOINTS
    if not continues or not (run / runs.CONFIG).exists() or not any((run / n).exists() for n in needed):
        return None
    if {"dataset", "dataset_options", "data_root"} & set(differing(run.read_config(), config.flat())):
        return None
    return saved_modalities(run)


def open_run(config: Config, method: Method, again: bool, job: str | None) -> tuple[RunDirectory, str | None, bool]:
    """The run directory, the checkpoint in it to continue from (None: the run begins), and whether it is finished.

    Args:
        again: see `restarted`.
        job: of torchrun; None without it.

    Raises:
        RunError: where the directory cannot be used, or holds a run with other settings.
    """
    resume, overwrite = config.run.resume, config.run.overwrite
    if resume == "auto" or again:
        checkpoints = (name for name in _CHECKPOINTS[:2] if (Path(config.run.ckpt_path) / name).exists())
        resume, overwrite = next(checkpoints, None), overwrite and not again
    directory = runs.open_for(config.run.ckpt_path, resume is not None, overwrite)
    finished = False
    try:
        if resume is not None:
            refuse_other_settings(directory, config, method)
            finished = directory.finished and _ended(directory.read_results(), config.optim) and has_best(directory)
        if job is not None:
            directory.write_text(runs.JOB, job)
    except BaseException:
        directory.unlock()
        raise
    return directory, resume, finished


def _ended(results: Mapping[str, Any], optim: OptimConfig) -> bool:
    """Whether a run with these results has nothing left to train: all epochs, or those before it stops early."""
    trained = results.get("epochs_trained", results["epochs"])
    since = trained - results.get("selected_epoch", trained)
    early = optim.early_stopping is not None and since >= optim.early_stopping
    return results["epochs"] >= optim.epochs and (trained >= optim.epochs or early)


def refuse_other_settings(directory: RunDirectory, config: Config, method: Method) -> None:
    """Refuse a run directory whose run was made with other settings than these.

    Raises:
        RunError: with the settings that differ.
    """
    fixed = {"epochs"} if config.optim.lr_schedule == "cosine" or method.planned else set()
    may_change = {"early_stopping", "epochs"} - fixed
    changes = differing(directory.read_config(), config.flat())
    other = [f"--{key} {saved} (now {wanted})" for key, (saved, wanted) in changes.items() if key not in may_change]
    if other:
        raise RunError(
            f"{directory.path} was made with other settings: {', '.join(other)}; repeat its own, or use --overwrite"
        )


def check_same_data(run: RunDirectory, config: Config, dataset: MultimodalDataset) -> None:
    """Refuse a dataset whose modalities or classes are not those that the run was trained on.

    Raises:
        UsageError: with both.
    """
    source = f"the {config.data.dataset} in {config.data.data_root}"
    for what, trained, present in (
        ("modalities", list(saved_encoders(run)), list(dataset.modalities)),
        ("classes", run.read_json(runs.RESOLVED).get("classes"), list(dataset.classes)),
    ):
        if trained != present:
            raise UsageError(
                f"{run.path} was trained on the {what} {_short(trained)}; {source} has {_short(present)}; give the "
                "folder of its own data with --data_root"
            )


def trained_model(
    run: RunDirectory, config: Config, dataset: MultimodalDataset, device: torch.device
) -> tuple[MultimodalModel, int]:
    """The run's model with the weights of the selected epoch, and that epoch.

    Raises:
        RunError: where best.pt is missing, damaged, or of another model.
        ModelError: where the encoders of the run cannot take the dataset's inputs.
    """
    if not (run / runs.BEST).exists():
        raise RunError(f"{run.path} has no {runs.BEST}: no epoch is finished yet; continue with train.py --resume")
    saved = load_checkpoint(run / runs.BEST, device, ("model", "epoch"))
    model, _ = make_model(config, dataset, device, restored=saved_configurations(run))
    try:
        model.load_state_dict(saved["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = str(error).splitlines()[-1].strip()[:200]
        raise RunError(
            f"{run / runs.BEST} does not fit the model for the {config.data.dataset} in {config.data.data_root}: "
            f"{detail}"
        ) from error
    return model, saved["epoch"]


def _short(names: Any) -> str:
    if not isinstance(names, list):
        return f"{names!r:.100}"
    return ", ".join(map(str, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
