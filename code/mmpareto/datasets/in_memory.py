"""Images that fit into memory: batches are cut out by index, without Python for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmpareto.datasets.base import Batch, Modality, MultimodalDataset, Sample


class InMemoryImages(MultimodalDataset):
    """Images of several modalities held in memory as uint8.

    images  {modality: [N, channels, H, W]}; labels [N]; ids N names.
    """

    def __init__(
        self,
        name: str,
        images: Mapping[str, Tensor],
        modalities: Mapping[str, Modality],
        labels: np.ndarray,
        classes: list[str],
        ids: Sequence[str],
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.name = name
        self.images = dict(images)
        self.modalities = dict(modalities)
        self.labels = labels.astype(np.int64)
        self.classes = classes
        self.ids = np.array(ids)
        self._label = torch.from_numpy(self.labels)

    @property
    def stored(self) -> Mapping[str, Tensor] | None:  # type: ignore[override]
        """The images; None where a subclass reads its samples in another way."""
        cls = type(self)
        plain = cls.__getitem__ is InMemoryImages.__getitem__ and cls.__getitems__ is InMemoryImages.__getitems__
        return self.images if plain else None

    def sample_ids(self) -> list[str]:
        """The samples' ids, in their order."""
        return self.ids.tolist()

    def __getitem__(self, index: int) -> Sample:
        inputs = {name: images[index] for name, images in self.images.items()}
        return {"inputs": inputs, "label": int(self.labels[index]), "id": str(self.ids[index])}

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        return {
            "inputs": {name: images[index] for name, images in self.images.items()},
            "label": self._label[index],
            "id": self.ids[indices].tolist(),
        }
