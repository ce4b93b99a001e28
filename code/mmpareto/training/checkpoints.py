"""Checkpoints: all that a run needs to go on as if it had never stopped.

last.pt      the newest, after every epoch and every --checkpoint_minutes
previous.pt  the one before it, for when the newest is damaged
best.pt      the model of the selected epoch
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpareto.runs import BEST, LAST, PREVIOUS, RunDirectory, RunError, atomically

KEYS = (
    *("model", "optimizer", "schedule", "method", "bounds", "fits"),
    *("scaler", "epoch", "record", "history", "best", "seconds"),
)
FORMAT = 4


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
    """Takes back what `random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
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
    """Takes back what `process_state` gave."""
    set_random_state(state["random"], device)
    for name, buffer in model.named_buffers():
        buffer.copy_(state["buffers"][name])


def save_last(run: RunDirectory, content: Mapping[str, Any]) -> None:
    """Writes last.pt; what it was before stays as previous.pt.

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
            "(make room), then go on with --resume"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def save_best(run: RunDirectory, model: nn.Module, epoch: int) -> None:
    """Writes best.pt, the model of the selected epoch.

    Raises RunError where it cannot be written.
    """
    try:
        _write(run / BEST, _bytes({"model": model.state_dict(), "epoch": epoch}))
    except OSError as error:
        raise RunError(
            f"cannot write {run / BEST}: {error.strerror or error}; mend this (make room), then go on with --resume"
        ) from error


def _bytes(content: Mapping[str, Any]) -> memoryview:
    # torch.save straight into a file ends the process with C++'s std::terminate where the disk is full
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    return buffer.getbuffer()


def _write(path: Path, data: memoryview) -> None:
    with atomically(path) as file:
        file.write(data)


def load_checkpoint(path: Path, device: torch.device, keys: Sequence[str]) -> dict[str, Any]:
    """Reads a checkpoint; nothing in it can run code.

    keys  that it must have.

    Raises RunError, naming the file, where it is missing, cut off, of another origin or incomplete; where another
    checkpoint beside it is whole, it says so.
    """
    load: Callable[..., Any] = torch.load
    try:
        content = load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"there is no checkpoint {path}{_other(path, keys)}") from error
    except Exception as error:  # torch.load raises whatever the broken bytes happen to hit
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"the checkpoint {path} is damaged or foreign ({first}){_other(path, keys)}") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise RunError(
            f"{path} is no checkpoint of this version of the program: it lacks {', '.join(missing)}{_other(path, keys)}"
        )
    return content


def _other(path: Path, keys: Sequence[str]) -> str:
    """Names the checkpoint before a damaged last one, where that is whole."""
    other = path.with_name(PREVIOUS)
    if path.name != LAST or not other.exists():
        return ""
    try:
        content = load_checkpoint(other, torch.device("cpu"), keys)
    except RunError:
        return ""
    return f"; the one before it is whole (epoch {content['epoch']}): --resume {PREVIOUS} goes on from there"
