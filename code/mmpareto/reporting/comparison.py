"""Runs of several methods and seeds side by side: mean and deviation, nothing averaged that does not belong."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpareto.escape import markdown_text
from mmpareto.reporting.finished import OWN, FinishedRun

SELECTED_ON_TEST = "SELECTED ON TEST"


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
    def joint(self) -> list[float]:
        """Joint test accuracy of each seed."""
        return [run.joint for run in self.runs]

    def accuracies(self, modality: str) -> list[float]:
        """Test accuracy of a modality's own head for each seed."""
        return [value for run in self.runs if (value := run.accuracy(modality)) is not None]

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return [run.seed for run in self.runs]


def rows_of(found: Sequence[FinishedRun]) -> list[Row]:
    """Runs grouped by all settings but the seed, sorted by dataset and mean joint accuracy.

    Of several runs with the same settings and seed, the first by path counts.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in sorted(found, key=lambda run: (run.seed, str(run.path))):
        groups.setdefault(run.group, []).append(run)
    rows = []
    labels = _labels([members[0] for members in groups.values()], found)
    for label, members in zip(labels, groups.values(), strict=True):
        first = {run.seed: run for run in reversed(members)}
        chosen = tuple(first[seed] for seed in sorted(first))
        rows.append(Row(label, chosen, tuple(run for run in members if run not in chosen)))
    return sorted(rows, key=lambda row: (row.runs[0].dataset, statistics.mean(row.joint), row.label))


def repeated(row: Row) -> str:
    """A sentence on the runs of a row that are in no mean; empty where there are none."""
    seeds = ", ".join(dict.fromkeys(str(run.seed) for run in row.repeated))
    return f"{row.label}: {len(row.repeated)} further runs of seeds {seeds} are in no mean" if row.repeated else ""


def comparison(found: Sequence[FinishedRun]) -> list[dict[str, str]]:
    """A row per method and settings: seeds, test accuracy in percent (mean and deviation), conflict rate.

    The joint accuracy comes first, then each modality's own; "n/a" where the runs of a dataset have no such modality.
    Runs whose settings differ in more than the seed stand in rows of their own, what differs beside the method's name;
    so do settings that are not those of most other methods' runs.
    Rows of a dataset are sorted by their mean joint accuracy.
    """
    return _comparison(rows_of(found))


def _comparison(rows: Sequence[Row]) -> list[dict[str, str]]:
    names = modalities_of(run for row in rows for run in (*row.runs, *row.repeated))
    return [
        {
            "dataset": row.runs[0].dataset,
            "method": row.label,
            "seeds": str(len(row.runs)),
            "joint": spread(row.joint),
            **{f"{name} alone": spread(row.accuracies(name)) for name in names},
            **{
                f"conflict, {name}": _rate(
                    [(run.results["integration"].get(name) or {}).get("conflict_rate") for run in row.runs]
                )
                for name in names
            },
        }
        for row in rows
    ]


def modalities_of(found: Iterable[FinishedRun]) -> list[str]:
    """The names of all modalities, in the order in which the runs have them."""
    return list(dict.fromkeys(name for run in found for name in run.modalities))


def spread(values: Sequence[float]) -> str:
    """Mean and, of two values or more, sample standard deviation."""
    if not values:
        return "n/a"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def differences(run: FinishedRun, others: Iterable[FinishedRun], aside: Sequence[str] = ()) -> list[str]:
    """The settings, with their values, in which a run differs from any of the others; seed, selection and those
    `aside` left out.
    """
    own = settings(run)
    differing = _differing(own, [settings(other) for other in others])
    return [_setting(own, key) for key in differing if key not in aside]


def settings(run: FinishedRun) -> dict[str, Any]:
    """Settings by their flags: a run's own ones left out, options of method, dataset and encoder by their names.

    An option that is called as a flag is, momentum of PMR say, has the name method_momentum.
    """
    flat: dict[str, Any] = {}
    for key, value in run.config.items():
        if key in (*OWN, "method", "dataset", "selected_on"):
            continue
        if isinstance(value, Mapping):
            flat |= {_name(run, key, name): inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def own_options(run: FinishedRun) -> dict[str, Any]:
    """The options of a run's method, by their names in `settings`."""
    options = run.config.get("method_options") or {}
    return {_name(run, "method_options", name): value for name, value in options.items()}


def worded(value: Any) -> Any:
    """A value in a sentence: "none" for an empty text."""
    return "none" if value == "" else value


def usual_settings(found: Sequence[FinishedRun]) -> dict[str, Any]:
    """The settings, with their values, that more than half of the runs share; options of methods only if all do."""
    options = _options(found)
    return {
        key: value
        for key, value in _usual(found).items()
        if value is not _MISSING
        and (key not in options or all(settings(run).get(key, _MISSING) == value for run in found))
    }


