"""Command lines and configuration files of train.py -> `Config`.

The flags come from the fields of `mmpareto.config`, the options of dataset, method, fusion and architecture from their
registry entries. A file of --config is read as flags that stand before those of the command line.
"""

import argparse
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmpareto.command_line import Parser, add_allow
from mmpareto.config import SECTIONS, Config
from mmpareto.data_folders import is_embedded
from mmpareto.errors import ModelError, UsageError
from mmpareto.escape import counted
from mmpareto.file_settings import as_flags, drop_overridden, explicit, merged
from mmpareto.flag_values import converter, path_text
from mmpareto.registries import DATASETS, ENCODERS
from mmpareto.registry import REQUIRED, Entry, require_allowed
from mmpareto.runs import CONFIG, LAST, PREVIOUS, RESOLVED, RunDirectory, RunError
from mmpareto.train_flags import (
    DECAY_RATIO,
    MOMENTUM,
    OFF,
    SHORT,
    SWITCHED_OFF,
    WITH_OPTIONS,
    Entries,
    refuse_unknown,
    train_parser,
)


def parse(argv: Sequence[str], root: Path, beside: Mapping[str, Any] | None = None) -> Config:
    """The settings that a command line asks for, with the dataset's recipe for what it leaves open.

    Args:
        argv: flags of train.py.
        root: folder under which data/ and runs/ are looked for where the command line names no other.
        beside: settings that a program gives as those of a file, which flags override.

    Raises:
        UsageError: for an unknown flag or value (naming the known ones).
        SystemExit: after --help and --list-...
    """
    first = Parser(add_help=False)
    for name in ("config", "dataset", *WITH_OPTIONS, "optimizer", "lr_schedule", "lr_decay_step"):
        first.add_argument(f"--{name}", type=path_text if name == "config" else str)
    first.add_argument("--method_options", nargs="+", action="extend")
    add_allow(first)
    early = {name: value for name, value in vars(first.parse_known_args(argv)[0]).items() if value is not None}
    path, allowed = early.pop("config", None), early.pop("allow")
    options = {text.partition("=")[0] for text in early.pop("method_options", [])}
    in_file, empty = merged(path, allowed, beside)
    if in_file:
        drop_overridden(in_file, early, options)
    entries = Entries(in_file | early)

    parser = train_parser(entries)
    from_file = explicit(entries, in_file, path or "config") if in_file else {}
    # an empty setting of a file, as a run's without clipping is saved, is no recipe's value
    optional = {item.name for kind in SECTIONS.values() for item in fields(kind) if "None" in str(item.type)}
    parser.set_defaults(**dict.fromkeys(empty & optional), **from_file)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        refuse_unknown(unknown, parser, entries.dataset.name)
    values: dict[str, Any] = {
        key: None if key in SWITCHED_OFF and value == OFF else value for key, value in vars(given).items()
    }
    del values["config"], values["allow"]
    values["dataset_options"] = {key: values.pop(key) for key in entries.dataset.options}
    short = {key: value for key in SHORT if (value := values.pop(key)) is not None}
    for group, entry in entries.chosen.items():
        name = f"{group}_options"
        before = from_file.get(name, [])
        values[name] = _options(group, entry, before, values[name][len(before) :], short if group == "method" else {})
    values["encoder"], values["encoder_options"] = dict(values["encoder"]), dict(values["encoder_options"])
    values["missing"] = dict(values["missing"])
    values |= {kind: entries.named(kind) for kind in ("dataset", *WITH_OPTIONS)}
    _resolve(values, entries, root)
    return Config(
        **{
            section: kind(**{item.name: values[item.name] for item in fields(kind)})
            for section, kind in SECTIONS.items()
        }
    )


def parse_settings(
    settings: Mapping[str, Any],
    root: Path,
    file: Path | Mapping[str, Any] | None = None,
    allowed: Collection[str] = (),
) -> Config:
    """The settings of a program or notebook, with the dataset's recipe for what they leave open.

    Args:
        settings: by the names of the flags; None leaves one open.
        root: see `parse`.
        file: settings of --config, or a mapping of such, by section or without; `settings` override them.
        allowed: import paths that the file may name.

    Raises:
        UsageError: see `parse`.
    """
    beside: dict[str, Any] | None = None
    if isinstance(file, Mapping):
        parts = [
            value if key in SECTIONS and isinstance(value, Mapping) else {key: value} for key, value in file.items()
        ]
        beside = {name: value for part in parts for name, value in part.items()}
    flags = [] if file is None or beside is not None else [f"--config={file}"]
    flags += [f"--allow={path}" for path in allowed]
    return parse([*flags, *as_flags(settings, train_parser(Entries({})))], root, beside)


def saved_config(run: RunDirectory, allowed: Collection[str] = (), **changed: Any) -> Config:
    """The settings that a run was trained with, its encoders by name.

    Args:
        run: the run.
        allowed: import paths that the command line allows; any other that the run names is refused, not imported.
        changed: settings that take the place of the run's, where they are not None.

    Raises:
        RunError: where the folder holds no run, one of another version of the program, or one that imports code.
        UsageError: for a `data_root` of a dataset that reads no folder.
    """
    if not run.path.is_dir():
        raise RunError(f"{run.path} is no folder; give a run directory of train.py")
    settings = run.read_config()
    encoders = saved_encoders(run)
    names = [name for name in (str(settings.get("model")), *encoders.values()) if ENCODERS.is_path(name)]
    names += [str(settings.get(name)) for name in ("dataset", *WITH_OPTIONS)]
    try:
        require_allowed(names, allowed)
    except ValueError as error:
        raise RunError(f"{run.path} {error}") from error
    try:
        flags = ["--config", str(run / CONFIG), "--ckpt_path", str(run.path)]
        config = parse([*flags, *(f"--allow={path}" for path in allowed)], run.path)
    except UsageError as error:
        raise RunError(f"{run / CONFIG} holds values that train.py does not write: {error}") from error
    if changed.get("data_root") is not None and is_embedded(config.data.dataset, config.data.dataset_options):
        raise UsageError(f"--data_root: the dataset {config.data.dataset} is embedded and reads no folder")
    size = changed.get("batch_size")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UsageError(f"batch_size must be a whole number, 1 or more, found {size!r:.100}")
    return config.changed(encoder=encoders, **{key: value for key, value in changed.items() if value is not None})


