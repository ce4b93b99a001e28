"""Write files that are there whole or not at all, and lock files between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` whole, flushed to the disk, or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    try:
        with open(beside, "xb") as file:  # x: a link of that name is not followed
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomically(path) as file:
        file.write(text.encode())


def lock(file: IO[str] | IO[bytes] | int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file or folder for this process until it is closed.

    shared  several processes may hold the lock; network file systems want the file open for reading. Otherwise one
            process holds it, and the file must be open for writing.
    wait    until the lock is free; otherwise raise BlockingIOError where another process holds it.
    """
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
