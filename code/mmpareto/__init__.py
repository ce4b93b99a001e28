"""Balanced multimodal classification: gradient integration (MMPareto and others), models, datasets and training.

    import mmpareto

    mmpareto.load("runs/digits/mmpareto/seed0").predict(gray="a.png", colour="b.png")

What stands here is imported when it is used: `import mmpareto` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpareto.api.prediction import Prediction as Prediction
    from mmpareto.api.prediction import Predictor as Predictor
    from mmpareto.api.prediction import load as load

__version__ = "0.1.0"

_MODULES = {
    "Prediction": "mmpareto.api.prediction",
    "Predictor": "mmpareto.api.prediction",
    "load": "mmpareto.api.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
