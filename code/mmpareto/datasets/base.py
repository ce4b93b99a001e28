"""The contract of datasets: modalities, classes, and samples as {"inputs", "label", "id"}.

Shapes: B batch, F frames of a clip, L audio frames, M mel bins, H x W pixels.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mmpareto import registries
from mmpareto.datasets.crops import Crop, Crops, joined, resized
from mmpareto.errors import DatasetError
from mmpareto.inputs import KINDS, VARIABLE, Input, Kind, Padded, map_tensors
from mmpareto.registry import Registry
from mmpareto.selection import SPLITS, Split


class UnusableError(DatasetError):
    """A clip's media cannot be used. `reason`: a few words that clips are counted by; `detail`: names the file."""

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, str(detail)


@functools.lru_cache(maxsize=64)  # once, not for each of three splits
def say(text: str) -> None:
    """Print a line to standard error: once, and from the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


class Sample(TypedDict):
    """One sample: an input per modality (shape as its `Modality` says), the class index and the clip's identifier.

    A `Crop` per image where images are augmented on the device.
    """

    inputs: Mapping[str, Tensor | list[Crop]]
    label: int
    id: str


class Batch(TypedDict):
    """B samples.

    Attributes:
        inputs: {modality: [B, ...]}, `Padded` where lengths vary, `Crops` where images are augmented on the device.
        label: int64 [B].
        id: B strings.
        present: {modality: bool [B]}, where some samples of the dataset lack a modality.
    """

    inputs: Mapping[str, Input | Crops]
    label: Tensor
    id: list[str]
    present: NotRequired[dict[str, Tensor]]


@dataclass(frozen=True)
class Modality:
    """The form of one modality's input.

    Attributes:
        kind: "image" [channels, H, W], "frames" [F, channels, H, W], "spectrogram" [1, L, M], "vector" [features]; of
            varying length "waveform" [L], "sequence" [L, D] and "tokens" int64 [L].
        shape: of one sample, without the batch dimension; where lengths vary L is the greatest, and that of tokens is
            (L, size of the vocabulary).
        mean, std: per channel, in units of the input after scaling to 0 .. 1 where it is stored as uint8. They are
            applied on the device (see `to_device`), so that workers and the bus carry bytes. None: not applied.
        tokenizer: of text, the JSON text of the `tokenizers` library.
    """

    kind: Kind
    shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tokenizer: str | None = None


def modality_from(saved: Mapping[str, Any]) -> Modality:
    """The modality that `dataclasses.asdict` and JSON saved.

    Raises:
        KeyError: TypeError or ValueError where `saved` is something else.
    """
    kind, shape, statistics = saved["kind"], saved["shape"], (saved["mean"], saved["std"])
    if kind not in KINDS or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{kind} {shape}")
    mean, std = (None if values is None else tuple(map(float, values)) for values in statistics)
    tokenizer = saved.get("tokenizer")
    if not isinstance(tokenizer, str | None):
        raise TypeError("tokenizer must be text")
    return Modality(kind, tuple(shape), mean, std, tokenizer)


class MultimodalDataset(Dataset[Sample]):
    """Base class of the datasets.

    A subclass sets `name`, `modalities`, `classes` and `labels` and implements `__len__` and `__getitem__`. A small set
    that is held in memory implements `__getitems__` as well, and returns a `Batch` from it: no Python per sample.

    Random augmentation draws from `self.generator(index)` only: its seed is made of the run's seed, the epoch and the
    index, so that a run repeats exactly for any number of worker processes. Where `augmenting` is False, training
    samples are read like those of the other splits.
    """

    # defaults of train.py's flags for this dataset, where they differ from the published CREMA-D run
    recipe: ClassVar[Mapping[str, Any]] = {}
    named_by_folder: ClassVar[bool] = False  # whether the folder, not the name, says what the samples are
    # comes with an installed library, always or with these options: there is no folder to read
    embedded: ClassVar[bool | Mapping[str, Any]] = False
    # files of which the folder holds one, empty: the folder must be there; None: it may be missing, and is downloaded
    must_hold: ClassVar[tuple[str, ...] | None] = None
    # modalities of kind image whose values are computed from pictures: a picture is no input of theirs
    computed: ClassVar[frozenset[str]] = frozenset()

    name: str
    modalities: dict[str, Modality]
    classes: list[str]
    labels: np.ndarray  # int64, one per sample, without reading any media
    augmenting: bool = True  # in training; to be set before a loader starts its workers
    absent: Mapping[str, np.ndarray] = {}  # {modality: bool [N], True where the sample lacks it}; all have the others
    lengths: np.ndarray | None = None  # int64 [N], where lengths vary and are known: batches of similar length are made
    stored: Mapping[str, Tensor] | None = None  # {modality: [N, ...]} where all samples are in memory and never change
    held: Held | None = None  # all samples on a device, where loaders cut batches out; see `Held`

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        # in shared memory, so that persistent workers see the epoch that the training process sets
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        raise TypeError(f"{type(self).__name__} does not say how to read a sample")

    def sample_ids(self) -> Sequence[str]:
        """The samples' ids, in their order; none where they are not known without reading any media."""
        return ()

    def sample_files(self) -> Collection[str]:
        """Paths of all files of the samples, each once; none where samples are no files that a list names."""
        return ()

    def saved_readers(self) -> dict[str, dict[str, Any]]:
        """{modality: how its files are read}, in types of JSON, of which `reading.reader_from` makes readers again.

        They are saved with a run, whose model then reads new files. A modality that is left out takes arrays, and an
        image pictures of its size as well.
        """
        return {name: {"reader": "computed"} for name in self.modalities if name in self.computed}

    def set_epoch(self, epoch: int) -> None:
        """Select the augmentation of this epoch (0, 1, ...) in all worker processes."""
        self._epoch.fill_(epoch)

    def augment_on_device(self) -> None:
        """Leave random crops to `to_device` to resize: they are drawn as before, and samples hold a `Crop` per image.

        Raises:
            DatasetError: where it augments no images.
        """
        raise DatasetError(
            f"--augment device resizes random crops of images on the device, and {self.name} has no images that are "
            "augmented; leave the flag out"
        )

    def drop_modalities(self, rates: Mapping[str, float], seed: int, split: Split) -> None:
        """Count modalities of random samples as absent; each sample keeps one modality at least.

        The samples are drawn from the seed and the split alone: they are the same in every epoch and every process.

        Args:
            rates: {modality: fraction of its samples that lose it}.

        Raises:
            DatasetError: for a modality that the dataset does not have.
        """
        unknown = [name for name in rates if name not in self.modalities]
        if unknown:
            raise DatasetError(f"--missing {unknown[0]}: the modalities are {', '.join(self.modalities)}")
        names = list(self.modalities)
        before = np.stack([self.absent.get(name, np.zeros(len(self), bool)) for name in names])
        generator = np.random.default_rng([seed, SPLITS.index(split)])
        absent = draw_absent(before, [rates.get(name, 0.0) for name in names], generator)
        self.absent = {name: row for name, row in zip(names, absent, strict=True) if row.any()}

    def generator(self, index: int) -> torch.Generator:
        """The random numbers of sample `index` in the current epoch."""
        seed = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def draw_absent(before: np.ndarray, rates: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Drop modalities of random samples; each keeps one of those that it has.

    Args:
        before: bool [M, N], True where a sample lacks a modality already.
        rates: fraction of the samples, of each of the M modalities.

    Returns:
        bool [M, N].
    """
    drawn = generator.random(before.shape) < np.array(rates)[:, None]
    order = np.where(before, 2.0, generator.random(before.shape))
    alone = (before | drawn).all(0)
    drawn[order.argmin(0)[alone], np.flatnonzero(alone)] = False
    return before | drawn


DATASETS: Registry[MultimodalDataset] = registries.DATASETS


def collate(samples: Sequence[Sample] | Batch, variable: Collection[str] = ()) -> Batch:
    """Stack samples into a batch; a batch from `__getitems__` passes through.

    Args:
        variable: modalities whose samples differ in length; they become `Padded`.
    """
    if isinstance(samples, dict):
        return samples
    inputs: dict[str, Input | Crops] = {}
    for name, first in samples[0]["inputs"].items():
        values: list[Any] = [sample["inputs"][name] for sample in samples]
        if isinstance(first, list):
            inputs[name] = joined(itertools.chain(*values))
        else:  # PyTorch's own: in a worker process it stacks straight into shared memory
            inputs[name] = pad(alike(values)) if name in variable else default_collate(alike(values))
    return {"inputs": inputs, "label": default_collate([s["label"] for s in samples]), "id": [s["id"] for s in samples]}


def alike(values: list[Tensor]) -> list[Tensor]:
    """Samples of one modality in one type: int64 of integers (token ids), else floating point, with bytes in 0 .. 1."""
    if len({value.dtype for value in values}) == 1:
        return values
    if not any(value.is_floating_point() for value in values):
        return [value.to(torch.int64) for value in values]
    return [value.float() / 255 if value.dtype == torch.uint8 else value.float() for value in values]


def pad(values: Sequence[Tensor]) -> Padded:
    """Samples [l, ...] of different lengths l, padded with zeros to the longest."""
    lengths = torch.tensor([len(value) for value in values])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Padded(torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True), mask)


class Batches(Dataset[Batch]):
    """A dataset that gives whole batches: samples collated, with the modalities that each has.

    Args:
        dataset: whose samples they are.
    """

    def __init__(self, dataset: MultimodalDataset) -> None:
        self.dataset = dataset
        self._variable = [name for name, modality in dataset.modalities.items() if modality.kind in VARIABLE]
        self._present = presence(dataset) if dataset.absent else {}

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these samples."""
        get = getattr(self.dataset, "__getitems__", None)
        batch = collate([self.dataset[index] for index in indices] if get is None else get(indices), self._variable)
        if self._present:
            batch["present"] = {name: mask[indices] for name, mask in self._present.items()}
        return batch


class Held:
    """All samples of a split on a device: a batch is cut out there by index, without Python for each sample.

    Args:
        dataset: a split with `stored` inputs.
        device: that keeps them.
    """

    def __init__(self, dataset: MultimodalDataset, device: torch.device) -> None:
        assert dataset.stored is not None
        self.device, self.ids = device, dataset.sample_ids
        self._all: dict[str, Any] = {"inputs": dict(dataset.stored), "label": torch.from_numpy(dataset.labels)}
        if dataset.absent:
            self._all["present"] = presence(dataset)
        self._all = map_tensors(lambda tensor: tensor.to(device), self._all)

    def batch(self, index: Tensor) -> Batch:
        """The samples of an index, int64 [B] on the device; without their ids."""
        return cast(Batch, map_tensors(lambda tensor: tensor.index_select(0, index), self._all))


class Rows(NamedTuple):
    """A batch of a split that is held on a device, not cut out yet.

    Attributes:
        held: the split.
        indices: int64 [B], on the device.
    """

    held: Held
    indices: Tensor

    def ids(self) -> list[str]:
        """The samples' ids. Waits for the device."""
        names = self.held.ids()
        return [names[index] for index in self.indices.tolist()]


def presence(dataset: MultimodalDataset) -> dict[str, Tensor]:
    """{modality: bool [N], True where the sample has it}."""
    everywhere = np.zeros(len(dataset), bool)
    return {name: torch.from_numpy(~dataset.absent.get(name, everywhere)) for name in dataset.modalities}


def to_device(
    inputs: Mapping[str, Input | Crops],
    modalities: Mapping[str, Modality],
    device: torch.device | str,
) -> dict[str, Input]:
    """Move a batch's inputs to `device` and bring them into the form that the model takes.

    Crops are resized and flipped. uint8 is scaled to 0 .. 1; then each channel's mean is subtracted and the result
    divided by its std. Tokens stay integers; padding stays zero.

    Returns {modality: float32 [B, ...], or Padded}.

    Args:
        inputs: {modality: [B, ...]}, uint8 or floating point, or Padded or Crops; pinned memory moves without waiting.
    """
    moved: dict[str, Input] = {}
    for name, stored in uncropped(inputs, modalities, device).items():
        modality = modalities[name]
        if isinstance(stored, Tensor):
            moved[name] = _brought(stored, modality, device)
            continue
        mask = stored.mask.to(device, non_blocking=True)
        if modality.kind == "tokens":
            moved[name] = Padded(stored.values.to(device, torch.int64, non_blocking=True), mask)
            continue
        values = _brought(stored.values, modality, device)
        if modality.mean is not None or modality.std is not None:
            values.mul_(mask.view(*mask.shape, *[1] * (values.dim() - 2)))
        moved[name] = Padded(values, mask)
    return moved


def uncropped(
    inputs: Mapping[str, Input | Crops], modalities: Mapping[str, Modality], device: torch.device | str
) -> dict[str, Input]:
    """Inputs as they are, with crops resized and flipped on the device: uint8 [B, ...]."""
    return {
        name: resized(stored, modalities[name].shape[-1], torch.device(device)).view(-1, *modalities[name].shape)
        if isinstance(stored, Crops)
        else stored
        for name, stored in inputs.items()
    }


class DeviceBatch(NamedTuple):
    """A batch where the model is, in the form that it takes.

    Attributes:
        inputs: {modality: [B, ...], or Padded}.
        label: int64 [B].
        present: {modality: bool [B]}; None: all samples have all modalities.
    """

    inputs: dict[str, Input]
    label: Tensor
    present: dict[str, Tensor] | None = None


def batch_to_device(batch: Batch | Rows, modalities: Mapping[str, Modality], device: torch.device | str) -> DeviceBatch:
    """Move a batch to `device`, or cut it out there; see `to_device`."""
    if isinstance(batch, Rows):
        batch = batch.held.batch(batch.indices)
    present = batch.get("present")
    if present is not None:
        present = {name: mask.to(device, non_blocking=True) for name, mask in present.items()}
    inputs = to_device(batch["inputs"], modalities, device)
    return DeviceBatch(inputs, batch["label"].to(device, non_blocking=True), present)


def _brought(stored: Tensor, modality: Modality, device: torch.device | str) -> Tensor:
    value = stored.to(device, non_blocking=True)
    scale = 255.0 if value.dtype == torch.uint8 else 1.0
    plain = modality.mean is None and modality.std is None
    if value.dtype != torch.float32:
        value = value.float()
    elif not plain:
        value = value.clone()  # never the caller's tensor
    # in place: on a CPU a new tensor of this size costs more than the arithmetic
    if not plain:
        mean, std = statistics(modality, scale, value.device)
        value.sub_(mean).div_(std)
    elif scale != 1.0:
        value.div_(scale)
    return value


_cache: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}


def statistics(modality: Modality, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std times `scale`, broadcastable to [B, *shape]; kept on the device, where an upload would wait."""
    key = (modality.mean, modality.std, modality.kind, len(modality.shape), scale, device)
    if key not in _cache:
        channel = 1 if modality.kind in ("frames", "sequence") else 0
        shape = [1] * len(modality.shape)
        shape[channel] = -1
        mean = torch.tensor(modality.mean or (0.0,), dtype=torch.float64).mul(scale).view(shape)
        std = torch.tensor(modality.std or (1.0,), dtype=torch.float64).mul(scale).view(shape)
        _cache[key] = (mean.to(device, torch.float32), std.to(device, torch.float32))
    return _cache[key]
