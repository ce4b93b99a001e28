"""Processes that read data: they start clean, end with their parent, and can die without stopping the others."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Job = TypeVar("Job")


# libraries that workers need and that take seconds to load: loaded once, before the workers are forked
_PRELOADED = ("torch", "torchaudio.compliance.kaldi", "av")
# takes as long as all of those: only where this process has loaded it, as the readers of images do
_PRELOADED_IF_LOADED = "torchvision.transforms.v2"


def clean_context() -> BaseContext:
    """Start processes as forks of a clean server process, which this call starts and which loads heavy libraries once.

    A fork of a training process can deadlock: its threads (OpenMP, gloo, CUDA, a progress bar's) may hold a lock at
    that moment, and no thread exists in the child to release it. Without such a server (Windows) each process starts
    from nothing. The arguments of a process must be picklable.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # not on Windows

    context = multiprocessing.get_context("forkserver")
    loaded = [_PRELOADED_IF_LOADED] if _PRELOADED_IF_LOADED in sys.modules else []
    context.set_forkserver_preload([*_PRELOADED, *loaded])
    # Slurm sends SIGTERM to all processes, a terminal that is closed SIGHUP: the server and the tracker, which ignores
    # SIGTERM itself, must outlast them. They inherit the block, and what came to us meanwhile arrives when we lift it.
    # The tracker first: starting it lifts a block of SIGTERM.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT})
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextlib.contextmanager
def without_script() -> Iterator[None]:
    """Start processes that do not import the script which runs here.

    Python has each process import it, so that a script that trains without `if __name__ == "__main__":` would train
    again in each of them. What they are given must not be defined in the script.
    """
    script: Any = sys.modules["__main__"]
    hidden = {name: vars(script)[name] for name in ("__spec__", "__file__") if name in vars(script)}
    script.__spec__ = None
    vars(script).pop("__file__", None)
    try:
        yield
    finally:
        vars(script).update(hidden)


def settle_in(on_sigterm: Callable[..., None] | None = None) -> None:
    """Set up a process that was started in `clean_context`.

    It ignores SIGINT and SIGHUP, accepts SIGTERM again (`on_sigterm`; by default the process ends) and ends when its
    parent does: the server process lives as long as any of its forks, so the parent itself is watched.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent_watch", daemon=True).start()


@dataclass(frozen=True)
class Died:
    """The result of a job whose process ended before it was done; `cause` is the signal or exit status."""

    cause: str


def run_in_processes(
    function: Callable[[Job], Any], jobs: Iterable[Job], processes: int
) -> Iterator[tuple[Job, Any | Died]]:
    """Call `function` on each job, in `processes` processes, and give (job, result) as they become ready.

    A process that dies (out of memory, a fault in a codec) gives `Died` for its job, and another takes its place:
    `concurrent.futures` and `multiprocessing.Pool` would stop, or wait for ever. Workers end with their parent.

    function  must be importable and its results must be picklable; it must not raise.
    """
    context = clean_context()
    waiting = iter(jobs)
    busy: dict[Connection, tuple[BaseProcess, Job]] = {}
    idle: list[tuple[Connection, BaseProcess]] = []

    def start() -> tuple[Connection, BaseProcess]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function), daemon=True)  # type: ignore[attr-defined]
        with without_script():
            process.start()
        theirs.close()  # so that the end of the process is seen as the end of the pipe
        return ours, process

    def give_job(worker: tuple[Connection, BaseProcess] | None = None) -> None:
        """Give the next job to a worker, or to a new one."""
        for job in waiting:
            connection, process = worker or start()
            connection.send(job)
            busy[connection] = (process, job)
            return
        if worker is not None:
            idle.append(worker)

    try:
        for _ in range(processes):
            give_job()
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
                    give_job()
                else:
                    give_job((ready, process))
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
    settle_in()
    while True:
        try:
            connection.send(function(connection.recv()))
        except (EOFError, ConnectionError):  # the parent has ended
            return
