"""Compare finished runs from a program or a notebook."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmpareto.api.training import TrainedRun
from mmpareto.escape import counted
from mmpareto.reporting.finished import FinishedRun, find
from mmpareto.runs import RunError

if TYPE_CHECKING:
    import pandas as pd

    from mmpareto.reporting.summary import Summary


@dataclass(frozen=True)
class Comparison:
    """Runs of several methods and seeds.

    Attributes:
        summaries: one per dataset.
        unfinished: runs that were left out.
    """

    summaries: tuple[Summary, ...]
    unfinished: tuple[Path, ...]

    @property
    def runs(self) -> pd.DataFrame:
        """Test accuracy in percent of each run: columns dataset, method (with its settings), seed, joint, a modality
        each, and path.
        """
        import pandas as pd  # takes a second to load

        rows = [
            {"dataset": run.dataset, "method": row.label, "seed": run.seed, "joint": run.joint}
            | {name: run.accuracy(name) for name in summary.modalities}
            | {"path": str(run.path)}
            for summary in self.summaries
            for row in summary.rows
            for run in row.runs
        ]
        return pd.DataFrame(rows)

    @property
    def table(self) -> pd.DataFrame:
        """A row per dataset and method: seeds, mean and deviation of the accuracies, paired test with the baseline.

        Accuracies are in percent; `p` is corrected by Holm's method, NaN where nothing was tested.
        """
        import pandas as pd

        rows = []
        for summary in self.summaries:
            for row, test in zip(summary.rows, summary.tests, strict=True):
                values = {"joint": row.joint} | {name: row.accuracies(name) for name in summary.modalities}
                line: dict[str, object] = {"dataset": summary.dataset, "method": row.label, "seeds": len(row.runs)}
                for name, accuracies in values.items():
                    numbers = pd.Series(accuracies, dtype=float)
                    line |= {name: numbers.mean(), f"{name} std": numbers.std()}
                rows.append(line | {"difference": test.difference, "p": test.corrected})
        table = pd.DataFrame(rows)
        return table.astype({"difference": float, "p": float}).set_index(["dataset", "method"])

    @property
    def verdicts(self) -> dict[str, str]:
        """{dataset: a sentence on the best method, and whether the difference is significant}."""
        return {summary.dataset: summary.verdict for summary in self.summaries}

    def report(self, output: str | os.PathLike[str]) -> Path:
        """Write tables, figures and a page to a folder; the page is given back."""
        from mmpareto.reporting import page  # matplotlib takes a second to load

        folder = Path(output).expanduser()
        page.write(folder, self.summaries, self.unfinished)
        return folder / page.PAGE

    def __repr__(self) -> str:
        return "\n".join([*self.verdicts.values(), str(self.table)])

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="{:.2f}".format)


def compare(
    runs: str | os.PathLike[str] | TrainedRun | Iterable[str | os.PathLike[str] | TrainedRun],
    *,
    baseline: str | None = None,
    tune: Sequence[str] = (),
) -> Comparison:
    """Compare finished runs.

    Args:
        runs: run directories, or folders that hold some.
        baseline: method that the others are tested against; None: uniform, uniform_gamma or one_joint.
        tune: flags of which each method keeps the values with the best mean validation accuracy.

    Raises:
        RunError: where no run is finished, or a run is damaged.
    """
    from mmpareto.reporting.summary import summaries  # scipy takes a second to load

    several = [runs] if isinstance(runs, str | os.PathLike | TrainedRun) else list(runs)
    finished: list[FinishedRun]
    finished, unfinished = find(run.path if isinstance(run, TrainedRun) else Path(run).expanduser() for run in several)
    if not finished:
        raise RunError(
            f"found no finished run and {counted(len(unfinished), 'unfinished one')}; finish one or name another folder"
        )
    return Comparison(tuple(summaries(finished, baseline, list(tune), [])), tuple(unfinished))
