"""Loaders: batches of a dataset, in an order that the seed and the epoch fix, shared out among the processes."""

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from mmpareto.cores import cores
from mmpareto.datasets import Batch, Batches, DatasetError, Held, MultimodalDataset, Rows
from mmpareto.datasets.workers import clean_context, settle_in, without_script

T = TypeVar("T")


class SharedBatches(Sampler[list[int]]):
    """Indices of this process's share of every batch.

    A batch is `batch_size` samples over all processes, whatever their number: what is learned does not depend on it.

    With `lengths` (int64 [N], of the samples) a shuffled epoch has batches of similar length: WINDOW batches at a time
    are sorted by length, and the order of the batches is drawn again.

    training  every process gets something of every batch, since all must take the step: where there are fewer samples
              than processes, one that counts nothing (see `share`). Otherwise such a process gets nothing.
    """

    WINDOW = 50

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int,
        size: int,
        training: bool,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.lengths = None if lengths is None else torch.from_numpy(lengths)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.chosen = torch.arange(samples)
        self.rank, self.size, self.training = rank, size, training
        self.epoch = self.start = 0

    @property
    def samples(self) -> int:
        """How many there are in an epoch."""
        return len(self.chosen)

    def choose(self, samples: torch.Tensor) -> None:
        """Make these indices of the dataset, int64, all that there are from the next epoch on."""
        self.chosen = samples

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return (share.tolist() for share in self.shares(self.order()))

    def order(self) -> torch.Tensor:
        """The samples of the epoch in their order, int64."""
        order = self.chosen
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = order[torch.randperm(self.samples, generator=generator)]
            if self.lengths is not None:
                order = self._by_length(order, self.lengths[order], generator)
        return order

    def shares(self, order: torch.Tensor) -> Iterator[torch.Tensor]:
        """This process's share of every batch, from the batch `start` on."""
        for whole in order.split(self.batch_size)[self.start :]:
            share = whole[self.rank :: self.size]
            if len(share):
                yield share
            elif self.training:
                yield whole[:1]

    def _by_length(self, order: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """`order` [N] with batches of similar length; only whole batches move, the last one stays what it is."""
        whole = len(order) // self.batch_size * self.batch_size
        pairs = zip(*(part[:whole].split(self.batch_size * self.WINDOW) for part in (order, lengths)), strict=True)
        windows = [part[torch.argsort(length, stable=True)] for part, length in pairs]
        batches = torch.cat([*windows, order[:0]]).view(-1, self.batch_size)
        mixed = batches[torch.randperm(len(batches), generator=generator)]
        return torch.cat((mixed.flatten(), order[whole:]))

    def share(self, batch: int) -> tuple[int, int]:
        """How many samples of batch 0, 1, ... count on this process, and on all of them."""
        whole = min(self.batch_size, self.samples - batch * self.batch_size)
        return len(range(self.rank, whole, self.size)), whole


class Loader:
    """Batches of one split, epoch by epoch.

    dataset     the split.
    batch_size  samples a batch, over all processes; the last one of an epoch may be smaller.
    shuffle     a new order every epoch, drawn from the seed and the epoch alone: a resumed run sees the same one.
    seed        of the order.
    workers     processes that load; None: 0 for a dataset that cuts whole batches out of memory, else this process's
                part of the machine's cores minus one, at most 8. They stay alive between epochs. The dataset must be
                picklable; see `clean_context`.
    pin         page-locked memory, from which batches move to a GPU without waiting.
    rank, size  of this process and number of processes, see SharedBatches.
    training    likewise.
    """

    def __init__(
        self,
        dataset: MultimodalDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        workers: int | None,
        pin: bool,
        rank: int = 0,
        size: int = 1,
        training: bool = True,
    ) -> None:
        if workers is None:
            in_memory = hasattr(dataset, "__getitems__")
            here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this machine, each with its workers
            workers = 0 if in_memory else max(1, min(8, cores() // here - 1))
        self.dataset = dataset
        self.workers = workers = 0 if dataset.held is not None else workers
        self.sampler = SharedBatches(
            len(dataset),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            size=size,
            training=training,
            lengths=dataset.lengths,
        )
        # in shared memory: whether the workers may end
        self._ending = torch.zeros((), dtype=torch.bool).share_memory_()
        if workers:
            atexit.register(self._ending.fill_, True)  # before multiprocessing, at exit too, ends the workers
        # of the workers' seeds; with PyTorch's own, a new iterator would draw from the generator that training uses
        self._generator = torch.Generator()
        self.batches: DataLoader[Batch] = DataLoader(
            Batches(dataset),
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin,
            persistent_workers=workers > 0,
            multiprocessing_context=clean_context() if workers else None,
            worker_init_fn=functools.partial(_leave_signals_to_the_trainer, self._ending),
            generator=self._generator,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def close(self) -> None:
        """End the worker processes; the loader can be used again, with new ones."""
        self._ending.fill_(True)
        iterator, self.batches._iterator = self.batches._iterator, None
        if iterator is not None and self.workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # PyTorch offers no public way
        self._ending.fill_(False)

    def epoch(self, epoch: int, start: int = 0, between: Callable[[], None] = lambda: None) -> Iterator[Batch]:
        """The batches of an epoch (0, 1, ...), from the batch `start` on.

        `between` is called after every batch, equally often on every process; what it raises breaks off.

        Raises DatasetError where a sample cannot be read, RuntimeError where a worker process died.
        """
        return self._passed(self.batches, epoch, start, between)

    def stream(self, epoch: int, start: int = 0, between: Callable[[], None] = lambda: None) -> Iterator[Batch | Rows]:
        """See `epoch`; of a split that is held on a device, Rows: no process, no thread, no Python for each sample."""
        held = self.dataset.held
        return (
            self.epoch(epoch, start, between) if held is None else self._passed(self._rows(held), epoch, start, between)
        )

    def _passed(self, batches: Iterable[T], epoch: int, start: int, between: Callable[[], None]) -> Iterator[T]:
        self.sampler.epoch, self.sampler.start = epoch, start
        self._generator.manual_seed(hash((self.sampler.seed, epoch)))
        self.dataset.set_epoch(epoch)
        try:
            in_script = type(self.dataset).__module__ == "__main__"
            with contextlib.nullcontext() if in_script else without_script():
                iterator = iter(batches)  # starts the workers
            for batch in iterator:
                yield batch
                between()
                start += 1
        except DatasetError as error:
            # a worker sends its whole traceback as the message; what a person needs is the last line
            last = str(error).strip().splitlines()[-1]
            raise DatasetError(last.split("DatasetError: ", 1)[-1]) from error
        for _ in range(start, len(self)):  # this process has no sample of the last batch
            between()

    def _rows(self, held: Held) -> Iterator[Rows]:
        """The batches of the epoch, whose order travels to the device once."""
        for index in self.sampler.shares(self.sampler.order().to(held.device)):
            yield Rows(held, index)


def _unchanged(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_trainer(ending: torch.Tensor, worker: int) -> None:
    """Keep workers alive until the trainer has finished the current step: Ctrl-C and Slurm reach all processes."""
    del worker

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        if ending:
            os._exit(0)

    settle_in(end)