def saved_encoders(run: RunDirectory) -> dict[str, str]:
    """The name of each modality's encoder.

    Raises:
        RunError: where the run has none.
    """
    encoders = run.read_json(RESOLVED).get("encoders")
    if not isinstance(encoders, dict) or not all(isinstance(name, str) for name in encoders.values()):
        raise RunError(f"{run / RESOLVED} holds encoders {encoders!r:.100}, which train.py does not write")
    return encoders


def flags_of(dataset: str) -> set[str]:
    """The names of train.py's flags, those that the dataset adds included."""
    names = {item.name for kind in SECTIONS.values() for item in fields(kind)}
    return names | set(SHORT) | set(DATASETS[dataset].options)


def _options(
    group: str,
    entry: Entry[Any],
    in_file: Iterable[tuple[str, str]],
    assigned: Sequence[tuple[str, str]],
    short: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of an entry, with their defaults."""
    flag, known = f"--{group}_options", f"it takes {', '.join(entry.options) or 'none'}"
    names = [key for key, _ in assigned]
    if len(set(names)) < len(names):
        raise UsageError(f"{flag}: {Counter(names).most_common(1)[0][0]} is given twice")
    for key in short:
        if key not in entry.options:
            raise UsageError(f"--{key} means nothing to the {group} {entry.name}; {known}")
        if key in names:
            raise UsageError(f"--{key} and {flag} {key}=... say the same: give one of the two")
    given: dict[str, Any] = {}
    for key, text in (*in_file, *assigned):
        if key not in entry.options:
            raise UsageError(f"the {group} {entry.name} has no option {key!r:.100}; {known}")
        try:
            given[key] = converter(entry.options[key].type)(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{flag} {key}: {error}") from error
    defaults = {key: option.default for key, option in entry.options.items() if option.default is not REQUIRED}
    return defaults | given | dict(short)


def _resolve(values: dict[str, Any], entries: Entries, root: Path) -> None:
    """Fill in what follows from other settings; refuse contradictions."""
    for encoder in filter(None, (values["model"], *values["encoder"].values())):
        try:
            ENCODERS.canonical(encoder)
        except ModelError as error:
            raise UsageError(str(error)) from error
    _resolve_schedule(values)
    values["clip_grad"] = values["clip_grad"] or None
    if values["momentum"] is not None and values["optimizer"] != "SGD":
        raise UsageError(f"--momentum is SGD's; {values['optimizer']} has none")
    if values["momentum"] is None:
        values["momentum"] = MOMENTUM
    if values["resume"] not in (None, "auto", LAST, PREVIOUS):
        raise UsageError(f"--resume {values['resume']}: expected {LAST}, {PREVIOUS}, auto or nothing")
    if values["resume"] and values["overwrite"]:
        raise UsageError("--resume continues a run, --overwrite deletes it: give one of the two")
    if values["probe_alone"] is not None and not values["probe"]:
        raise UsageError("--probe_alone names a run whose encoders are probed too; give --probe")
    if not values["train"]:
        for name in ("probe", "overwrite", "resume"):
            if values[name]:
                raise UsageError(f"--no-train scores a finished run again and writes nothing; leave --{name} out")
    dataset = entries.dataset.name
    if values["data_root"] == "":
        raise UsageError("--data_root is empty; name a folder, or leave the flag out")
    if is_embedded(dataset, values["dataset_options"]):
        if values["data_root"] is not None:
            raise UsageError(f"--data_root: the dataset {dataset} is embedded and reads no folder; leave the flag out")
    else:
        values["data_root"] = os.path.abspath(values["data_root"] or root / "data" / dataset)
    if values["ckpt_path"] == "":
        raise UsageError("--ckpt_path is empty; name a folder, or leave the flag out")
    if values["ckpt_path"] is None:
        folder = Path(dataset.replace(":", "."), values["method"].replace(":", "."), f"seed{values['random_seed']}")
        values["ckpt_path"] = str(root / "runs" / folder)


def _resolve_schedule(values: dict[str, Any]) -> None:
    """--lr_decay_step alone asks for the step schedule, as in the published code; contradictions are refused."""
    if values["lr_schedule"] is None:
        values["lr_schedule"] = "constant" if values["lr_decay_step"] is None else "step"
    schedule = values["lr_schedule"]
    if schedule == "step" and values["lr_decay_step"] is None:
        raise UsageError("--lr_schedule step needs --lr_decay_step, the epochs between two decays")
    if schedule != "step" and values["lr_decay_step"] is not None:
        raise UsageError(f"--lr_decay_step belongs to --lr_schedule step; found {schedule}")
    if values["lr_decay_ratio"] is not None and schedule != "step":
        raise UsageError(f"--lr_decay_ratio needs --lr_decay_step: the schedule is {schedule}")
    if values["lr_decay_ratio"] is None:
        values["lr_decay_ratio"] = DECAY_RATIO
    if values["warmup_epochs"] >= values["epochs"] > 0 and values["warmup_epochs"] > 0:
        raise UsageError(
            f"--warmup_epochs {values['warmup_epochs']} leaves nothing of {counted(values['epochs'], 'epoch')}"
        )
