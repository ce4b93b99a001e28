"""Checkpoints: all that a run needs to continue as if it had never stopped.

last.pt      the newest, after every epoch and every --checkpoint_minutes
previous.pt  the one before it, for when the newest is damaged
best.pt      the model of the selected epoch

Each is a file of torch.save. The comment of its ZIP archive is the SHA-256 of all bytes before it.
"""

import contextlib
import hashlib
import io
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from mmpareto.integration import float64_device
from mmpareto.json_files import require_regular
from mmpareto.pickles import is_dense, require_only
from mmpareto.runs import BEST, LAST, PREVIOUS, RunDirectory, RunError, atomically

SEAL = b"sha256:"
SEAL_BYTES = len(SEAL) + 2 * hashlib.sha256().digest_size


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator that training may draw from, in types that cannot run code."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    return {
        "python": [version, list(words), gauss],
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore `random_state()`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    if type(numpy["pos"]) is not int or not 0 <= numpy["pos"] <= len(numpy["key"]):  # NumPy would read outside of key
        raise ValueError(f"NumPy's random state is at {numpy['pos']!r:.100}, expected 0 to {len(numpy['key'])}")
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy["key"].cpu().numpy().astype(np.uint32), "pos": numpy["pos"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def process_state(model: nn.Module, device: torch.device) -> dict[str, Any]:
    """What each process has of its own: random generators, and batch norm's statistics of its samples."""
    return {
        "random": random_state(device),
        "buffers": {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()},
    }


def set_process_state(state: Mapping[str, Any], model: nn.Module, device: torch.device) -> None:
    """Restore `process_state()`."""
    set_random_state(state["random"], device)
    for name, buffer in model.named_buffers():
        buffer.copy_(state["buffers"][name])


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What decides how this process rounds, beside the program; equal where a run is repeated bit for bit."""
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": str(torch.__version__),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }


def save_last(run: RunDirectory, content: Mapping[str, Any]) -> None:
    """Write last.pt; what it was before stays as previous.pt.

    Raises RunError where it cannot be written; what was there stays.
    """
    data = _bytes(content)
    beside = run / f".{PREVIOUS}.{os.getpid()}.part"
    try:
        if (run / LAST).exists():
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            try:
                os.link(run / LAST, beside)
            except OSError:  # a file system without hard links
                shutil.copyfile(run / LAST, beside)
            os.replace(beside, run / PREVIOUS)
        _write(run / LAST, data)
    except OSError as error:
        raise RunError(
            f"cannot write {run / LAST}: {error.strerror or error}; the checkpoints in {run.path} are whole: mend this "
            "(make room), then continue with --resume"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def copy_to_last(run: RunDirectory) -> None:
    """Make last.pt the checkpoint that previous.pt is, so that a damaged last.pt never becomes previous.pt."""
    with open(run / PREVIOUS, "rb") as source, atomically(run / LAST) as file:
        shutil.copyfileobj(source, file)


def save_best(run: RunDirectory, model: nn.Module, best: Mapping[str, Any]) -> None:
    """Write best.pt, the model of the selected epoch, and its accuracy, loss and number.

    Raises RunError where it cannot be written.
    """
    try:
        _write(run / BEST, _bytes({"model": model.state_dict(), **best}))
    except OSError as error:
        raise RunError(
            f"cannot write {run / BEST}: {error.strerror or error}; mend this (make room), then continue with --resume"
        ) from error


def _bytes(content: Mapping[str, Any]) -> list[bytes | memoryview]:
    # torch.save straight into a file ends the process with C++'s std::terminate where the disk is full
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    archive = buffer.getbuffer()
    archive[-2:] = SEAL_BYTES.to_bytes(2, "little")  # the length of the comment, which is empty so far
    digest = hashlib.sha256(archive)
    digest.update(SEAL)
    return [archive, SEAL, digest.hexdigest().encode()]


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    with atomically(path) as file:
        file.writelines(parts)


def verify(file: IO[bytes]) -> None:
    """Check the bytes of a checkpoint before they are loaded.

    Its digest must be right. Without a digest (earlier versions wrote none) every record must have its CRC. A record
    must lie inside the file, and the pickled part must ask for nothing but dense tensors and plain containers.

    Raises ValueError or zipfile.BadZipFile for anything else.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - SEAL_BYTES))
    tail = file.read()
    sealed = tail.startswith(SEAL)
    if sealed:
        digest, left = hashlib.sha256(), size - SEAL_BYTES + len(SEAL)
        file.seek(0)
        while block := file.read(min(left, 2**20)):
            digest.update(block)
            left -= len(block)
        if digest.hexdigest().encode() != tail[len(SEAL) :]:
            raise ValueError("its bytes are not those that were written")
    elif tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != bytes(2):  # the end of an archive without a comment
        raise ValueError("it does not end as a checkpoint does")
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            inside = 0 <= record.header_offset <= size - record.file_size
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size or not inside:
                raise ValueError(f"its record {record.filename} is not as long as announced")
        damaged = None if sealed else archive.testzip()
        if damaged is not None:
            raise ValueError(f"its record {damaged} is damaged")
        pickles = [record for record in archive.infolist() if record.filename.endswith(".pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} pickled parts, expected 1")
        require_only(is_dense, archive.read(pickles[0]))
    file.seek(0)


def load_checkpoint(path: Path, device: torch.device, keys: Sequence[str]) -> dict[str, Any]:
    """Read a checkpoint that `verify` accepts; nothing in it can run code.

    keys  that it must have.

    Raises RunError, naming the file, where it is missing, damaged, of another origin or incomplete; where another
    checkpoint beside it is whole, it says so.
    """
    try:
        return _read(path, device, keys)
    except RunError as error:
        raise RunError(f"{error}{_other(path, keys)}") from error


def _read(path: Path, device: torch.device, keys: Sequence[str]) -> dict[str, Any]:
    """`load_checkpoint` without a look at other files."""
    load: Callable[..., Any] = torch.load
    try:
        require_regular(path)
        with open(path, "rb") as file:
            verify(file)
            content = load(file, map_location=float64_device(device), weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):  # the file is none the worse
        raise
    except FileNotFoundError as error:
        raise RunError(f"there is no checkpoint {path}") from error
    except Exception as error:  # zipfile, pickletools and torch.load raise whatever the broken bytes happen to hit
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"the checkpoint {path} is damaged or foreign ({first[:200]})") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise RunError(f"{path} is no checkpoint of this version of the program: it lacks {', '.join(missing)}")
    if type(content.get("epoch", 0)) is not int:
        raise RunError(f"{path} is no checkpoint of a run: its epoch is {content['epoch']!r:.100}, expected int")
    return content


def has_best(run: RunDirectory) -> bool:
    """Whether best.pt is there and whole."""
    try:
        load_checkpoint(run / BEST, torch.device("cpu"), ("model", "epoch"))
    except RunError:
        return False
    return True


def _other(path: Path, keys: Sequence[str]) -> str:
    """Names the checkpoint that can stand in for a damaged one, and the flag that uses it."""
    if path.name not in (LAST, BEST):
        return ""
    for name, flag in ((PREVIOUS, f"--resume {PREVIOUS}"), (LAST, "--resume")):
        other = path.with_name(name)
        if other == path or not other.exists():
            continue
        try:
            wanted = keys if path.name == LAST else ("model", "epoch", "best", "record")
            content = _read(other, torch.device("cpu"), wanted)
        except RunError:
            continue
        if path.name == LAST:
            return f"; the one before it is whole (epoch {content['epoch']}): {flag} continues from there"
        with contextlib.suppress(LookupError, TypeError):
            if content["best"]["epoch"] == content["epoch"] - 1 and content["record"]["batches"] == 0:
                return f"; {name} holds the same model: train.py {flag} writes {BEST} again"
    return "" if path.name == LAST else "; no other file holds the selected model: train again with --overwrite"
