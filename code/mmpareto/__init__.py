"""Balanced multimodal classification: gradient integration (MMPareto and others), models, datasets and training.

    import mmpareto

    run = mmpareto.train(method="mmpareto", epochs=5)
    mmpareto.evaluate(run.path).table
    mmpareto.compare("runs").table
    mmpareto.load(run.path).predict(rotated="a.png", noisy="b.png").probabilities

What stands here is imported when it is used: `import mmpareto` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpareto.api.comparison import Comparison as Comparison
    from mmpareto.api.comparison import compare as compare
    from mmpareto.api.evaluation import Evaluation as Evaluation
    from mmpareto.api.evaluation import evaluate as evaluate
    from mmpareto.api.export import Exported as Exported
    from mmpareto.api.export import export as export
    from mmpareto.api.prediction import Prediction as Prediction
    from mmpareto.api.prediction import Predictor as Predictor
    from mmpareto.api.prediction import load as load
    from mmpareto.api.training import TrainedRun as TrainedRun
    from mmpareto.api.training import train as train

__version__ = "0.1.0"

# {name: its module in mmpareto.api}
_MODULES = {
    "Comparison": "comparison",
    "compare": "comparison",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "Exported": "export",
    "export": "export",
    "Prediction": "prediction",
    "Predictor": "prediction",
    "load": "prediction",
    "TrainedRun": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmpareto.api.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
