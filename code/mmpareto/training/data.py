"""Loaders: batches of a dataset, in an order that the seed and the epoch fix."""

from __future__ import annotations

import os
from typing import cast

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler

from mmpareto.datasets import Batch, MultimodalDataset, Sample, collate


class Loader:
    """Batches of one split, epoch by epoch.

    dataset     the split.
    batch_size  samples a batch; the last one of an epoch may be smaller.
    shuffle     a new order every epoch, drawn from the seed and the epoch alone: a resumed run sees the same one.
    seed        of the order.
    workers     processes that load; None: 0 for a dataset that cuts whole batches out of memory, else the cores minus
                one, at most 8. They stay alive between epochs.
    pin         page-locked memory, from which batches move to a GPU without waiting.
    """

    def __init__(
        self, dataset: MultimodalDataset, batch_size: int, *, shuffle: bool, seed: int, workers: int | None, pin: bool
    ) -> None:
        if workers is None:
            in_memory = hasattr(dataset, "__getitems__")
            workers = 0 if in_memory else max(1, min(8, (os.cpu_count() or 2) - 1))
        self.dataset = dataset
        self.workers = workers
        self.sampler: DistributedSampler[Sample] = DistributedSampler(
            dataset, num_replicas=1, rank=0, shuffle=shuffle, seed=seed
        )
        self.batches: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]  # samples in, batches out
            batch_sampler=BatchSampler(cast(Sampler[int], self.sampler), batch_size, drop_last=False),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> DataLoader[Batch]:
        """The batches of an epoch (0, 1, ...)."""
        self.sampler.set_epoch(epoch)
        self.dataset.set_epoch(epoch)
        return self.batches
