"""Curves of a run in progress: TensorBoard, and Weights & Biases on request."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from mmpareto.errors import UsageError
from mmpareto.runs import atomically

TENSORBOARD, WANDB = "TensorBoard", "Weights & Biases"


class Board:
    """A writer of scalars and figures of a run; enter it to open, leave it to flush and close.

    A writer that fails (a full disk, a lost connection) is named once and left out afterwards: curves never end a run.

    folder  where TensorBoard's events go (and Weights & Biases' files).
    begun   first step that will be written: later ones of an earlier process are forgotten.
    config  the run's settings.
    wandb   project at Weights & Biases; None: not used. WANDB_MODE=offline keeps everything on this machine.
    main    False: nothing is kept, for the processes beside the main one.

    Raises UsageError where wandb is not installed or cannot begin.
    """

    def __init__(
        self, folder: Path, begun: int, config: Mapping[str, Any], wandb: str | None = None, main: bool = True
    ) -> None:
        self._silent = set() if main else {TENSORBOARD}  # writers that keep nothing, or nothing more
        self._wandb: Any = None
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes a second to load

        if wandb is not None:
            try:
                self._wandb = import_wandb().init(
                    project=wandb,
                    dir=str(folder),
                    config=dict(config),
                    id=_run_id(folder),
                    resume="allow",
                    group="{dataset} {method}".format(**config),  # the seeds of a grid
                    name="{method} seed {random_seed}".format(**config),
                )
            except UsageError:
                raise
            except Exception as error:  # of whatever kind: wandb has many
                raise UsageError(
                    f"--wandb {wandb}: Weights & Biases cannot begin ({_reason(error)}); log in with "
                    "wandb login, set WANDB_MODE=offline, or leave the flag out"
                ) from error
        _silence_writer_threads()
        self._writer = SummaryWriter(str(folder), purge_step=begun)

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Add a point to each curve; None is left out."""
        known = {name: value for name, value in values.items() if value is not None}

        def add() -> None:
            for name, value in known.items():
                self._writer.add_scalar(name, value, step)

        self._try(TENSORBOARD, add)
        if self._wandb is not None:
            self._try(WANDB, lambda: self._wandb.log({**known, "trainer/step": step}))

    def picture(self, name: str, file: Path, step: int) -> None:
        """Add a figure that was saved as a PNG."""
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._try(TENSORBOARD, lambda: self._writer.add_image(name, pixels, step, dataformats="HWC"))
        if self._wandb is not None:
            self._try(WANDB, lambda: self._wandb.log({name: import_wandb().Image(str(file)), "trainer/step": step}))

    def _try(self, writer: str, write: Callable[[], object]) -> None:
        """Call `write`, unless this writer keeps nothing."""
        if writer in self._silent:
            return
        try:
            write()
        except Exception as error:  # of whatever kind
            self._silent.add(writer)
            print(
                f"train.py: curves for {writer} cannot be written ({_reason(error)}); training continues without them, "
                "metrics.csv has every epoch",
                file=sys.stderr,
            )

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._try(TENSORBOARD, lambda: self._writer.close())
        if self._wandb is not None:
            self._try(WANDB, lambda: self._wandb.finish(exit_code=0 if error is None else 1))


def import_wandb() -> Any:
    """Weights & Biases' package.

    Raises UsageError where it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UsageError("--wandb: Weights & Biases is not installed; pip install wandb") from error
    return wandb


def _run_id(folder: Path) -> str:
    """The run's name at Weights & Biases: kept in its folder, so that a resumed run continues there."""
    file = folder / "wandb_id.txt"
    if not file.exists():
        import secrets

        with atomically(file) as new:
            new.write(secrets.token_hex(8).encode())
    return file.read_text()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _silence_writer_threads() -> None:
    """TensorBoard's thread hands its error on, see `Board._try`; its traceback is not printed as well."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            before(arguments)

    threading.excepthook = hook
