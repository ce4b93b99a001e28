"""Write files that are there whole or not at all, one by one or together, and lock files between processes."""

import errno
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from mmpareto.startup import SIGNALS

_STAGED = ".new-files-"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems that have none


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Name the file in errors of the system that name none: a full disk is noticed when bytes are written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` whole, flushed to the disk, or not at all."""
    # random: processes on other machines and in other containers may have the same number
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.{os.getpid()}.part")
    try:
        with naming(path), open(beside, "xb") as file:  # x: a link of that name is not followed
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


def lock(file: IO[str] | IO[bytes] | int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder for this process until it is closed; False where the file system has no locks.

    shared  several processes may hold the lock; network file systems want the file open for reading. Otherwise one
            process holds it, and the file must be open for writing.
    wait    until the lock is free; otherwise raise BlockingIOError where another process holds it.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """The SIGNALS that arrive meanwhile, instead of their effect; ignored ones stay ignored, as under nohup.

    Blocking them would hold back those of this thread alone: a library's threads would still take them. Outside the
    main thread, where Python takes no handlers, nothing is held back.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before: dict[signal.Signals, Callable[..., Any] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not a handler of Python's
                before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_together(folder: Path, content: Mapping[str, bytes], outdated: Iterable[Path] = ()) -> None:
    """Write files, {path below the folder: bytes}, and then delete the outdated ones.

    All of them are on the disk before the first one takes the place of an older file, and signals that end the process
    wait until the last one has. A kill before leaves the folder as it was; a kill within these few milliseconds leaves
    whole files, some of them old.
    """
    for name in content:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    with _staging(folder) as staged:
        for number, (name, data) in enumerate(content.items()):
            with naming(folder / name), open(staged / str(number), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        with signals_noted() as received:
            for number, name in enumerate(content):
                os.replace(staged / str(number), folder / name)
            for path in outdated:
                path.unlink(missing_ok=True)
        for number in received:
            signal.raise_signal(number)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder for files that are not complete; locked, so that others know that its process is alive."""
    while True:
        staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=folder))
        with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            descriptor = os.open(staged, os.O_RDONLY)
            with suppress(OSError):  # network file systems lock no folders
                lock(descriptor, wait=True)
            if staged.exists():
                break
            os.close(descriptor)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes left behind that were killed."""
    for staged in folder.glob(f"{_STAGED}*"):
        try:
            descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if lock(descriptor):
                shutil.rmtree(staged, ignore_errors=True)
        except OSError:  # another process is writing
            pass
        finally:
            os.close(descriptor)
