"""A trained run used on new samples; the run directory alone is read, not the data that it was trained on.

model = load("runs/cremad/mmpareto/seed0")
model.predict(audio="a.wav", visual="frames/").label
model.predict([{"audio": "a.wav", "visual": "frames/a"}, {"audio": "b.wav"}])     # the second lacks a modality
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from mmpareto.arguments import saved_config
from mmpareto.config import Config
from mmpareto.datasets import Batch, DatasetError, Modality, collate
from mmpareto.datasets.base import say
from mmpareto.datasets.lists import check_ids, check_inside, read_table
from mmpareto.datasets.manifest_file import GROUP
from mmpareto.datasets.readers import Reader
from mmpareto.datasets.reading import Text, absent_input, is_file_of, read_input
from mmpareto.evaluation.collected import collect
from mmpareto.inputs import VARIABLE
from mmpareto.models import MultimodalModel
from mmpareto.runs import RunDirectory
from mmpareto.training.restore import saved_readers, trained_model, without_samples
from mmpareto.training.setup import choose_device
from mmpareto.training.switches import autocast_type

if TYPE_CHECKING:
    import pandas as pd

_READING = 4  # threads
_NAMED = 50  # inputs that cannot be read


@dataclass(frozen=True)
class Prediction:
    """What the heads say of one sample.

    Attributes:
        id: of the sample.
        classes: C names.
        logits: {"joint" or a modality: float32 [C]}; modalities that the sample lacks are left out.
    """

    id: str
    classes: list[str]
    logits: dict[str, Tensor]

    @property
    def label(self) -> str:
        """The class with the greatest probability of the joint head."""
        return self.classes[int(self.logits["joint"].argmax())]

    @property
    def probability(self) -> float:
        """Of that class, by the joint head."""
        return self.probabilities["joint"][self.label]

    @property
    def probabilities(self) -> dict[str, dict[str, float]]:
        """{"joint" or a modality: {class: probability}}."""
        return {
            head: dict(zip(self.classes, values.double().softmax(0).tolist(), strict=True))
            for head, values in self.logits.items()
        }

    @property
    def table(self) -> pd.DataFrame:
        """Probabilities: a row per class, a column per head."""
        import pandas as pd  # takes a second to load

        return pd.DataFrame(self.probabilities).reindex(self.classes).rename_axis("class")


class Predictor:
    """The classifier of a trained run; made by `load`.

    Attributes:
        modalities: {name: kind and shape of its inputs}.
        classes: C names.
        model: with the weights of the selected epoch, in evaluation mode.
        epoch: the selected one.
    """

    def __init__(
        self, config: Config, readers: Mapping[str, Reader], modalities: Mapping[str, Modality], classes: list[str],
        model: MultimodalModel, epoch: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.config, self.modalities, self.classes = config, dict(modalities), classes
        self.model, self.epoch, self.device = model.eval(), epoch, device
        self._readers = dict(readers)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name} {value.kind} {list(value.shape)}" for name, value in self.modalities.items())
        return f"Predictor of {self.config.run.ckpt_path}, epoch {self.epoch}: {inputs}; {len(self.classes)} classes"

    @overload
    def predict(self, samples: None = None, /, **inputs: Any) -> Prediction: ...

    @overload
    def predict(self, samples: Sequence[Mapping[str, Any]], /) -> list[Prediction]: ...

    def predict(
        self, samples: Sequence[Mapping[str, Any]] | None = None, /, **inputs: Any
    ) -> Prediction | list[Prediction]:
        """Classify one sample, or a list of samples.

        Args:
            samples: {modality: input} of each sample.
            inputs: those of a single sample. An input is the path of a file or folder, an array or a tensor, or the
                text itself; a modality that is left out, or None, is missing.

        Raises:
            DatasetError: for a modality that the run does not know, a sample without any, and unusable inputs.
            EvaluationError: where the model gives values that are not finite.
        """
        if samples is None:
            return self.predict([inputs])[0]
        alone = isinstance(samples, str | Path | Mapping)
        listed = [] if alone else list(samples)
        if inputs or alone or not all(isinstance(sample, Mapping) for sample in listed):
            raise TypeError(
                "give a list of samples, [{modality: input}, ...], or the inputs of one sample by name, modality=input"
            )
        return self.predict_named({f"sample {number}": sample for number, sample in enumerate(listed)})

    def predict_named(self, samples: Mapping[str, Mapping[str, Any]]) -> list[Prediction]:
        """Classify samples {id: {modality: input}}; see `predict`."""
        _refuse([problem for identifier, sample in samples.items() for problem in self._problems(identifier, sample)])
        if not samples:
            return []
        with ThreadPoolExecutor(_READING) as pool:
            amp = autocast_type(self.config.engine)
            done = collect(self.model, self._batches(samples, pool), self.modalities, self.device, amp)
        logits, present = done.logits(), done.present | {"joint": torch.ones(len(samples), dtype=torch.bool)}
        return [
            Prediction(name, self.classes, {head: logits[head][row] for head in logits if present[head][row]})
            for row, name in enumerate(samples)
        ]

    def read_manifest(self, path: str | Path) -> dict[str, dict[str, Path | str]]:
        """The samples {id: {modality: path or text}} of a CSV file with the column id and one per modality.

        Paths are relative to the file; an empty cell is a missing modality, and so is a column that is not there, which
        is said on standard error. Other columns are not read.

        Raises:
            DatasetError: for a file of another form, and for paths that lead out of its folder.
        """
        file = Path(path).expanduser()
        table = read_table(file, ("id",))
        check_ids(table["id"].tolist(), file)
        names = [name for name in self.modalities if name in table.columns]
        if not names:
            raise DatasetError(
                f"{file}: expected a column for one or more of the modalities {', '.join(self.modalities)}, found "
                f"{','.join(table.columns)}"
            )
        others = [name for name in table.columns if name not in (*names, "id", "split", "label", GROUP)]
        for name in self.modalities:
            if name not in names:
                unread = f"; columns that are not read: {', '.join(others)}" if others else ""
                say(f"{file}: there is no column {name}: the modality is missing in all samples{unread}")
        samples: dict[str, dict[str, Path | str]] = {}
        for row in table.to_dict("records"):
            samples[row["id"]] = {}
            for name in names:
                value = row[name]
                if value and is_file_of(value, self._readers[name], file.parent):
                    samples[row["id"]][name] = file.parent / check_inside(
                        value, file.parent, f"{file}: {row['id']}, {name}"
                    )
                elif value:
                    samples[row["id"]][name] = Text(value)
        return samples

    def _problems(self, identifier: str, sample: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with a sample's modalities."""
        known = ", ".join(self.modalities)
        for name in sample:
            if name not in self.modalities:
                yield f"{identifier}: the run has no modality {name!r:.100}; its modalities: {known}"
        if all(value is None for value in sample.values()):
            yield f"{identifier}: has no input; give one or more of {known}"

    def _batches(self, samples: Mapping[str, Mapping[str, Any]], pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Batches of the run's size, as `evaluate.py` makes them.

        After an input that cannot be read there are no more batches: the others are read so that all are named at once.
        """
        problems: list[str] = []
        variable = [name for name, modality in self.modalities.items() if modality.kind in VARIABLE]
        incomplete = any(sample.get(name) is None for sample in samples.values() for name in self.modalities)
        names, size = list(samples), self.config.data.batch_size
        for start in range(0, len(names), size):
            part = names[start : start + size]
            read = list(pool.map(lambda name: self._read(name, samples[name]), part))
            problems += [problem for _, unread in read for problem in unread]
            if problems:
                continue
            batch = collate(
                [{"inputs": inputs, "label": 0, "id": name} for name, (inputs, _) in zip(part, read, strict=True)],
                variable,
            )
            if incomplete:
                batch["present"] = {
                    modality: torch.tensor([samples[name].get(modality) is not None for name in part])
                    for modality in self.modalities
                }
            yield batch
        _refuse(problems)

    def _read(self, identifier: str, sample: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
        """A sample's inputs, and the reasons of those that cannot be read."""
        inputs, problems = {}, []
        for name, modality in self.modalities.items():
            value = sample.get(name)
            try:
                reader = self._readers[name]
                inputs[name] = absent_input(modality) if value is None else read_input(value, reader, modality)
            except DatasetError as error:
                problems.append(f"{identifier}, {name}: {error}")
        return inputs, problems


def _refuse(problems: Sequence[str]) -> None:
    """Raise DatasetError with what is wrong with the inputs, where there is anything."""
    if problems:
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        raise DatasetError("\n".join([*problems[:_NAMED], *more]))


def load(
    run: str | os.PathLike[str],
    *,
    device: str | int | torch.device | None = None,
    batch_size: int | None = None,
    allow: Collection[str] = (),
) -> Predictor:
    """The classifier of a trained run, with the weights of its selected epoch.

    Args:
        run: a run directory of train.py.
        device: "cpu", "mps", the number of a GPU or a torch.device; None: the first GPU where there is one.
        batch_size: samples that go through the model at once; None: the run's.
        allow: import paths, `package.module:Class`, that the run's settings may name; importing them runs their code.

    Raises:
        RunError: where the folder holds no run that can be read.
        UsageError: for a device that is not there.
    """
    directory = RunDirectory(Path(run).expanduser())
    config = saved_config(directory, allow, batch_size=batch_size)
    readers = saved_readers(directory)
    form = without_samples(directory)
    chosen = choose_device(device)
    model, epoch = trained_model(directory, config, form, chosen)
    return Predictor(config, readers, form.modalities, form.classes, model, epoch, chosen)


def prediction_table(
    predictions: Sequence[Prediction], modalities: Iterable[str], classes: Sequence[str]
) -> pd.DataFrame:
    """A row per sample: id, prediction, its probability, and the probability of each class by each head.

    The columns of a head are called `<head>_<class>`, or `<head>:<class>` where two would have one name; they are empty
    where the sample lacks the modality.

    Args:
        predictions: of one model.
        modalities: of the model.
        classes: of the model, C names.
    """
    import pandas as pd  # takes a second to load

    heads = ("joint", *modalities)
    names = [f"{head}_{label}" for head in heads for label in classes]
    if len(set(names)) < len(names):
        names = [f"{head}:{label}" for head in heads for label in classes]
    rows = []
    for prediction in predictions:
        known = prediction.probabilities
        values = [known[head][label] if head in known else None for head in heads for label in classes]
        rows.append([prediction.id, prediction.label, prediction.probability, *values])
    return pd.DataFrame(rows, columns=["id", "prediction", "probability", *names])
