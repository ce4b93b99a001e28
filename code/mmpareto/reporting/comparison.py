"""Runs of several methods and seeds side by side: mean and deviation over the seeds of equal settings."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mmpareto.escape import counted, markdown_text
from mmpareto.reporting.finished import VARYING, FinishedRun
from mmpareto.selection import COMBINATIONS, LEAD, SELECTED_ON_TEST

_NO_VALUES = ("n/a", "not measured", "-", "baseline")
_NOT_SET = "not set"


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed, one per seed and sorted by it.

    label     the method and how these runs differ from others of the method
    repeated  further runs of a seed that `runs` has already: in no mean
    """

    label: str
    runs: tuple[FinishedRun, ...]
    repeated: tuple[FinishedRun, ...] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.runs[0].method

    @property
    def selected_on_test(self) -> bool:
        """Whether the checkpoints were selected on the test split."""
        return self.runs[0].selected_on_test

    @property
    def joint(self) -> list[float]:
        """Joint test accuracy of each seed."""
        return [run.joint for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean joint test accuracy over the seeds."""
        return statistics.mean(self.joint)

    @property
    def by_seed(self) -> pd.Series:
        """Joint test accuracy by seed."""
        return pd.Series(self.joint, index=self.seeds, dtype=float)

    def accuracies(self, modality: str) -> list[float]:
        """Test accuracy of a modality's own head for each seed."""
        return [value for run in self.runs if (value := run.accuracy(modality)) is not None]

    @property
    def seconds(self) -> list[float]:
        """Training time of each run that recorded it."""
        return [run.seconds for run in self.runs if run.seconds is not None]

    @property
    def peak_memory(self) -> list[float]:
        """Peak memory in MiB of each run that recorded it."""
        return [run.peak_memory for run in self.runs if run.peak_memory is not None]

    @property
    def combined_values(self) -> dict[str, list[float]]:
        """The joint head less the best unimodal one, and all heads together by each rule, for each seed."""
        return {LEAD: [run.lead for run in self.runs]} | {
            label: [value for run in self.runs if (value := run.all_heads(rule)) is not None]
            for rule, label in COMBINATIONS.items()
        }

    @property
    def combined(self) -> dict[str, str]:
        """`combined_values` as cells of a table."""
        return {label: spread(values) for label, values in self.combined_values.items()}

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return [run.seed for run in self.runs]

    @property
    def repetition(self) -> str:
        """A sentence on the runs that are in no mean; empty if there are none."""
        seeds = ", ".join(dict.fromkeys(str(run.seed) for run in self.repeated))
        return (
            f"{self.label}: {counted(len(self.repeated), 'further run')} (seeds {seeds}), left out of all means"
            if seeds
            else ""
        )


def rows_of(runs: Sequence[FinishedRun], unnamed: Sequence[str] = ()) -> list[Row]:
    """Runs grouped by all settings but the seed, sorted by dataset and mean joint accuracy.

    Of several runs with the same settings and seed, the first by path counts. Settings that are `unnamed` are in no
    label: each method has one value of them.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, str(run.path))):
        groups.setdefault(run.group, []).append(run)
    labels = _labels([members[0] for members in groups.values()], runs, unnamed)
    rows = []
    for label, members in zip(labels, groups.values(), strict=True):
        first = {run.seed: run for run in reversed(members)}
        rows.append(Row(label, tuple(first[seed] for seed in sorted(first)), _others(members, first.values())))
    return sorted(rows, key=lambda row: (row.runs[0].dataset, row.mean, row.label))


def printed(runs: Sequence[FinishedRun], unnamed: Sequence[str] = ()) -> str:
    """A Markdown table with a line per row, and below it what is in no mean. unnamed: see `rows_of`.

    Test accuracy in percent, the joint one first, then each modality's own ("n/a" if the runs have no such modality),
    the joint one minus the best of these in each run, and that of all heads together;
    conflict rate of each encoder. Columns without any number are left out.
    """
    rows = rows_of(runs, unnamed)
    names = modalities_of(runs)
    lines = [
        {"dataset": row.runs[0].dataset, "method": row.label, "seeds": str(len(row.runs)), "joint": spread(row.joint)}
        | {f"{name} alone": spread(row.accuracies(name)) for name in names}
        | row.combined
        | {f"conflict, {name}": _rate([run.conflict_rate(name) for run in row.runs]) for name in names}
        for row in rows
    ]
    table = without_empty_columns(pd.DataFrame(lines)).map(markdown_text).rename(columns=markdown_text)
    return "\n\n".join([markdown_table(table), *(markdown_text(row.repetition) for row in rows if row.repeated)])


def without_empty_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A table without the columns in which no row has a value."""
    empty = [name for name, column in table.items() if column.isin(_NO_VALUES).all()]
    return table.drop(columns=[name for name in empty if name not in ("dataset", "method")])


def markdown_table(table: pd.DataFrame) -> str:
    """A table of escaped text in Markdown, its numbers aligned right."""
    alignment = ["left" if name in ("dataset", "method") else "right" for name in table]
    return table.to_markdown(index=False, disable_numparse=True, colalign=alignment)


def modalities_of(runs: Iterable[FinishedRun]) -> list[str]:
    """The names of all modalities, in the order in which the runs have them."""
    return list(dict.fromkeys(name for run in runs for name in run.modalities))


def spread(values: Sequence[float]) -> str:
    """Mean and, of two values or more, sample standard deviation."""
    if not values:
        return "n/a"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def settings(run: FinishedRun) -> dict[str, Any]:
    """Settings by their flags: without VARYING, with the options of method, dataset and encoder by their names.

    An option with the same name as a flag, for example momentum of PMR, has the name method_momentum.
    """
    flat: dict[str, Any] = {}
    for key, value in run.config.items():
        if key in (*VARYING, "method", "dataset", "selected_on"):
            continue
        if isinstance(value, Mapping):
            flat |= {_option_name(run, key, name): inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def method_options(run: FinishedRun) -> dict[str, Any]:
    """The options of a run's method, by their names in `settings`."""
    options = run.config.get("method_options") or {}
    return {_option_name(run, "method_options", name): value for name, value in options.items()}


def worded(value: Any) -> str:
    """A value in a sentence: "none" for an empty text."""
    return "none" if value == "" else str(value)


def settings_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """Settings as text: a line per run, by its path; a column per setting, "not set" if a run does not have it."""
    lines = [{key: worded(value) for key, value in settings(run).items()} for run in runs]
    return pd.DataFrame(lines, index=[run.path for run in runs], dtype=object).fillna(_NOT_SET)


def differences(run: FinishedRun, others: Iterable[FinishedRun], ignored: Sequence[str] = ()) -> list[str]:
    """The settings, with their values, in which a run differs from any of the others, without the ignored ones."""
    table = settings_table([run, *others])
    differing = table.columns[(table != table.iloc[0]).any()]
    return [_setting(key, table[key].iloc[0]) for key in differing if key not in ignored]


def _setting(key: object, value: str) -> str:
    return f"without {key}" if value == _NOT_SET else f"{key} {value}"


def usual_settings(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """The settings, with their values, that more than half of the runs share; options of methods only if all do."""
    table = settings_table(runs)
    options = {name for run in runs for name in method_options(run)}
    return {
        key: value
        for key, value in _usual(table).items()
        if value not in (_NOT_SET, "None") and (key not in options or (table[key] == value).all())
    }


def circumstances(runs: Sequence[FinishedRun]) -> list[str]:
    """A sentence for each property of the environment that may move accuracies and in which runs differ.

    These are the device, threads, processes, version of PyTorch and of the code, and the folder of the data.
    """
    sentences = []
    for name, column in _circumstances(runs).drop(columns="platform").items():
        counts = column.value_counts()
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({number} run{'s' * (number > 1)})" for value, number in counts.items())
            sentences.append(f"not all runs were made with the same {name}, which may move accuracies: {listed}")
    return sentences


def origin(runs: Sequence[FinishedRun]) -> str:
    """A sentence on when and with what runs were made, as far as it is recorded and the same for all."""
    table = _circumstances(runs).drop(columns="folder of the data")
    shared = [f"{name} {column.iloc[0]}" for name, column in table.items() if column.nunique() == 1]
    days = sorted({str(run.environment["started"])[:10] for run in runs if run.environment.get("started")})
    begun = "" if not days else f"begun on {days[0]}" if len(days) == 1 else f"begun from {days[0]} to {days[-1]}"
    return "; ".join(filter(None, (begun, ", ".join(text for text in shared if not text.endswith(_NOT_RECORDED)))))


_NOT_RECORDED = "not recorded"


def _circumstances(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """A line per run, a column per property that is no setting and may move accuracies, as text."""
    lines = []
    for run in runs:
        environment = run.environment
        versions, git = ((environment.get(key) or {}) for key in ("versions", "git"))
        commit = f"{git['commit'][:10]}{' with changes' * bool(git.get('changed'))}" if git.get("commit") else None
        device = environment.get("gpu") or str(environment.get("device") or "").partition(":")[0]
        lines.append(
            {
                "device": device or None,
                "CPU threads": environment.get("threads"),
                "processes": environment.get("processes"),
                "PyTorch": versions.get("torch"),
                "commit of the code": commit,
                "platform": environment.get("platform"),
                "folder of the data": run.config.get("data_root"),
            }
        )
    return pd.DataFrame(lines, dtype=object).map(lambda value: _NOT_RECORDED if value is None else str(value))


def _labels(firsts: Sequence[FinishedRun], runs: Sequence[FinishedRun], unnamed: Sequence[str]) -> list[str]:
    """The labels of rows, by the first run of each, without the settings that are `unnamed`.

    A label is the method, the settings in which these runs differ from others of the method on the same dataset, and
    those in which they differ from other methods, unless more than half of the dataset's runs have the same value.
    Settings that a run does not have, and the options of a fusion or architecture that differs itself, are left out if
    the label differs from all others without them.
    """
    by_dataset: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_dataset.setdefault(run.dataset, []).append(run)
    tables = {
        dataset: settings_table(members).drop(columns=list(unnamed), errors="ignore")
        for dataset, members in by_dataset.items()
    }
    levels: list[list[tuple[str, str]]] = [[], [], []]  # datasets and labels, from short ones to long ones
    for run in firsts:
        values: pd.Series = tables[run.dataset].loc[run.path]
        keys = _naming_settings(run, tables[run.dataset], by_dataset[run.dataset])
        present = [key for key in keys if values[key] != _NOT_SET]
        options = options_of(by_dataset[run.dataset], [part for part in ("fusion", "architecture") if part in keys])
        brief = [key for key in present if key not in options]
        marks = [SELECTED_ON_TEST] * run.selected_on_test
        for level, named in zip(levels, (brief, present, keys), strict=True):
            label = ", ".join([run.method, *(_setting(key, values[key]) for key in named), *marks])
            level.append((run.dataset, label))
    return [
        next((level[i] for level in levels if level.count(level[i]) == 1), levels[-1][i])[1] for i in range(len(firsts))
    ]


def _naming_settings(run: FinishedRun, table: pd.DataFrame, members: Sequence[FinishedRun]) -> list[str]:
    """The settings that tell a run from others of its method, and those that tell it from other methods.

    table, members  the settings of the dataset's runs, and the runs.
    """
    differs = table != table.loc[run.path]
    same_method = pd.Series([other.method == run.method for other in members], index=table.index)
    options = {name for other in members for name in method_options(other)}
    usual = _usual(table)
    unusual = [
        key
        for key in table.columns[differs[~same_method].any()]
        if key not in options and usual.get(key) != table.loc[run.path, key]
    ]
    return list(dict.fromkeys([*table.columns[differs[same_method].any()], *unusual]))


def options_of(members: Sequence[FinishedRun], parts: Sequence[str]) -> set[str]:
    """The options of these parts of a model, such as its fusion, in any of the runs."""
    return {
        _option_name(other, f"{part}_options", name)
        for part in parts
        for other in members
        for name in other.config.get(f"{part}_options") or {}
    }


def _usual(table: pd.DataFrame) -> dict[str, str]:
    """The values of settings that more than half of the runs share."""
    modes = {str(key): column.mode()[0] for key, column in table.items()}
    return {key: mode for key, mode in modes.items() if (table[key] == mode).mean() > 0.5}


def _option_name(run: FinishedRun, key: str, name: str) -> str:
    """The name of an entry of a setting that holds several."""
    kind, plural, _ = key.partition("_options")
    if not plural:
        return f"{key} {name}"
    return f"{kind}_{name}" if name in run.config else name


def _others(runs: Iterable[FinishedRun], chosen: Iterable[FinishedRun]) -> tuple[FinishedRun, ...]:
    paths: set[Path] = {run.path for run in chosen}
    return tuple(run for run in runs if run.path not in paths)


def _rate(values: Sequence[float | None]) -> str:
    measured = [value for value in values if value is not None]
    return f"{100 * statistics.mean(measured):.1f} %" if measured else "not measured"
