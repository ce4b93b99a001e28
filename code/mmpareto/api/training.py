"""Train from a program or a notebook."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpareto import runs
from mmpareto.api.evaluation import Evaluation, evaluate
from mmpareto.api.prediction import Predictor, load
from mmpareto.arguments import parse_settings
from mmpareto.runs import RunDirectory
from mmpareto.startup import root
from mmpareto.training.run import run_training
from mmpareto.training.signals import Interrupted, Signals

if TYPE_CHECKING:
    import pandas as pd


class TrainedRun:
    """A run directory.

    Args:
        path: of the run.
        allow: import paths, `package.module:Class`, that its settings may name.
    """

    def __init__(self, path: str | os.PathLike[str], allow: Collection[str] = ()) -> None:
        self.path, self._allow = Path(path).expanduser(), tuple(allow)

    @property
    def results(self) -> dict[str, Any]:
        """The content of results.json.

        Raises:
            RunError: where the run is not finished.
        """
        return RunDirectory(self.path).read_results()

    @property
    def table(self) -> pd.DataFrame:
        """Accuracy in percent of the selected epoch: a row per head, columns val and test."""
        import pandas as pd  # takes a second to load

        results = self.results
        columns = {
            split: {"joint": results[split]["joint"]["accuracy"]}
            | {name: score["accuracy"] for name, score in results[split]["unimodal"].items()}
            for split in ("val", "test")
        }
        return pd.DataFrame(columns).rename_axis("head")

    @property
    def history(self) -> pd.DataFrame:
        """Losses, accuracies and conflict rates: a row per epoch.

        Raises:
            RunError: where no epoch is finished.
        """
        table = self._read(runs.METRICS)
        if table.empty:
            raise runs.RunError(f"{self.path}: no epoch is finished; train it, or give another folder")
        return table.set_index("epoch")

    @property
    def gradients(self) -> pd.DataFrame:
        """Cosine and norms of the joint and the unimodal gradient: a row per step and encoder."""
        return self._read(runs.GRADIENTS)

    def load(self, device: str | None = None) -> Predictor:
        """The trained classifier; see `mmpareto.load`."""
        return load(self.path, device=device, allow=self._allow)

    def evaluate(self, **arguments: Any) -> Evaluation:
        """Score the run; see `mmpareto.evaluate`."""
        return evaluate(self.path, **{"allow": self._allow, **arguments})

    def _read(self, name: str) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(RunDirectory(self.path).read_csv(name)).apply(_numbers)

    def __repr__(self) -> str:
        finished = RunDirectory(self.path).finished
        return f"TrainedRun {self.path}\n{self.table}" if finished else f"TrainedRun {self.path}, not finished"

    def _repr_html_(self) -> str | None:
        return self.table.to_html(float_format="{:.2f}".format) if RunDirectory(self.path).finished else None


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None, *, allow: Collection[str] = (), **settings: Any
) -> TrainedRun:
    """Train a classifier, as train.py does.

        run = mmpareto.train(dataset="digits", method="mmpareto", gamma=2.0, epochs=5)
        run.table

    Args:
        config: settings in a file such as a run's config.yaml, or a mapping of them, by section or without.
        allow: import paths, `package.module:Class`, that a file of settings may name.
        settings: by the names of train.py's flags; they go before those of `config`. The run directory is
            `ckpt_path`, by default runs/<dataset>/<method>/seed<random_seed> in the working directory; `overwrite`
            and `resume` say what to do with a run that is there.

    Raises:
        UserError: for unknown settings, and where data, device or run directory cannot be used.
        KeyboardInterrupt: where the run was interrupted; `resume=True` continues it.
    """
    file = config if config is None or isinstance(config, Mapping) else Path(config).expanduser()
    parsed = parse_settings(settings, Path(root()), file, allow)
    signals = Signals()
    in_main_thread = threading.current_thread() is threading.main_thread()
    try:
        with signals if in_main_thread else contextlib.nullcontext():
            run_training(parsed, signals)
    except Interrupted as order:
        raise KeyboardInterrupt(f"stopped by {order}; resume=True continues the run") from order
    return TrainedRun(parsed.run.ckpt_path, allow)


def _numbers(column: pd.Series) -> pd.Series:
    """A column of text as numbers, where all its cells are numbers or empty."""
    import pandas as pd

    try:
        return pd.to_numeric(column)
    except ValueError:
        return column
