"""What holds for the tests of entries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmpareto.reporting import figures
from mmpareto.reporting.rendering import plt


def _save_small(figure: Figure, path: Path) -> None:
    plt.close(figure)
    Image.new("RGB", (8, 8)).save(path)


@pytest.fixture(autouse=True, scope="module")
def _small_figures() -> Iterator[None]:
    """Small pictures in the place of the figures of training runs in this process, which take as long as an epoch.

    What figures hold is tested in reporting/, and that a run leaves them with runs in processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", _save_small)
        yield
