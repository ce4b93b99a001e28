"""What holds for the tests of entries."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mmpareto.reporting import figures, rendering
from mmpareto.reporting.rendering import plt


def _small_png(figure: Figure) -> bytes:
    plt.close(figure)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="png")
    return buffer.getvalue()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread in this process, as in those that tests start, for the same sums to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _small_figures() -> Iterator[None]:
    """Small pictures in the place of the figures of commands in this process, which take as long as an epoch.

    What figures hold is tested in reporting/, and that commands leave them with commands in processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png", _small_png)
        patch.setattr(rendering, "png", _small_png)
        yield
