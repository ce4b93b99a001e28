"""Errors of PyTorch and of the system in the user's words: the one place that knows their signs."""

import errno
import os
import resource
import shutil


def explained(error: Exception, memory: str, then: str) -> str | None:
    """The cause of an error of PyTorch or the system that is no fault of the program; None for all others.

    Args:
        error: the exception.
        memory: what to try where memory is short.
        then: what to do afterwards, such as how to continue a run.
    """
    import torch  # commands that need none start sooner

    text = str(error) or type(error).__name__
    first = text.splitlines()[0][:200]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return f"out of memory: try {memory}; {then} ({first})"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EMFILE or "Too many open files" in text or "received 0 items of ancdata" in text:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many open files ({first}): the limit is {limit} (ulimit -n), and every process that loads data needs "
            f"some; try ulimit -n 4096, or fewer --num_workers (0: none); {then}"
        )
    if any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__):  # torch._dynamo is slow to import
        return f"torch.compile failed ({first}): leave --compile out, or repair the C++ compiler; {then}"
    if "shared memory" in text or "Bus error" in text or "file </torch_" in text:
        return (
            f"no room in shared memory ({first}): processes that load data hand their batches over in /dev/shm, "
            f"{_free('/dev/shm')} free; make it larger (docker run --shm-size 8g, or mount -o remount,size=8g "
            f"/dev/shm), or try fewer --num_workers (0 needs none) or a smaller --batch_size; {then}"
        )
    if number == errno.ENOSPC and error.filename is None:  # type: ignore[attr-defined]
        return (
            f"a disk is full ({first}): make room where results and temporary files are written (df -h shows where; "
            f"/dev/shm has {_free('/dev/shm')} free); {then}"
        )
    if "DataLoader worker" in text:
        return (
            f"a process that loads data died ({first}), often because memory is short: try fewer --num_workers; {then}"
        )
    if "more than 1 value per channel" in text:
        return (
            f"batch normalisation cannot learn from a single sample ({first}), and the last piece of an epoch has one: "
            "take another --batch_size, less --accumulate or fewer processes"
        )
    lost = ("Connection closed by peer", "Connection reset", "connectFullMesh", "gloo", "NCCL")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # else a path may hold one of these words
    if isinstance(error, torch.distributed.DistError) or (several and any(sign in text for sign in lost)):
        return f"another process of the job ended ({first}); {then}"
    return None


def _free(folder: str) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB"
    except OSError:
        return "an unknown part"
