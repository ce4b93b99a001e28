"""Work on clips in several processes, where a process may die without stopping the rest."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Job = TypeVar("Job")


# libraries that workers need and that take seconds to load: loaded once, before the workers are forked
_PRELOADED = ("torch", "torchvision.transforms.v2", "torchaudio.compliance.kaldi", "av")


@dataclass(frozen=True)
class Died:
    """The result of a job whose process ended before it was done; `cause` is the signal or exit status."""

    cause: str


def run_in_processes(
    function: Callable[[Job], Any], jobs: Iterable[Job], processes: int
) -> Iterator[tuple[Job, Any | Died]]:
    """Calls `function` on each job, in `processes` processes, and gives (job, result) as they become ready.

    A process that dies (out of memory, a fault in a codec) gives `Died` for its job, and another takes its place:
    `concurrent.futures` and `multiprocessing.Pool` would stop, or wait for ever. Workers end with their parent.

    function  must be importable and its results must be picklable; it must not raise.
    """
    # a clean server process forks the workers: no threads of this one, no second import of heavy libraries
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(list(_PRELOADED))
    waiting = iter(jobs)
    busy: dict[Connection, tuple[BaseProcess, Job]] = {}
    idle: list[tuple[Connection, BaseProcess]] = []

    def start() -> tuple[Connection, BaseProcess]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function), daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()  # so that the end of the process is seen as the end of the pipe
        return ours, process

    def give(connection: Connection, process: BaseProcess) -> None:
        for job in waiting:
            connection.send(job)
            busy[connection] = (process, job)
            return
        idle.append((connection, process))

    try:
        for job in waiting:
            connection, process = start()
            connection.send(job)
            busy[connection] = (process, job)
            if len(busy) == processes:
                break
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, job = busy.pop(ready)
                try:
                    result = ready.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    ready.close()
                    yield job, Died(_cause(process.exitcode))
                    give(*start())
                else:
                    give(ready, process)
                    yield job, result
    finally:
        for process, _ in busy.values():
            process.terminate()
        for connection, process in [*idle, *((connection, process) for connection, (process, _) in busy.items())]:
            connection.close()
            process.join()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {signal.Signals(-exitcode).name}"
    return f"exit status {exitcode}"


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    while True:
        try:
            connection.send(function(connection.recv()))
        except (EOFError, ConnectionError):  # the parent has ended
            return
