"""Datasets of clips: each clip has a file or a folder per modality, and a reader reads it.

Everything is checked once per dataset (see `ClipDataset.check`).
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpareto.data_folders import DESCRIPTION
from mmpareto.datasets.base import DatasetError, MultimodalDataset, Sample, Split
from mmpareto.datasets.crops import Crop, black
from mmpareto.datasets.items import Item, Items
from mmpareto.datasets.prepared import read_description
from mmpareto.datasets.readers import FramesReader, ImageReader, Reader
from mmpareto.inputs import VARIABLE
from mmpareto.json_files import read_object
from mmpareto.special_files import hint
from mmpareto.writing import write_text

_STAMP = ".checked.json"
_NAMED = 50  # clips with problems that a message names; the first three with what is wrong


class ClipDataset(MultimodalDataset):
    """Clips of one split, read by a reader for each modality.

    items    of the split.
    readers  {modality: its reader}.
    """

    def __init__(
        self,
        name: str,
        split: Split,
        items: Items | Sequence[Item],
        readers: Mapping[str, Reader],
        classes: Sequence[str],
        seed: int,
    ) -> None:
        super().__init__(seed)
        if not items:
            raise DatasetError(f"{name}: the split {split} has no clips")
        self.name = name
        self.split = split
        self.items = items if isinstance(items, Items) else Items.of(items)
        self.readers = dict(readers)
        self.modalities = {modality: reader.modality for modality, reader in readers.items()}
        self.classes = list(classes)
        index = {label: number for number, label in enumerate(classes)}
        self.labels = np.array([index[label] for label in self.items.labels], dtype=np.int64)
        self.absent = {name: rows for name in readers if (rows := self.items.absent(name)).any()}
        self._stand_ins: dict[str, Tensor] = {}
        self._on_device = False

    def augment_on_device(self) -> None:
        """See MultimodalDataset."""
        if not any(isinstance(reader, ImageReader) for reader in self.readers.values()):
            super().augment_on_device()
        self._on_device = True

    def _stand_in(self, name: str) -> Tensor:
        """What is stacked into a batch for a clip that lacks a modality: zeros of the type of the others."""
        if name not in self._stand_ins:
            sources = self.items.sources(name)
            modality = self.modalities[name]
            if sources:
                value = torch.zeros_like(self.readers[name].read(sources[0], None))
            else:
                tokens = modality.kind == "tokens"
                value = torch.zeros(modality.shape[:1] if tokens else modality.shape).to(
                    torch.int64 if tokens else torch.float32
                )
            self._stand_ins[name] = value[:1] if modality.kind in VARIABLE else value
        return self._stand_ins[name]

    @functools.cached_property
    def lengths(self) -> np.ndarray | None:  # type: ignore[override]
        """int64 [N]: the sum of the lengths of a training clip's modalities; None where no length varies."""
        total = None
        if self.split != "train":
            return None
        for name, reader in self.readers.items():
            length = getattr(reader, "length", None)
            if length is None:
                continue
            with ThreadPoolExecutor(4) as pool:
                lengths = np.array(list(pool.map(length, self.items.sources(name))), dtype=np.int64)
            total = np.zeros(len(self), np.int64) if total is None else total
            total[~self.items.absent(name)] += lengths
        return total

    def sample_ids(self) -> list[str]:
        """The clips' ids, in their order."""
        return self.items.ids

    def saved_readers(self) -> dict[str, dict[str, Any]]:
        """See MultimodalDataset; of a prepared dataset with what `stored_form` says."""
        root = self.items.root
        prepared = root != Path() and (root / DESCRIPTION).exists()
        parameters = read_description(root, self.name)["parameters"] if prepared else None
        return {
            modality: reader.saved() | ({} if parameters is None else self.stored_form(modality, parameters))
            for modality, reader in self.readers.items()
        }

    def stored_form(self, modality: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """How `prepare.py` stored a modality's raw files, for a reader of such files, see `reading.reader_from`.

        Args:
            parameters: of the preparation. Frames are those of videos, unless a dataset says otherwise.
        """
        is_of_videos = isinstance(self.readers[modality], FramesReader)
        return {key: parameters.get(key) for key in ("fps", "frame_size")} if is_of_videos else {}

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        generator = self.generator(index) if self.split == "train" and self.augmenting else None
        inputs = {}
        for modality in self.readers:
            try:
                inputs[modality] = self._read(modality, item.paths.get(modality), generator)
            except DatasetError as error:
                raise DatasetError(f"{self.name}: clip {item.id}, {modality}: {error}") from None
        return {"inputs": inputs, "label": int(self.labels[index]), "id": item.id}

    def _read(self, modality: str, path: Any, generator: torch.Generator | None) -> Tensor | list[Crop]:
        """A clip's input of a modality; a stand-in where it has no `path`."""
        reader = self.readers[modality]
        if self._on_device and generator is not None and isinstance(reader, ImageReader):
            return black(reader.modality.shape) if path is None else reader.crops(path, generator)
        return self._stand_in(modality) if path is None else reader.read(path, generator)

    def check(self, root: Path) -> None:
        """Check every clip's files once; a stamp in `root` remembers it (no stamp where the folder is read-only).

        Raises DatasetError that names the clips that fail.
        """
        stamp = root / _STAMP
        shapes = [(m, value.kind, value.shape, value.mean) for m, value in self.modalities.items()]
        digest = hashlib.sha256(repr((shapes, self.items.digest)).encode()).hexdigest()
        key = f"{self.split} {shapes}"
        checked: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            checked = read_object(stamp)
        if checked.get(key) == digest:
            return
        with ThreadPoolExecutor(4) as pool:
            problems = list(filter(None, pool.map(self._problem, self.items)))
        if problems:
            lines = [text for _, text in problems[:3]]
            if len(problems) > 3:
                others = [identifier for identifier, _ in problems[3:_NAMED]]
                lines.append(f"and {len(problems) - 3} more: {', '.join(others + ['...'] * (len(problems) > _NAMED))}")
            raise DatasetError("\n".join([*lines, "repair these files, or take their clips out of the list"]))
        with contextlib.suppress(OSError):
            write_text(stamp, json.dumps(checked | {key: digest}))

    def _problem(self, item: Item) -> tuple[str, str] | None:
        """(id, message) of a clip of which a file cannot be read."""
        for modality, path in item.paths.items():
            try:
                self.readers[modality].check(path)
            except DatasetError as error:
                lost = isinstance(path, Path) and not path.exists()
                text = f"{self.name}: clip {item.id}, {modality}: {error}{hint(path) if lost else ''}"
                return item.id, text
        return None
