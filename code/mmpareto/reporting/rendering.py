"""Figures of matplotlib as PNG."""

import io
import warnings

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# a matplotlibrc in the working directory may be somebody else's: names are escaped for matplotlib's own text, not for
# LaTeX, and a hook is a function that it imports
mpl.rcParams.update({"text.usetex": False, "figure.hooks": []})

__all__ = ["picture", "plt", "png"]


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
