"""One process or many: who this one is, and the few things that all of them do together.

`torchrun` starts the processes and says in the environment who is who (torch.distributed.run's documentation).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmpareto.errors import UsageError
from mmpareto.training.heartbeat import Heartbeat

TIMEOUT = timedelta(minutes=10)  # of meeting and of each collective
T = TypeVar("T")


class Requests(NamedTuple):
    """What a process asks all of them to do after a step.

    save  a checkpoint.
    stop  the run.
    """

    save: bool = False
    stop: bool = False


class Processes:
    """The processes of a training run; one of them, without torchrun.

    Enter it to connect them (gloo on a CPU; NCCL for a GPU's tensors and gloo for all else), leave it to part.

    rank        of this process, 0 .. size - 1.
    local_rank  among those on this machine: the number of its GPU.
    restarts    how often torchrun has started the job anew.
    job         what torchrun's job is known by, the same after a restart; None without torchrun.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        number = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # of torchrun's --rdzv_id
        by_torchrun = "TORCHELASTIC_RESTART_COUNT" in os.environ
        self.job = (number if number != "none" else f"{platform.node()} {os.getppid()}") if by_torchrun else None
        self._pending: tuple[Tensor, Any] | None = None
        self._heartbeat: Heartbeat | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def connect(self, device: torch.device) -> Processes:
        """Wait for the others and watch them from then on, see `Heartbeat`; alone it does nothing."""
        if self.size > 1:
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
            # torchrun's store outlives a restart, and with it the addresses of the dead
            store = dist.PrefixStore(f"restart_{self.restarts}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
            # a connection of its own: the main thread may wait on the other
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            beats: dist.Store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
            beats = dist.PrefixStore(f"heartbeat_{self.restarts}", beats)
            self._heartbeat = Heartbeat(beats, rank, size, TIMEOUT.total_seconds() / 60)
            self._heartbeat.start()
        return self

    def begin_step(self, epoch: int, step: int) -> None:
        """Note for the others that this process has the data of a step."""
        if self._heartbeat is not None:
            self._heartbeat.begin(epoch, step)

    def refuse_differences(self, values: Mapping[str, Any]) -> None:
        """Raise UsageError on every process where one has another value than the main one."""
        if self.size == 1:
            return
        all_values: list[Any] = [None] * self.size
        dist.all_gather_object(all_values, dict(values))
        for rank, other in enumerate(all_values):
            for name, value in all_values[0].items():
                if other.get(name) != value:
                    raise UsageError(
                        f"rank {rank} has {name} {other.get(name)}, rank 0 has {value}; all processes of a run need "
                        "the same flags and the same data"
                    )

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
        # after a failure the others may be gone: do not wait for them, torchrun ends the job
        if dist.is_initialized() and kind is None:
            dist.destroy_process_group()

    def on_main(self, function: Callable[[], T]) -> T:
        """Calls the function on the main process alone; all get its result."""
        if self.size == 1:
            return function()
        result = [function() if self.main else None]
        dist.broadcast_object_list(result, src=0, device=torch.device("cpu"))
        return result[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Everybody's value on the main process, by rank; elsewhere an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def start_alike(self, model: nn.Module) -> None:
        """Give all processes the main one's parameters and buffers."""
        if self.size > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)

    def average_buffers(self, model: nn.Module) -> None:
        """Averages batch norm's running statistics, which each process has gathered on its own samples."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.size > 1 and buffers:
            # in float64, so that equal values stay what they are: a run resumed while it was scored averages again
            flat = torch.cat([buffer.reshape(-1).double() for buffer in buffers])
            dist.all_reduce(flat)
            for buffer, part in zip(buffers, (flat / self.size).split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def exchange(self, requests: Requests) -> Requests:
        """What some process asks for, so that all act alike; waits for nothing but other processes' sends.

        With several processes the answer is that of the call before: it travels while the step computes.
        """
        if self.size == 1:
            return requests
        answer = self.settle()
        values = torch.tensor(requests, dtype=torch.int64)
        self._pending = (values, dist.all_reduce(values, async_op=True))
        return answer

    def settle(self) -> Requests:
        """The answer that is still under way; that nothing is asked for where there is none."""
        if self._pending is None:
            return Requests()
        values, work = self._pending
        self._pending = None
        work.wait()
        return Requests(*(value > 0 for value in values.tolist()))