def circumstances(found: Sequence[FinishedRun]) -> list[str]:
    """A sentence for each thing beside the settings in which runs differ although it may move accuracies: device,
    threads, processes, version of PyTorch and of the code, folder of the data.
    """

    each = [_circumstances(run) | {"folder of the data": run.config.get("data_root")} for run in found]
    said = []
    for what in each[0] if each else ():
        counts = Counter("not recorded" if own[what] is None else str(own[what]) for own in each)
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({number} run{'s' * (number > 1)})" for value, number in counts.most_common())
            said.append(f"not all runs were made with the same {what}, which may move accuracies: {listed}")
    return said


def origin(found: Sequence[FinishedRun]) -> str:
    """A sentence on when and with what runs were made, as far as it is recorded and the same for all."""
    each = [_circumstances(run) | {"platform": run.environment.get("platform")} for run in found]
    same = {what: value for what, value in each[0].items() if all(own[what] == value for own in each)} if each else {}
    alike = ", ".join(f"{what} {value}" for what, value in same.items() if value is not None)
    days = sorted({str(run.environment["started"])[:10] for run in found if run.environment.get("started")})
    begun = "" if not days else f"begun on {days[0]}" if len(days) == 1 else f"begun from {days[0]} to {days[-1]}"
    return "; ".join(filter(None, (begun, alike)))


def printed(found: Sequence[FinishedRun]) -> str:
    """The comparison as a Markdown table, and what is in no mean of it."""
    rows = rows_of(found)
    return "\n\n".join([_markdown(_comparison(rows)), *map(markdown_text, filter(None, map(repeated, rows)))])


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    header = list(rows[0])
    body = [[markdown_text(row[key]) for key in header] for row in rows]
    lines = [list(map(markdown_text, header)), [":--", ":--", *("--:" for _ in header[2:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_MISSING = object()


def _circumstances(run: FinishedRun) -> dict[str, Any]:
    """What is no setting and may move accuracies, by its name; None where it was not recorded."""
    made = run.environment
    versions, git = ((made.get(key) or {}) for key in ("versions", "git"))
    commit = (git.get("commit") or "")[:10] and git["commit"][:10] + " with changes" * bool(git.get("changed"))
    return {
        "device": made.get("gpu") or (str(made["device"]).partition(":")[0] if "device" in made else None),
        "CPU threads": made.get("threads"),
        "processes": made.get("processes"),
        "PyTorch": versions.get("torch"),
        "commit of the code": commit or None,
    }


def _labels(firsts: Sequence[FinishedRun], found: Sequence[FinishedRun]) -> list[str]:
    """The labels of rows, by the first run of each: the method, the settings in which these runs differ from others of
    the method on the same dataset, and those in which they differ from other methods, unless more than half of the
    dataset's runs have them so.
    """
    by_dataset: dict[str, list[tuple[FinishedRun, dict[str, Any]]]] = {}
    for run in found:
        by_dataset.setdefault(run.dataset, []).append((run, settings(run)))
    usual = {dataset: _usual([run for run, _ in pairs]) for dataset, pairs in by_dataset.items()}
    options = {dataset: _options([run for run, _ in pairs]) for dataset, pairs in by_dataset.items()}
    labels = []
    for run in firsts:
        own, pairs = settings(run), by_dataset[run.dataset]
        among = _differing(own, [values for other, values in pairs if other.method == run.method])
        across = _differing(own, [values for other, values in pairs if other.method != run.method])
        shared = usual[run.dataset]
        unusual = [
            key
            for key in across
            if key not in options[run.dataset] and not (key in shared and own.get(key, _MISSING) == shared[key])
        ]
        marks = [SELECTED_ON_TEST] if run.selected_on_test else []
        labels.append(", ".join([run.method, *(_setting(own, k) for k in dict.fromkeys([*among, *unusual])), *marks]))
    return labels


def _usual(found: Sequence[FinishedRun]) -> dict[str, Any]:
    """The values of settings that more than half of the runs share; _MISSING where so many do not have it."""
    each = [settings(run) for run in found]
    usual = {}
    for key in dict.fromkeys(key for own in each for key in own):
        values = [own.get(key, _MISSING) for own in each]
        for value in values[: len(values) // 2 + 1]:  # one of these, where there is one
            if 2 * values.count(value) > len(values):
                usual[key] = value
                break
    return usual


def _options(found: Sequence[FinishedRun]) -> set[str]:
    """The names of all options of methods."""
    return {name for run in found for name in own_options(run)}


def _name(run: FinishedRun, key: str, name: str) -> str:
    """What an entry of a setting that holds several is called."""
    kind, plural, _ = key.partition("_options")
    if not plural:
        return f"{key} {name}"
    return f"{kind}_{name}" if name in run.config else name


def _differing(own: Mapping[str, Any], theirs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings whose value is not that of all others."""
    keys = dict.fromkeys(key for each in (own, *theirs) for key in each)
    return [key for key in keys if any(each.get(key, _MISSING) != own.get(key, _MISSING) for each in theirs)]


def _setting(own: Mapping[str, Any], key: str) -> str:
    return f"{key} {worded(own.get(key, 'not set'))}"


def _rate(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    return f"{100 * statistics.mean(present):.1f} %" if present else "not measured"
