"""Settings in a file of --config, or of a program: read, and given as flags that stand before the command line's."""

import argparse
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmpareto.command_line import Parser
from mmpareto.config_files import flattened, read_sections
from mmpareto.errors import UsageError
from mmpareto.flag_values import shown
from mmpareto.registries import ENCODERS, architecture_of
from mmpareto.registry import require_allowed
from mmpareto.train_flags import DECAY_RATIO, MOMENTUM, SHORT, WITH_OPTIONS, Entries, refuse_unknown, train_parser


def merged(
    path: str | None, allowed: Collection[str], beside: Mapping[str, Any] | None
) -> tuple[dict[str, Any], set[str]]:
    """The settings in a file and beside it, by flag, and the flags that these leave empty.

    Args:
        path: of the file; None where there is none.
        allowed: import paths that the file may name.
        beside: further settings, which override the file's.

    Raises:
        UsageError: see `_read`.
    """
    in_file, empty = ({}, set[str]()) if path is None else _read(path, allowed)
    more = {name: value for name, value in (beside or {}).items() if value not in (None, "")}
    return in_file | more, {*empty, *(name for name, value in (beside or {}).items() if value is None)} - more.keys()


def drop_overridden(in_file: dict[str, Any], early: dict[str, Any], options: Collection[str]) -> None:
    """Take out of a file's settings what belongs to something that the command line replaces.

    A run saves every setting: momentum and the ratio of decay too, where its optimiser or schedule has none.

    Args:
        in_file: the file's settings, which are changed.
        early: what the command line says of dataset, method, fusion, architecture, optimiser and schedule.
        options: names of the method's options that it gives.
    """
    _drop_of_optimizer(in_file, early)
    if "method" in early and "architecture" in in_file and "architecture" not in early:
        before, now = (architecture_of(Entries(names).named("method")) for names in (in_file, in_file | early))
        usual = WITH_OPTIONS["architecture"][1]
        if (before or usual) != (now or usual) and in_file["architecture"] == (before or usual):
            del in_file["architecture"]  # the other method brings its own
            in_file.pop("architecture_options", None)
    for name in ("dataset", *WITH_OPTIONS):  # another one has other options
        if name in early and Entries(in_file).named(name) != Entries(in_file | early).named(name):
            in_file.pop(f"{name}_options", None)
            for key in ("data_root",) if name == "dataset" else SHORT if name == "method" else ():
                in_file.pop(key, None)
    for key in options & in_file.keys() & SHORT.keys():
        del in_file[key]


def _drop_of_optimizer(in_file: dict[str, Any], early: dict[str, Any]) -> None:
    """`drop_overridden` for the optimiser and the schedule."""
    saved, now = (str(names.get("optimizer", "SGD")).lower() for names in (in_file, in_file | early))
    if now != "sgd" and (saved == "sgd" or in_file.get("momentum") == MOMENTUM):
        in_file.pop("momentum", None)
    if "lr_decay_step" in early and "lr_schedule" not in early:
        in_file.pop("lr_schedule", None)
    schedules = []
    for names in (in_file, in_file | early):
        usual = "constant" if names.get("lr_decay_step") is None else "step"
        schedules.append(str(names.get("lr_schedule", usual)).lower())
    saved, now = schedules
    if now != "step":
        if saved == "step":
            in_file.pop("lr_decay_step", None)
        if saved == "step" or in_file.get("lr_decay_ratio") == DECAY_RATIO:
            in_file.pop("lr_decay_ratio", None)


def _read(path: str, allowed: Collection[str]) -> tuple[dict[str, Any], set[str]]:
    """The settings in a file of --config, by flag, and the flags that it leaves empty.

    Raises:
        UsageError: for a file that cannot be read, one that imports code which is not allowed, and settings that only
            a person may give: they decide what happens to the files of a run.
    """
    try:
        flat = flattened(read_sections(Path(path)))
        settings = {name: value for name, value in flat.items() if value not in (None, "")}
        encoders = settings.get("encoder")
        names = [settings.get("model"), *(encoders.values() if isinstance(encoders, dict) else [encoders])]
        names = [name for name in map(str, names) if ENCODERS.is_path(name)]
        names += [str(settings.get(name)) for name in ("dataset", *WITH_OPTIONS)]
        require_allowed(names, allowed)
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from error
    for name in ("resume", "overwrite", "train"):
        if name in settings:
            raise UsageError(f"--config {path}: {name} cannot be set in a file; give --{name} on the command line")
    return settings, {name for name, value in flat.items() if value is None}


def explicit(entries: Entries, settings: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The values of a file's settings, converted as those of flags are.

    Raises:
        UsageError: for a value that no flag has.
    """
    parser = train_parser(entries, suppress=True)
    try:
        given, unknown = parser.parse_known_args(list(as_flags(settings, parser)))
        if unknown:
            refuse_unknown(unknown, parser, entries.dataset.name)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return vars(given)


def as_flags(settings: Mapping[str, Any], parser: Parser) -> Iterable[str]:
    """Settings as flags; the value stands after `=`, so that it is never read as a flag."""
    actions = {action.dest: action for action in parser._actions}
    for name, value in settings.items():
        if name == "dataset_options" and isinstance(value, dict):
            yield from as_flags(value, parser)
        elif isinstance(value, dict):
            flat = {
                key if word is None else f"{key}.{word}": item
                for key, inner in value.items()
                for word, item in (inner.items() if isinstance(inner, dict) else [(None, inner)])
            }
            yield from (f"--{name}={key}={_shown(item)}" for key, item in flat.items() if item not in (None, ""))
        elif isinstance(value, bool) and isinstance(actions.get(name), argparse.BooleanOptionalAction):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, bool) and name in actions and actions[name].nargs == "?":
            yield from [f"--{name}"] * value  # a flag that may stand alone
        elif value is not None:
            yield f"--{name}={_shown(value)}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)
