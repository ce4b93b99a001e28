"""Figures as PNG, and files of a report that take the places of older ones together."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mmpareto.writing import signals_noted

# a matplotlibrc in the working directory may be somebody else's: names are escaped for matplotlib's own text, not for
# LaTeX, and a hook is a function that it imports
mpl.rcParams.update({"text.usetex": False, "figure.hooks": []})

__all__ = ["picture", "plt", "png", "write_together"]

_STAGED = ".new-files-"


def picture(figure: Figure, dpi: int = 120) -> Image.Image:
    """Draw a figure, in RGB, and free it.

    A character that the font lacks is a box; a panel that long names leave no space for is as it is. Neither is worth a
    warning to who has trained for a day.
    """
    figure.set_dpi(dpi)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", ".*layout not applied", UserWarning)
        canvas = FigureCanvasAgg(figure)  # whatever backend is set
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    plt.close(figure)
    return Image.fromarray(pixels).convert("RGB")


def png(figure: Figure) -> bytes:
    """Draw a figure as a PNG, and free it."""
    buffer = io.BytesIO()
    picture(figure).save(buffer, format="png")
    return buffer.getvalue()


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
        for number, data in enumerate(content.values()):
            with open(staged / str(number), "wb") as file:
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
    staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=folder))
    lock = os.open(staged, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Removes what processes left behind that were killed."""
    for staged in folder.glob(f"{_STAGED}*"):
        try:
            lock = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(staged, ignore_errors=True)
        except OSError:  # another process is writing
            pass
        finally:
            os.close(lock)
